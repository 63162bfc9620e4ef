"""CPU kernels of ``zoomc::conv2d`` on coded weights: images become int8, products are integers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from ..integer import LIMIT
from ..tir import coded, convert, quantise, short
from ..tir.codes import Codes
from ..tir.epilogue import Epilogue, IntegerSums, finishing
from ..tir.integer_product import IntegerProduct
from ..tir.isa import Isa
from ..tir.kernel import Call, Kernel, Operand, TensorSpec, Unsupported, Value
from ..tir.key import call_key
from ..tir.micro_int8 import micro as choose
from ..tir.primfunc import check_sizes, prim_func
from ..tir.quantise import Blocks, ImagePixels
from ..tir.stages import NORM, PRODUCT, QUANTISE, Stages
from . import extremes, maps, statistics


def conv2d(call: Call, isa: Isa) -> Kernel:
    """One product over the pixels of an int8 map.

    Raises:
        Unsupported: see :func:`~zoomc.kernels.tir.coded.check`; groups; empty tensors; negative
            padding.
    """
    from .tir import geometry, name, optional

    inputs, weight = call["inputs"], call["weight"]
    tensors = [v for v in call.args.values() if isinstance(v, Value)]
    check_sizes([*(v.spec for v in (*inputs, *tensors)), call.out])
    coded.check(call, {v.spec.dtype for v in inputs}, math.prod(weight.spec.shape[1:]))
    if call["groups"] > 1:
        raise Unsupported("coded weights in groups")
    if min(call["padding"]) < 0:
        raise Unsupported("negative padding")
    images, out_height, out_width, columns = call.out.shape
    channels = weight.spec.shape[1]
    micro = choose(isa)
    shape = geometry(call)
    layout = Blocks(isa, micro, channels, shape.pixels + micro.rows)
    rows = shape.output(out_height, out_width)
    codes = Codes.of(call, micro, gated=False)
    product = IntegerProduct.of(isa, layout, rows, shape.taps(), codes, finishing(call), call.plan)
    norm, given = bool(call["norm_groups"]), call["bounds"] is not None
    stages = Stages.of(isa, inputs, *([NORM] if norm else []), QUANTISE)

    operands = {f"input{i}": Operand((v,)) for i, v in enumerate(inputs)}
    operands |= coded.operands(call, product, -1) | optional(call)
    scratch = stages.scratch() | {"a": layout.spec}
    if norm:
        scratch |= statistics.scratch(images, shape.height, channels)
    scratch |= extremes.scratch(
        images, shape.height, channels, norm, shape.written if given else None
    )
    # Of zero -1: the sums of the columns, by which an image's own zero is multiplied.
    pitch = codes.panels * micro.columns
    scratch["corrections"] = TensorSpec((images * pitch,), torch.int32)
    work = product.scratch()

    def body(buffers: list[Any]) -> None:
        named = dict(zip([*operands, "out", *scratch], buffers, strict=False))
        sources = [named[f"input{i}"] for i in range(len(inputs))]
        activation, found = call["pre_activation"], None
        least = -LIMIT - 1 if given else None
        if norm:
            stages.begin(NORM, named)
            statistics.emit(
                isa,
                sources,
                shape.channels,
                named,
                images=images,
                height=shape.height,
                width=shape.width,
                groups=call["norm_groups"],
                weight=named.get("norm_weight"),
                bias=named.get("norm_bias"),
                eps=call["norm_eps"],
            )
        stages.begin(QUANTISE, named)
        if norm and not given:
            found = extremes.of_channels(isa, named, shape.height, channels)
        elif not given:
            found = extremes.of_inputs(
                isa, sources, shape.channels, named, images, shape.height, shape.width
            )
        extremes.scales(isa, micro, named, images, pitch, activation, found)
        maps.write(
            isa,
            lambda image: ImagePixels.of(
                layout, named["inverses"][image], named["zeros"][image], least
            ),
            shape,
            sources,
            named["a"],
            gain=named.get("gain"),
            offset=named.get("offset"),
            activation=short.prepared(isa, activation),
            magnitudes=named.get("magnitudes"),
        )
        if given:
            extremes.spoil(named, images, shape.written)
        epilogue = Epilogue(
            isa,
            micro,
            columns,
            named["out"],
            bias=named.get("columns"),
            shift=named.get("shift"),
            residual=named.get("residual"),
            integer=IntegerSums(named["factors"], named["scales"], named["corrections"], pitch),
        )
        stages.begin(PRODUCT, named)
        product.emit(
            named["a"],
            named["panels"],
            named.get("table"),
            named.get("offsets"),
            buffers[-len(work) :],
            epilogue,
        )
        stages.end(named)

    specs = [*(o.spec for o in operands.values()), call.out, *scratch.values(), *work]
    texts = [*convert.texts(isa), product.micro.text, *codes.texts(isa), *short.texts(isa)]
    texts += quantise.lane_texts(isa)
    return Kernel(
        name(call).replace("conv2d", f"conv2d_int{codes.bits}", 1),
        call_key(call, isa),
        lambda: prim_func(specs, texts, body),
        tuple(operands.values()),
        call.out,
        (*scratch.values(), *work),
        flops=2 * call.out.numel * math.prod(weight.spec.shape[1:]) * codes.steps // codes.depth,
        notes={"micro": product.micro.name, "bits": codes.bits, **dataclasses.asdict(product.plan)},
        plan=product.plan,
        stages=stages.reads,
        nearby=product.nearby,
    )
