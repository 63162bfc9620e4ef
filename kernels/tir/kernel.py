"""The contract between a kernel generator and the TVM target: calls in, kernels out."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from .isa import Isa

#: How a torch dtype is stored in TIR. bf16 travels as its bit pattern (TVM would legalise bf16
#: vectors away), booleans as bytes; ``memory.py`` converts on load and store.
STORAGE: dict[torch.dtype, str] = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "uint16",
    torch.bool: "uint8",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a dense row-major tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Value:
    """A tensor in a call: an activation, or a constant whose bits can be laid out in advance.

    ``source`` is the caller's handle (an FX node, or a tensor in tests) and opaque here.
    """

    spec: TensorSpec
    constant: bool = False
    source: Any = None


@dataclass(frozen=True)
class Pack:
    """A layout for a constant: ``write(out, *tensors)`` fills the packed tensor from its sources.

    ``key`` names the layout: same source and key, same bits, so variants share one copy.
    ``spec`` is the packed tensor's.
    """

    key: Hashable
    write: Callable[..., object]
    spec: TensorSpec

    @classmethod
    def of(cls, key: Hashable, fn: Callable[..., torch.Tensor], spec: TensorSpec) -> Pack:
        """A layout from a function that returns the packed tensor."""
        return cls(key, lambda out, *tensors: out.copy_(fn(*tensors)), spec)


@dataclass(frozen=True)
class Operand:
    """One input of a kernel: a value as it is, or constants packed into one tensor."""

    values: tuple[Value, ...]
    pack: Pack | None = None

    @property
    def spec(self) -> TensorSpec:
        """Spec of what the kernel receives."""
        return self.pack.spec if self.pack else self.values[0].spec

    def tensor(
        self, tensors: Sequence[torch.Tensor], empty: Callable[..., torch.Tensor] = torch.empty
    ) -> torch.Tensor:
        """What the kernel receives, of its values' tensors; ``empty`` makes room as torch's."""
        if not self.pack:
            return tensors[0]
        out = empty(self.pack.spec.shape, dtype=self.pack.spec.dtype)
        self.pack.write(out, *tensors)
        return out


@dataclass(frozen=True)
class Call:
    """One operator call with its arguments by schema name, defaults filled in.

    ``plan`` has the fields of a :attr:`Kernel.plan` that tuning chose; None leaves the choice to
    the planner.
    """

    op: str
    args: Mapping[str, Any]
    out: TensorSpec
    plan: Mapping[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        """The argument of that name."""
        return self.args[name]


@dataclass(frozen=True)
class Kernel:
    """A generated kernel and how to call it.

    The PrimFunc's parameters are the operands, the output, then the scratch tensors, each a
    dense row-major buffer aligned to 64 bytes in the storage dtype of :data:`STORAGE`.

    Attributes:
        name: for people: the operator and what it absorbed, an identifier.
        key: same key, same code; kernels are generated once per key.
        build: makes the PrimFunc.
        operands: inputs in parameter order.
        out: the result.
        scratch: workspace, planned by the graph's memory planner.
        flops: multiplies and adds.
        cost: what it is expected to take, in units of its family: to choose between arithmetics.
        notes: choices worth explaining (tiles, path, ...).
        plan: the choices tuning may change, a dataclass of plain values; None where there are none.
        stages: what its first scratch tensor holds the times of, see :mod:`.stages`: by name,
            bytes of its inputs that each stage reads.
        nearby: plans that differ from ``plan`` in one choice, all for the same result but for
            rounding, from the same operands.
    """

    name: str
    key: Hashable
    build: Callable[[], Any]
    operands: tuple[Operand, ...]
    out: TensorSpec
    scratch: tuple[TensorSpec, ...] = ()
    flops: int = 0
    cost: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)
    plan: Any = None
    stages: Mapping[str, int] = field(default_factory=dict)
    nearby: Callable[[], Iterable[Any]] = tuple

    @property
    def nbytes(self) -> int:
        """Bytes read and written at least once."""
        return sum(o.spec.nbytes for o in self.operands) + self.out.nbytes

    @property
    def activation_nbytes(self) -> int:
        """The part of :attr:`nbytes` that is not constants."""
        constant = sum(o.spec.nbytes for o in self.operands if all(v.constant for v in o.values))
        return self.nbytes - constant


class Unsupported(Exception):  # noqa: N818 - it is an answer, not a failure
    """Raised by a lowering that cannot take a call; the message is the reason users read."""


Lowering = Callable[[Call, Isa], Kernel]
_LOWERINGS: dict[str, Lowering] = {}


def lowers(*ops: str) -> Callable[[Lowering], Lowering]:
    """Register a function as the lowering of operators, named as ``zoomc::conv2d``."""

    def register(fn: Lowering) -> Lowering:
        _LOWERINGS.update(dict.fromkeys(ops, fn))
        return fn

    return register


@cache
def lowerings() -> Mapping[str, Lowering]:
    """Every registered lowering: each family's ``tir`` module is found and imported once."""
    package = importlib.import_module(__package__.rpartition(".")[0])
    for family in pkgutil.iter_modules(package.__path__):
        if family.ispkg and family.name != "tir":
            name = f"{package.__name__}.{family.name}.tir"
            if importlib.util.find_spec(name):
                importlib.import_module(name)
    return _LOWERINGS


def lower(call: Call, isa: Isa) -> Kernel:
    """The kernel of a call.

    Raises:
        Unsupported: with the reason, when nothing here can compute the call.
        StalePlan: the call's plan does not fit it.
    """
    try:
        lowering = lowerings()[call.op]
    except KeyError:
        raise Unsupported(f"no CPU kernel for {call.op}") from None
    return lowering(call, isa)
