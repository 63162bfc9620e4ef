"""CPU kernels of ``zoomc::linear`` (and, by :mod:`.matmul`, of ``zoomc::matmul``)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..tir import convert, normalise
from ..tir.epilogue import Epilogue, finishing
from ..tir.gemm import Depth, Product, Rows
from ..tir.isa import Isa
from ..tir.kept import Kept
from ..tir.kernel import Call, Kernel, Operand, TensorSpec, Unsupported, Value, lowers
from ..tir.key import call_key
from ..tir.layout import Layout, decode_split, laid_out
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
from . import coded
from . import matmul as _matmul  # noqa: F401 - registers its lowering

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@lowers("zoomc::linear")
def linear(call: Call, isa: Isa) -> Kernel:
    """One product over the rows of the flattened input.

    Raises:
        Unsupported: dtypes other than fp32, bf16, fp16, or mixed; empty tensors.
    """
    if call["channel_scale"] is not None:
        return coded.linear(call, isa)
    x, weight, bias, residual = (call[n] for n in ("x", "weight", "bias", "residual"))
    dtype = x.spec.dtype
    tensors = [v for v in call.args.values() if isinstance(v, Value)]
    if dtype not in _DTYPES or {v.spec.dtype for v in (x, weight)} != {dtype}:
        raise Unsupported(f"linear of {dtype} by {weight.spec.dtype}")
    check_sizes([*(v.spec for v in tensors), call.out])
    columns, k = weight.spec.shape
    count = x.spec.numel // k
    gated = call["activation"] == "geglu"
    kept = Kept.of(call)
    micro = choose(isa, dtype, count, kept is not None)
    width = kept.channels if kept else round_up(k, micro.kstep)
    prepared = (
        call["norm"]
        or call["pre_activation"] != "none"
        or k != width
        or count < micro.rows
        or (micro.a, micro.planes) != ("float32" if dtype is torch.float32 else "uint16", 1)
        or dtype is torch.float16
    )
    rows = Rows(1, 1, count, count, count, exact=not prepared)
    depth = kept.depth if kept else Depth(1, width, lambda run: 0)
    layout = Layout(isa, micro.planes, width, micro.kstep)
    if prepared:
        layout = laid_out(isa, micro, width, round_up(count, micro.rows))
    panels = panel_count(columns, micro, gated)
    product = Product.of(
        isa, micro, rows, depth, layout, panels, result=finishing(call), tuned=call.plan
    )

    operands: dict[str, Operand] = {"x": Operand((x,))}
    scratch: dict[str, TensorSpec] = {}
    if kept:
        operands["panels"] = kept.operand(weight, micro, gated)
        operands["offsets"] = kept.offsets(weight, micro, layout, (0,), gated)
    elif weight.constant:
        operands["panels"] = panel_operand(weight, micro, width, gated)
    else:
        operands["weight"] = Operand((weight,))
        scratch["panels"] = TensorSpec((panels * width * micro.columns,), micro.panel)
    if bias is not None and bias.constant:
        operands["columns"] = column_operand(bias, micro, gated)
    elif bias is not None:
        operands["bias"] = Operand((bias,))
        scratch["columns"] = TensorSpec((panels * micro.columns,), torch.float32)
    for name in ("norm_weight", "norm_bias"):
        if call["norm"] and call[name] is not None:
            operands[name] = Operand((call[name],))
    if residual is not None:
        operands["residual"] = Operand((residual,))
    if prepared:
        a_dtype = torch.float32 if micro.a == "float32" else torch.bfloat16
        scratch["a"] = TensorSpec((layout.elements(round_up(count, micro.rows)),), a_dtype)
    prepare = NORM if call["norm"] else PREPARE
    stages = Stages.of(isa, [x], *([prepare] if prepared else []))
    scratch = stages.scratch() | scratch
    work = product.scratch()
    flops = 2 * count * columns * k

    def body(buffers: list[Any]) -> None:
        named = dict(zip([*operands, "out", *scratch], buffers, strict=False))
        if "weight" in named:
            pack_panels(
                isa,
                micro,
                named["weight"],
                named["panels"],
                columns=columns,
                depth=k,
                runs=1,
                channels=width,
                address=lambda matrix, column, run, c: column * k + c,
                gated=gated,
            )
        if "bias" in named:
            pack_columns(named["bias"], named["columns"], columns, micro, gated)
        if prepared:
            stages.begin(prepare, named)
            normalise.rows(
                layout,
                named["x"],
                named["a"],
                count=count,
                channels=k,
                norm=call["norm"],
                gain=named.get("norm_weight"),
                offset=named.get("norm_bias"),
                eps=call["norm_eps"],
                activation=call["pre_activation"],
            )
        epilogue = Epilogue(
            isa,
            micro,
            call.out.shape[-1],
            named["out"],
            bias=named.get("columns"),
            activation=call["activation"],
            residual=named.get("residual"),
        )
        stages.begin(PRODUCT, named)
        product.emit(
            named["a"] if prepared else named["x"],
            named["panels"],
            buffers[-len(work) :],
            decode_split if micro.decoded else None,
            epilogue,
            named.get("offsets"),
        )
        stages.end(named)

    specs = [*(o.spec for o in operands.values()), call.out, *scratch.values(), *work]
    absorbed = [call["activation"]] if call["activation"] != "none" else []
    return Kernel(
        "_".join(["linear", *(["norm"] if call["norm"] else []), *absorbed]),
        call_key(call, isa),
        lambda: prim_func(specs, [*convert.texts(isa), product.micro.text], body),
        tuple(operands.values()),
        call.out,
        (*scratch.values(), *work),
        flops=kept.part(flops) if kept else flops,
        notes={"micro": product.micro.name, **dataclasses.asdict(product.plan)},
        plan=product.plan,
        stages=stages.reads,
        nearby=product.nearby,
    )
