"""CPU kernels of ``zoomc::conv2d``: an implicit matrix product over a rewritten input."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from ..tir import convert
from ..tir.epilogue import Epilogue, finishing
from ..tir.gemm import Batch, Depth, Place, Product, Rows
from ..tir.isa import Isa
from ..tir.kept import Kept
from ..tir.kernel import Call, Kernel, Operand, TensorSpec, Unsupported, Value, lowers
from ..tir.key import call_key
from ..tir.layout import Layout, decode_split, laid_out
from ..tir.math import ACTIVATIONS
from ..tir.micro import micro as choose
from ..tir.pack import (
    column_operand,
    pack_columns,
    pack_panels,
    panel_count,
    panel_operand,
    round_up,
)
from ..tir.primfunc import check_sizes, prim_func
from ..tir.stages import NORM, PREPARE, PRODUCT, Stages
from . import coded, grouped, maps, statistics
from .phases import Phases

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _check(call: Call) -> None:
    inputs, weight = call["inputs"], call["weight"]
    dtype = call.out.dtype
    if dtype not in _DTYPES or {v.spec.dtype for v in (*inputs, weight)} != {dtype}:
        raise Unsupported(f"convolution of {inputs[0].spec.dtype} by {weight.spec.dtype}")
    tensors = [v for v in call.args.values() if isinstance(v, Value)]
    check_sizes([*(v.spec for v in (*inputs, *tensors)), call.out])
    if min(call["padding"]) < 0:
        raise Unsupported("negative padding")


def geometry(call: Call) -> maps.Map:
    """The map a call reads."""
    images, height, width, _ = call["inputs"][0].spec.shape
    return maps.Map(
        images,
        height,
        width,
        tuple(v.spec.shape[3] for v in call["inputs"]),
        2 if call["upsample"] else 1,
        tuple(call["padding"]),
        tuple(call["stride"]),
        tuple(call["dilation"]),
        tuple(call["weight"].spec.shape[2:]),
    )


def _as_it_is(call: Call) -> bool:
    """Whether the product can read the input itself: one tap at every pixel."""
    return (
        len(call["inputs"]) == 1
        and tuple(call["weight"].spec.shape[2:]) == (1, 1)
        and tuple(call["stride"]) == (1, 1)
        and not any(call["padding"])
        and not call["upsample"]
        and not call["norm_groups"]
        and call["pre_activation"] == "none"
    )


@lowers("zoomc::conv2d")
def conv2d(call: Call, isa: Isa) -> Kernel:
    """The kernel of a convolution.

    Raises:
        Unsupported: dtypes other than fp32, bf16, fp16, or mixed; empty tensors; negative padding.
    """
    if call["channel_scale"] is not None:
        return coded.conv2d(call, isa)
    _check(call)
    if call["groups"] > 1:
        return grouped.conv2d(call, isa)
    inputs, weight, bias = call["inputs"], call["weight"], call["bias"]
    dtype = call.out.dtype
    images, out_height, out_width, columns = call.out.shape
    channels = weight.spec.shape[1]
    shape, kept = geometry(call), Kept.of(call)
    phases = Phases.of(call, shape)
    if phases and kept and kept.steps < math.prod(phases.map.kernel) * kept.blocks:
        phases = None  # adding up taps would leave more to multiply than was pruned
    kept = None if phases else kept
    shape = phases.map if phases else shape
    micro = choose(isa, dtype, images * out_height * out_width, kept is not None)
    padded = kept.channels if kept else round_up(channels, micro.kstep)
    direct = (
        _as_it_is(call)
        and padded == channels
        and micro.planes == 1
        and dtype is (torch.float32 if micro.a == "float32" else torch.bfloat16)
        and out_height * out_width >= micro.rows
    )
    batch = Batch()
    if direct:
        pixels = out_height * out_width
        rows = Rows(images, out_height, out_width, out_width, pixels, exact=True)
        layout = Layout(isa, micro.planes, padded, micro.kstep)
        depth = kept.depth if kept else Depth(1, padded, lambda run: 0)
    else:
        scale = 2 if phases else 1
        rows = shape.output(out_height // scale, out_width // scale)
        layout = laid_out(isa, micro, padded, shape.pixels, sliced=micro.planes == 1)
        depth = kept.depth if kept else shape.depth(layout)
        batch = phases.batch(layout) if phases else batch
    panels = panel_count(columns, micro)
    product = Product.of(isa, micro, rows, depth, layout, panels, batch, finishing(call), call.plan)

    operands = {f"input{i}": Operand((v,)) for i, v in enumerate(inputs)}
    scratch: dict[str, TensorSpec] = {}
    if phases:
        operands["panels"] = phases.operand(weight, micro, padded)
    elif kept:
        operands["panels"] = kept.operand(weight, micro)
        operands["offsets"] = kept.offsets(weight, micro, layout, shape.taps())
    elif weight.constant:
        operands["panels"] = panel_operand(weight, micro, padded)
    else:
        operands["weight"] = Operand((weight,))
        scratch["panels"] = TensorSpec((panels * depth.k * micro.columns,), micro.panel)
    if bias is not None and bias.constant:
        operands["columns"] = column_operand(bias, micro)
    elif bias is not None:
        operands["bias"] = Operand((bias,))
        scratch["columns"] = TensorSpec((panels * micro.columns,), torch.float32)
    operands |= optional(call)
    prepare = None if direct else Preparation(call, isa, shape, layout)
    norm = [NORM] if call["norm_groups"] else []
    stages = Stages.of(isa, inputs, *norm, *([PREPARE] if prepare else []))
    scratch = stages.scratch() | scratch
    if prepare:
        a_dtype = torch.float32 if micro.a == "float32" else torch.bfloat16
        scratch |= prepare.scratch(a_dtype, slack=micro.rows)
    work = product.scratch()
    flops = 2 * call.out.numel * math.prod(weight.spec.shape[1:])

    def body(buffers: list[Any]) -> None:
        named = dict(zip([*operands, "out", *scratch], buffers, strict=False))
        if "weight" in named:
            across = weight.spec.shape[3]
            taps = weight.spec.shape[2] * across
            pack_panels(
                isa,
                micro,
                named["weight"],
                named["panels"],
                columns=columns,
                depth=channels,
                runs=taps,
                channels=padded,
                address=lambda _, column, tap, c: (column * channels + c) * taps + tap,
            )
        if "bias" in named:
            pack_columns(named["bias"], named["columns"], columns, micro, gated=False)
        if prepare:
            prepare.emit(named, stages)
        stages.begin(PRODUCT, named)
        epilogue = Epilogue(
            isa,
            micro,
            columns,
            named["out"],
            bias=named.get("columns"),
            shift=named.get("shift"),
            residual=named.get("residual"),
        )

        def finish(place: Place, panel: Any, sums: Any, at: Any) -> None:
            epilogue(phases.spread(place) if phases else place, panel, sums, at)

        product.emit(
            named["input0"] if direct else named["map"],
            named["panels"],
            buffers[-len(work) :],
            decode_split if micro.decoded else None,
            finish,
            named.get("offsets"),
        )
        stages.end(named)

    specs = [*(o.spec for o in operands.values()), call.out, *scratch.values(), *work]
    return Kernel(
        name(call),
        call_key(call, isa),
        lambda: prim_func(specs, [*convert.texts(isa), product.micro.text], body),
        tuple(operands.values()),
        call.out,
        (*scratch.values(), *work),
        flops=kept.part(flops) if kept else flops,
        notes={
            "micro": product.micro.name,
            "in_place": direct,
            "phases": 4 if phases else 1,
            **dataclasses.asdict(product.plan),
        },
        plan=product.plan,
        stages=stages.reads,
        nearby=product.nearby,
    )


def name(call: Call) -> str:
    """The operator and what it absorbed."""
    parts = ["conv2d", "x".join(map(str, call["weight"].spec.shape[2:]))]
    parts += ["concat"] if len(call["inputs"]) > 1 else []
    parts += ["norm"] if call["norm_groups"] else []
    parts += [call["pre_activation"]] if call["pre_activation"] != "none" else []
    parts += ["upsample"] if call["upsample"] else []
    parts += ["shift"] if call["shift"] is not None else []
    parts += ["residual"] if call["residual"] is not None else []
    return "_".join(parts)


def optional(call: Call) -> dict[str, Operand]:
    """The operands a call may or may not have."""
    names = ["shift", "residual"]
    names += ["norm_weight", "norm_bias"] if call["norm_groups"] else []
    return {n: Operand((call[n],)) for n in names if call[n] is not None}


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The phases that rewrite a call's inputs as a map."""

    call: Call
    isa: Isa
    shape: maps.Map
    layout: Layout

    def scratch(self, dtype: torch.dtype, slack: int) -> dict[str, TensorSpec]:
        """Workspace, by the names :meth:`emit` looks up."""
        named = {"map": TensorSpec((self.layout.elements(self.shape.pixels + slack),), dtype)}
        if self.call["norm_groups"]:
            shape = self.shape
            named |= statistics.scratch(shape.images, shape.height, sum(shape.channels))
        return named

    def emit(self, named: dict[str, Any], stages: Stages) -> None:
        """Emit them, with stamps of when they begin."""
        call, shape = self.call, self.shape
        inputs = [named[f"input{i}"] for i in range(len(shape.channels))]
        if call["norm_groups"]:
            stages.begin(NORM, named)
            statistics.emit(
                self.isa,
                inputs,
                shape.channels,
                named,
                images=shape.images,
                height=shape.height,
                width=shape.width,
                groups=call["norm_groups"],
                weight=named.get("norm_weight"),
                bias=named.get("norm_bias"),
                eps=call["norm_eps"],
            )
        stages.begin(PREPARE, named)
        maps.write(
            self.isa,
            lambda image: self.layout,
            shape,
            inputs,
            named["map"],
            gain=named.get("gain"),
            offset=named.get("offset"),
            activation=ACTIVATIONS[call["pre_activation"]],
        )
