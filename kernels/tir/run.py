"""Run one kernel on its own: what kernel tests and kernel benchmarks stand on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..operator import OPERATORS
from .isa import Isa
from .kernel import STORAGE, Call, Kernel, TensorSpec, Value, lower
from .stages import parts

_CONSTANT = frozenset(
    "weight bias norm_weight norm_bias table group_scale channel_scale bounds"
    " down down_bias down_table down_group_scale down_channel_scale".split()
)

_ALIVE: list[Any] = []  # JIT-compiled code must outlive every function taken from it


def as_storage(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor in its TIR storage dtype, without a copy."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16)
    return tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor


def overload(op: str) -> torch._ops.OpOverload:
    """The operator named ``zoomc::conv2d`` or ``aten::add.Tensor``."""
    if op in OPERATORS:
        return OPERATORS[op].op
    namespace, _, name = op.partition("::")
    name, _, variant = name.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), variant or "default")


def bind(op: str, *args: Any, **kwargs: Any) -> Call:
    """A call from tensors: arguments named by the schema, weights marked constant.

    The arguments in :data:`_CONSTANT` count as constants, as they are in a captured graph.
    """
    target = overload(op)
    schema = target._schema.arguments
    bound = {a.name: a.default_value for a in schema if a.has_default_value()}
    bound |= dict(zip((a.name for a in schema), args, strict=False)) | kwargs

    def wrap(name: str, x: Any) -> Any:
        constant = name in _CONSTANT
        return _map(x, lambda t: Value(TensorSpec(tuple(t.shape), t.dtype), constant, t))

    # A creator takes no tensor that would keep it off the CPU.
    with torch.device("meta"):
        meta = {k: _map(v, lambda t: torch.empty_like(t, device="meta")) for k, v in bound.items()}
    out = target(**meta)
    return Call(
        op, {k: wrap(k, v) for k, v in bound.items()}, TensorSpec(tuple(out.shape), out.dtype)
    )


def _map(x: Any, fn: Callable[[torch.Tensor], Any]) -> Any:
    if isinstance(x, torch.Tensor):
        return fn(x)
    return [_map(t, fn) for t in x] if isinstance(x, (list, tuple)) else x


@dataclass(frozen=True)
class Loaded:
    """A compiled kernel with its tensors: calling it runs it and returns the output."""

    kernel: Kernel
    run: Callable[..., object]
    operands: list[torch.Tensor]
    out: torch.Tensor
    scratch: list[torch.Tensor]

    def __call__(self) -> torch.Tensor:
        """Run the kernel; the output is the same tensor every time."""
        self.run(*self.operands, as_storage(self.out), *self.scratch)
        return self.out

    def stages(self) -> dict[str, float]:
        """Each stage's part of the last call's time; empty where the kernel stamps none."""
        names = tuple(self.kernel.stages)
        return parts(names, self.scratch[0].tolist()) if names else {}


def load(kernel: Kernel, isa: Isa) -> Loaded:
    """Compile a kernel whose values hold tensors; the result runs it and returns the output.

    Operands are packed once, here; output and scratch are allocated once and reused, so calling
    the result in a loop times the kernel alone.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(isa.threads))
    import tvm

    from .amx import enable

    if isa.amx:
        enable()
    library = tvm.compile(
        tvm.IRModule({"main": kernel.build().with_attr("global_symbol", "main")}),
        target=tvm.target.Target(isa.target),
    )
    _ALIVE.append(library)
    run = library["main"]
    operands = []
    for operand in kernel.operands:
        tensors = [value.source for value in operand.values]
        operands.append(_aligned(as_storage(operand.tensor(tensors).contiguous())))
    out = _aligned(torch.zeros(kernel.out.shape, dtype=kernel.out.dtype))
    # Garbage in the scratch: a kernel that relies on zeros there fails its test.
    scratch = [_aligned(_garbage(s)) for s in kernel.scratch]
    return Loaded(kernel, run, operands, out, scratch)


def _garbage(spec: TensorSpec) -> torch.Tensor:
    raw = torch.full((max(spec.nbytes, 1),), 0xA5, dtype=torch.uint8)[: spec.nbytes]
    return as_storage(raw.view(spec.dtype).view(spec.shape))


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if its memory is not aligned to 64 bytes."""
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def run(isa: Isa, op: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Lower, compile and run one operator call on tensors."""
    return load(lower(bind(op, *args, **kwargs), isa), isa)().clone()


__all__ = ["STORAGE", "as_storage", "bind", "load", "run"]
