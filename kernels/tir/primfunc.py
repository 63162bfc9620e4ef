"""PrimFuncs from plain Python: parameters declared from specs, a body that emits TIR."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from .kernel import STORAGE, TensorSpec, Unsupported
from .llvm import imported

Buffer = Any

_INDEX_LIMIT = 2**31 - 1


def prim_func(
    specs: Sequence[TensorSpec], texts: Iterable[str], body: Callable[[list[Buffer]], None]
) -> Any:
    """A PrimFunc whose parameters are dense buffers of these specs.

    ``body`` receives one flat view of each parameter and emits the statements; it may call the
    functions that ``texts``, LLVM IR, define.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True})
            handles = [T.arg(f"p{i}", T.handle()) for i in range(len(specs))]
            buffers = [
                T.match_buffer(handle, spec.shape, STORAGE[spec.dtype], align=64)
                for handle, spec in zip(handles, specs, strict=True)
            ]
            with T.sblock("root"):  # Relax's pipeline expects a block around every body
                flat = [
                    T.decl_buffer((spec.numel,), STORAGE[spec.dtype], data=buffer.data, align=64)
                    for buffer, spec in zip(buffers, specs, strict=True)
                ]
                listed = list(texts)
                if listed:
                    with imported(listed):
                        body(flat)
                else:
                    body(flat)
        return builder.get()


def check_sizes(specs: Iterable[TensorSpec]) -> None:
    """Refuse tensors that are empty or whose indices outgrow 32 bits.

    Raises:
        Unsupported: with the shape.
    """
    for spec in specs:
        if spec.numel == 0:
            raise Unsupported(f"an empty tensor {spec.shape}")
        if spec.numel > _INDEX_LIMIT:
            raise Unsupported(f"{spec.shape} has more elements than a 32-bit index reaches")
