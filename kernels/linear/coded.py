"""CPU kernels of ``zoomc::linear`` on coded weights: rows become int8, products are integers."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..tir import coded, convert, quantise
from ..tir.codes import Codes
from ..tir.epilogue import Epilogue, IntegerSums, finishing
from ..tir.gemm import Rows
from ..tir.integer_product import IntegerProduct
from ..tir.isa import Isa
from ..tir.kernel import Call, Kernel, Operand, TensorSpec, Value
from ..tir.key import call_key
from ..tir.micro_int8 import micro as choose
from ..tir.pack import round_up
from ..tir.primfunc import check_sizes, prim_func
from ..tir.stages import NORM, PRODUCT, QUANTISE, Stages


def linear(call: Call, isa: Isa) -> Kernel:
    """One product over the rows of the flattened input.

    Raises:
        Unsupported: see :func:`~zoomc.kernels.tir.coded.check`; empty tensors.
    """
    x, weight, residual = call["x"], call["weight"], call["residual"]
    check_sizes([*(v.spec for v in call.args.values() if isinstance(v, Value)), call.out])
    columns, k = weight.spec.shape
    coded.check(call, {x.spec.dtype}, k)
    count = x.spec.numel // k
    micro = choose(isa)
    layout = quantise.Blocks(isa, micro, k, round_up(count, micro.rows))
    rows = Rows(1, 1, count, count, count, exact=False)
    codes = Codes.of(call, micro, call["activation"] == "geglu")
    product = IntegerProduct.of(isa, layout, rows, (0,), codes, finishing(call), call.plan)

    inputs = {"x": Operand((x,)), **coded.operands(call, product, micro.zero)}
    for name in ("norm_weight", "norm_bias"):
        if call["norm"] and call[name] is not None:
            inputs[name] = Operand((call[name],))
    if residual is not None:
        inputs["residual"] = Operand((residual,))
    # A layer norm's rows are quantised as soon as they are known: one stage.
    prepare = NORM if call["norm"] else QUANTISE
    stages = Stages.of(isa, [x], prepare)
    scratch = stages.scratch() | {
        "a": layout.spec,
        "scales": TensorSpec((count,), torch.float32),
        "row": TensorSpec((isa.threads * k,), torch.float32),
    }
    work = product.scratch()

    def body(buffers: list[Any]) -> None:
        named = dict(zip([*inputs, "out", *scratch], buffers, strict=False))

        source = quantise.RowSource(
            named["x"],
            call["norm"],
            named.get("norm_weight"),
            named.get("norm_bias"),
            call["norm_eps"],
            call["pre_activation"],
        )
        stages.begin(prepare, named)
        quantise.rows(
            layout,
            source,
            named["row"],
            named["a"],
            named["scales"],
            count,
            named.get("bounds"),
        )
        epilogue = Epilogue(
            isa,
            micro,
            call.out.shape[-1],
            named["out"],
            bias=named.get("columns"),
            activation=call["activation"],
            residual=named.get("residual"),
            integer=IntegerSums(named["factors"], named["scales"], named.get("correction")),
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

    specs = [*(o.spec for o in inputs.values()), call.out, *scratch.values(), *work]
    texts = [*convert.texts(isa), product.micro.text, *codes.texts(isa), *quantise.lane_texts(isa)]
    absorbed = [call["activation"]] if call["activation"] != "none" else []
    return Kernel(
        "_".join([f"linear_int{codes.bits}", *(["norm"] if call["norm"] else []), *absorbed]),
        call_key(call, isa),
        lambda: prim_func(specs, texts, body),
        tuple(inputs.values()),
        call.out,
        (*scratch.values(), *work),
        flops=2 * count * columns * k * codes.steps // codes.depth,
        notes={"micro": product.micro.name, "bits": codes.bits, **dataclasses.asdict(product.plan)},
        plan=product.plan,
        stages=stages.reads,
        nearby=product.nearby,
    )
