"""The contract between a kernel generator and the Triton target: calls in, launches out."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from ..tir.kernel import Call, Operand, TensorSpec, Unsupported, Value
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
        registers: how many a thread may take; None where the compiler chooses.
    """

    function: Any
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told besides."""
        told = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return told if self.registers is None else told | {"maxnreg": self.registers}


@dataclass(frozen=True)
class Extra:
    """A result besides a call's own that is a function of it, gathered while it is at hand.

    Attributes:
        spec: its tensor.
        of: the reference: gives it, from the call's result.
    """

    spec: TensorSpec
    of: Callable[[torch.Tensor], torch.Tensor]


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
        extras: what it gathers besides, by slot name, of a call that :func:`gathering` made.
        measured: operands whose moments launches of its own gather, in the order in which
            :func:`given` takes them instead.
        scaled: the operand whose rows' largest magnitudes a launch of its own finds, where
            :func:`given_peaks` may give them; empty if none.
        passed: bytes of activations that its launches move besides: workspaces, and operands
            read again.
        flops: multiplies and adds.
        seconds: what the generator expects this choice to take; for ranking, not a promise.
        notes: choices worth explaining (tiles, traffic, ...).
    """

    name: str
    operands: Mapping[str, Operand]
    out: TensorSpec
    launches: tuple[Launch, ...]
    scratch: Mapping[str, TensorSpec] = field(default_factory=dict)
    extras: Mapping[str, Extra] = field(default_factory=dict)
    measured: tuple[str, ...] = ()
    scaled: str = ""
    passed: int = 0
    flops: int = 0
    seconds: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def made(self) -> dict[str, TensorSpec]:
        """Specs of the tensors that a run makes room for: results and workspace."""
        extras = {name: extra.spec for name, extra in self.extras.items()}
        return {"out": self.out} | extras | dict(self.scratch)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor's spec by slot name."""
        return {name: operand.spec for name, operand in self.operands.items()} | self.made

    @property
    def nbytes(self) -> int:
        """Bytes its launches read and write, each at least once."""
        results = self.out.nbytes + sum(extra.spec.nbytes for extra in self.extras.values())
        return sum(o.spec.nbytes for o in self.operands.values()) + results + self.passed

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


def gathering(call: Call, rows: int) -> Call:
    """The same call, asked to gather the moments of its result's channels as it writes them.

    Kernels that can have ``moments`` among their :attr:`Kernel.extras`: ``[4, blocks, channels]``,
    over each block of rows a channel's mean, sum of squared distances from it, least and greatest
    value.

    Args:
        call: a product.
        rows: rows of its result that make an image; no block has rows of two.
    """
    return dataclasses.replace(call, args={**call.args, "gather": rows})


def given(call: Call, moments: Sequence[Value | None]) -> Call:
    """The same call, given moments that others gathered; None where it gathers its own.

    Args:
        call: one whose kernels have :attr:`Kernel.measured` operands.
        moments: theirs, in that order: ``[4, blocks, channels]``, equally many blocks an image.
    """
    return dataclasses.replace(call, args={**call.args, "moments": list(moments)})


def gathering_peaks(call: Call) -> Call:
    """The same call, asked to gather the largest magnitudes of its result's rows as it writes them.

    Its kernels have ``peaks`` among their :attr:`Kernel.extras`: ``[rows, blocks]``, of so many
    blocks of columns; NaN of a block that holds one.

    Args:
        call: a product, a group norm, or attention, whose blocks of columns are its heads.
    """
    return dataclasses.replace(call, args={**call.args, "gather_peaks": True})


def given_peaks(call: Call, peaks: Value) -> Call:
    """The same call, given the largest magnitudes of the rows it quantises, in blocks of columns.

    Args:
        call: one whose kernels have a :attr:`Kernel.scaled` operand.
        peaks: ``[rows, blocks]``.
    """
    return dataclasses.replace(call, args={**call.args, "peaks": peaks})


def weight_only(call: Call, gpu: Gpu) -> str | None:
    """Why a product of coded weights had better read its input as it is; None if it had not.

    By the rooflines of both ways: quantising passes over the input once more and then multiplies
    twice as fast, which is little where arithmetic is not the limit.

    Raises:
        Unsupported: nothing here can compute the call in either way.
    """
    integers = candidates(call, gpu)[0]
    floats = candidates(dataclasses.replace(call, args={**call.args, "weight_only": True}), gpu)[0]
    if integers.seconds < floats.seconds:
        return None
    read = f"read in {str(call.out.dtype).removeprefix('torch.')}"
    if (limit := integers.notes["limit"]) == "arithmetic":
        return f"{read}: quantising takes longer than integers save"
    return f"{read}: {limit} is the limit, not arithmetic"


__all__ = [
    "Call",
    "Extra",
    "Kernel",
    "Launch",
    "Operand",
    "Slot",
    "TensorSpec",
    "Unsupported",
    "Value",
    "candidates",
    "gathering",
    "gathering_peaks",
    "given",
    "given_peaks",
    "lowers",
    "weight_only",
]
