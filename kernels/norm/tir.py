"""``zoomc::group_norm`` and ``zoomc::layer_norm`` for CPUs: memory-bound, statistics in fp32.

Group norm takes the moments of chunks in parallel, so that batch 1 with few groups keeps every
core busy, and merges them; a second pass normalises. Layer norm takes a row at a time, with the
variance about the mean while the row is in the first-level cache.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..conv2d import statistics
from ..tir import normalise
from ..tir.convert import store, texts
from ..tir.isa import Isa
from ..tir.kernel import Call, Kernel, Operand, Unsupported, Value, lowers
from ..tir.key import call_key
from ..tir.layout import Layout
from ..tir.math import ACTIVATIONS, let
from ..tir.memory import load
from ..tir.primfunc import check_sizes, prim_func

Expr = Any
Buffer = Any

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_CHUNKS = 64


def _operands(call: Call, names: tuple[str, ...]) -> dict[str, Value]:
    """The tensors among these arguments.

    Raises:
        Unsupported: one of them is no 32- or 16-bit float.
    """
    values = {name: call[name] for name in names if call[name] is not None}
    for name, value in values.items():
        if value.spec.dtype not in _FLOATS:
            raise Unsupported(f"{name} is {value.spec.dtype}")
    check_sizes([v.spec for v in values.values()])
    return values


def _chunks(rows: int) -> int:
    """The most equal chunks, up to a limit, that rows fall into."""
    return next(n for n in range(min(rows, _CHUNKS), 0, -1) if rows % n == 0)


@lowers("zoomc::group_norm")
def group_norm(call: Call, isa: Isa) -> Kernel:
    """Moments by chunk, merged; then one multiply-add and the activation."""
    values = _operands(call, ("x", "weight", "bias"))
    if call["activation"] not in ACTIVATIONS:
        raise Unsupported(f"activation {call['activation']!r}")
    images, *spatial, channels = call["x"].spec.shape
    rows = math.prod(spatial)
    height = _chunks(rows)
    width = rows // height
    scratch = statistics.scratch(images, height, channels)
    specs = [*(v.spec for v in values.values()), call.out, *scratch.values()]

    def body(buffers: list[Buffer]) -> None:
        tensors = dict(zip(values, buffers, strict=False))
        out = buffers[len(values)]
        named = dict(zip(scratch, buffers[len(values) + 1 :], strict=True))
        statistics.emit(
            isa,
            [tensors["x"]],
            [channels],
            named,
            images=images,
            height=height,
            width=width,
            groups=call["groups"],
            weight=tensors.get("weight"),
            bias=tensors.get("bias"),
            eps=call["eps"],
        )
        activation = ACTIVATIONS[call["activation"]]
        whole, rest = divmod(channels, isa.lanes)
        with T.parallel(images * height) as task, T.serial(width) as pixel:
            row = T.bind((task * width + pixel) * channels)
            table = T.bind(T.floordiv(task, height) * channels)

            def one(c: Expr, n: int) -> None:
                factor = load(named["gain"], [table + c], n)
                y = load(tensors["x"], [row + c], n) * factor
                y = y + load(named["offset"], [table + c], n)
                store(isa, out, row + c, let(activation(y, n)), n)

            if whole:
                with T.serial(whole) as v:
                    one(v * isa.lanes, isa.lanes)
            if rest:
                with T.serial(rest) as i:
                    one(whole * isa.lanes + i, 1)

    return Kernel(
        name="group_norm" + ("" if call["activation"] == "none" else f"_{call['activation']}"),
        key=call_key(call, isa),
        build=lambda: prim_func(specs, texts(isa), body),
        operands=tuple(Operand((v,)) for v in values.values()),
        out=call.out,
        scratch=tuple(scratch.values()),
        flops=6 * call.out.numel,
        notes={"chunks": images * height},
    )


@lowers("zoomc::layer_norm")
def layer_norm(call: Call, isa: Isa) -> Kernel:
    """One row at a time."""
    values = _operands(call, ("x", "weight", "bias"))
    channels = call.out.shape[-1]
    specs = [*(v.spec for v in values.values()), call.out]

    def body(buffers: list[Buffer]) -> None:
        tensors = dict(zip(values, buffers, strict=False))
        normalise.rows(
            Layout(isa, values=channels),
            tensors["x"],
            buffers[-1],
            count=call.out.numel // channels,
            channels=channels,
            norm=True,
            gain=tensors.get("weight"),
            offset=tensors.get("bias"),
            eps=call["eps"],
        )

    return Kernel(
        name="layer_norm",
        key=call_key(call, isa),
        build=lambda: prim_func(specs, texts(isa), body),
        operands=tuple(Operand((v,)) for v in values.values()),
        out=call.out,
        flops=6 * call.out.numel,
    )
