"""The contract between a kernel generator and the Triton target: calls in, launches out."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..tir.kernel import Call, Operand, TensorSpec, Unsupported
from .gpu import Gpu


@dataclass(frozen=True)
class Slot:
    """A tensor of the kernel's, by name: an operand, a scratch tensor, or ``out``."""

    name: str


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton function.

    Attributes:
        function: the function.
        grid: programs along each axis.
        arguments: every parameter by name: a :class:`Slot`, a number, a string, or None for a
            tensor that is not there.
        warps: warps of a program.
        stages: loads in flight in its loops.
    """

    function: Any
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    warps: int = 4
    stages: int = 2

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told besides."""
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": True,
        }


@dataclass(frozen=True)
class Kernel:
    """How one operator call runs: launches in order, on named tensors.

    All tensors are dense and row-major; their memory starts at a multiple of 16 bytes.

    Attributes:
        name: for people: the operator and what it absorbed, an identifier.
        operands: inputs by slot name.
        out: the result, in slot ``out``.
        launches: in order.
        scratch: workspace by slot name.
        flops: multiplies and adds.
        seconds: what the generator expects this choice to take; for ranking, not a promise.
        notes: choices worth explaining (tiles, traffic, ...).
    """

    name: str
    operands: Mapping[str, Operand]
    out: TensorSpec
    launches: tuple[Launch, ...]
    scratch: Mapping[str, TensorSpec] = field(default_factory=dict)
    flops: int = 0
    seconds: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor's spec by slot name."""
        operands = {name: operand.spec for name, operand in self.operands.items()}
        return operands | {"out": self.out} | dict(self.scratch)

    @property
    def nbytes(self) -> int:
        """Bytes read and written at least once."""
        return sum(o.spec.nbytes for o in self.operands.values()) + self.out.nbytes

    @property
    def activation_nbytes(self) -> int:
        """The part of :attr:`nbytes` that is not constants."""
        constant = (o for o in self.operands.values() if all(v.constant for v in o.values))
        return self.nbytes - sum(o.spec.nbytes for o in constant)


#: Gives a call's kernels, in any order: choices of tiles and routes with the same result up to
#: rounding.
Lowering = Callable[[Call, Gpu], Iterable[Kernel]]
_LOWERINGS: dict[str, Lowering] = {}

#: 32-bit offsets reach this far.
LARGEST = 2**31 - 1


def lowers(*ops: str) -> Callable[[Lowering], Lowering]:
    """Register a function as the lowering of operators, named as ``zoomc::conv2d``."""

    def register(fn: Lowering) -> Lowering:
        _LOWERINGS.update(dict.fromkeys(ops, fn))
        return fn

    return register


@cache
def lowerings() -> Mapping[str, Lowering]:
    """Every registered lowering: each family's ``triton`` module is found and imported once."""
    package = importlib.import_module(__package__.rpartition(".")[0])
    for family in pkgutil.iter_modules(package.__path__):
        name = f"{package.__name__}.{family.name}.triton"
        if family.ispkg and family.name != "triton" and importlib.util.find_spec(name):
            importlib.import_module(name)
    return _LOWERINGS


def candidates(call: Call, gpu: Gpu) -> list[Kernel]:
    """Ways to run a call, the one expected to be fastest first.

    Raises:
        Unsupported: with the reason, when nothing here can compute the call.
    """
    try:
        lowering = lowerings()[call.op]
    except KeyError:
        raise Unsupported(f"no Triton kernel for {call.op}") from None
    found = sorted(lowering(call, gpu), key=lambda kernel: kernel.seconds)
    fit = [k for k in found if all(spec.numel <= LARGEST for spec in k.specs.values())]
    if not fit:
        raise Unsupported("a tensor with more elements than 32-bit offsets reach")
    return fit


def weight_only(call: Call, gpu: Gpu) -> str | None:
    """Why a product of coded weights had better read its input as it is; None if it had not.

    By the rooflines of both ways: quantising passes over the input once more and then multiplies
    twice as fast, which is little where arithmetic is not the limit.

    Raises:
        Unsupported: nothing here can compute the call in either way.
    """
    integers = candidates(call, gpu)[0]
    floats = candidates(dataclasses.replace(call, args={**call.args, "weight_only": True}), gpu)[0]
    if floats.seconds >= integers.seconds:
        return None
    read = f"read in {str(call.out.dtype).removeprefix('torch.')}"
    if (limit := integers.notes["limit"]) == "arithmetic":
        return f"{read}: quantising takes longer than integers save"
    return f"{read}: {limit} is the limit, not arithmetic"


__all__ = [
    "Call",
    "Kernel",
    "Launch",
    "Operand",
    "Slot",
    "TensorSpec",
    "Unsupported",
    "candidates",
    "lowers",
    "weight_only",
]
