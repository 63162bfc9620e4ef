"""Convolutions in groups, depthwise ones included: direct sums over vectors of channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir import convert
from ..tir.isa import Isa
from ..tir.kernel import Call, Kernel, Operand, Pack, TensorSpec
from ..tir.key import call_key
from ..tir.layout import Layout
from ..tir.memory import load, splat, store, typed
from ..tir.primfunc import prim_func
from ..tir.stages import NORM, PREPARE, PRODUCT, Stages

Expr = Any


def conv2d(call: Call, isa: Isa) -> Kernel:
    """The kernel of a convolution with ``groups > 1``."""
    from .tir import Preparation, geometry, name, optional

    inputs, weight = call["inputs"], call["weight"]
    outputs, per_group, down, across = weight.spec.shape
    images, out_height, out_width, _ = call.out.shape
    groups = call["groups"]
    share = outputs // groups
    depthwise = per_group == 1 and share == 1
    lanes = isa.lanes if depthwise or share % isa.lanes == 0 else 1
    shape = geometry(call)
    layout = Layout(isa, values=per_group * groups)
    rows = shape.output(out_height, out_width)
    prepare = Preparation(call, isa, shape, layout)
    taps = TensorSpec((down, across, per_group, outputs), torch.float32)

    operands = {f"input{i}": Operand((v,)) for i, v in enumerate(inputs)}
    stages = Stages.of(isa, inputs, *([NORM] if call["norm_groups"] else []), PREPARE)
    scratch = stages.scratch()
    if weight.constant:
        pack = Pack.of("taps", lambda w: w.float().permute(2, 3, 1, 0), taps)
        operands["taps"] = Operand((weight,), pack)
    else:
        operands["weight"] = Operand((weight,))
        scratch["taps"] = taps
    if call["bias"] is not None:
        operands["bias"] = Operand((call["bias"],))
    operands |= optional(call)
    scratch |= prepare.scratch(torch.float32, slack=1)

    def body(buffers: list[Any]) -> None:
        named = dict(zip([*operands, "out", *scratch], buffers, strict=False))
        if "weight" in named:
            area = down * across
            with (
                T.parallel(area) as tap,
                T.serial(per_group) as c,
                T.serial(outputs) as o,
            ):
                value = load(named["weight"], [(o * per_group + c) * area + tap])
                T.buffer_store(named["taps"], value, [(tap * per_group + c) * outputs + o])
        prepare.emit(named, stages)
        stages.begin(PRODUCT, named)

        def one(pixel: Expr, base: Expr, image: Expr, o: Expr, n: int) -> None:
            held = T.alloc_buffer((n,), "float32", scope="local")

            def read() -> Expr:
                return held.vload([0], dtype=typed("float32", n)) if n > 1 else held[0]

            first = load(named["bias"], [o], n) if "bias" in named else splat(T.float32(0), n)
            store(held, [0], first, n)
            group = T.floordiv(o, share)
            with T.serial(down) as ky, T.serial(across) as kx, T.serial(per_group) as c:
                at = base + shape.tap(ky, kx) * layout.row + group * per_group + c
                x = load(named["map"], [at], n if depthwise else 1)
                x = x if depthwise else splat(x, n)
                tap = ((ky * across + kx) * per_group + c) * outputs + o
                store(held, [0], read() + x * load(named["taps"], [tap], n), n)
            value = read()
            if "shift" in named:
                value = value + load(named["shift"], [image * outputs + o], n)
            where = pixel * outputs + o
            if "residual" in named:
                value = value + load(named["residual"], [where], n)
            convert.store(isa, named["out"], where, T.bind(value), n)

        with T.parallel(images * out_height) as task, T.serial(out_width) as x:
            image, y = T.floordiv(task, out_height), T.floormod(task, out_height)
            pixel = T.bind(task * out_width + x)
            base = T.bind((image * rows.image_rows + y * rows.pitch + x) * layout.row)
            whole, rest = divmod(outputs, lanes)
            if whole:
                with T.serial(whole) as v:
                    one(pixel, base, image, v * lanes, lanes)
            if rest:
                with T.serial(rest) as i:
                    one(pixel, base, image, whole * lanes + i, 1)
        stages.end(named)

    specs = [*(o.spec for o in operands.values()), call.out, *scratch.values()]
    return Kernel(
        name(call).replace("conv2d", "conv2d_grouped"),
        call_key(call, isa),
        lambda: prim_func(specs, convert.texts(isa), body),
        tuple(operands.values()),
        call.out,
        tuple(scratch.values()),
        flops=2 * call.out.numel * math.prod(weight.spec.shape[1:]),
        notes={"lanes": lanes, "depthwise": depthwise},
        stages=stages.reads,
    )
