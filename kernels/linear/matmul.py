"""CPU kernels of ``zoomc::matmul``: batched products, the right-hand side packed in the kernel."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir import convert, normalise
from ..tir.epilogue import Epilogue, finishing
from ..tir.gemm import Batch, Depth, Product, Rows
from ..tir.isa import Isa
from ..tir.kernel import Call, Kernel, Operand, TensorSpec, Unsupported, lowers
from ..tir.key import call_key
from ..tir.layout import Layout, decode_split, laid_out
from ..tir.micro import micro as choose
from ..tir.pack import pack_panels, panel_count, round_up
from ..tir.primfunc import check_sizes, prim_func

Expr = Any

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _source(index: Expr, batch: tuple[int, ...], own: tuple[int, ...]) -> Expr:
    """Which of an operand's matrices a product uses; axes of length 1 are shared."""
    own = (1,) * (len(batch) - len(own)) + own
    where: Expr = 0
    for axis, length in enumerate(own):
        if length > 1:
            inner = math.prod(batch[axis + 1 :])
            where = where + T.floormod(T.floordiv(index, inner), length) * math.prod(
                own[axis + 1 :]
            )
    return where


@lowers("zoomc::matmul")
def matmul(call: Call, isa: Isa) -> Kernel:
    """Independent products, one a pair of matrices.

    Raises:
        Unsupported: vectors; dtypes other than fp32, bf16, fp16, or mixed; empty tensors.
    """
    a, b = call["a"].spec, call["b"].spec
    if a.dtype not in _DTYPES or a.dtype != b.dtype:
        raise Unsupported(f"matmul of {a.dtype} by {b.dtype}")
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise Unsupported("matmul of a vector")
    check_sizes([a, b, call.out])
    count, k = a.shape[-2:]
    transposed = call["transpose_b"]
    columns = b.shape[-2] if transposed else b.shape[-1]
    batch = call.out.shape[:-2]
    products = math.prod(batch)
    micro = choose(isa, a.dtype, count)
    padded = round_up(k, micro.kstep)
    prepared = (
        padded != k
        or count < micro.rows
        or micro.planes > 1
        or a.dtype is not (torch.float32 if micro.a == "float32" else torch.bfloat16)
    )
    layout = Layout(isa, micro.planes, padded, micro.kstep)
    if prepared:
        layout = laid_out(isa, micro, padded, math.prod(a.shape[:-1]))
    rows = Rows(1, 1, count, count, count, exact=not prepared)
    depth = Depth(1, padded, lambda run: 0)
    panels = panel_count(columns, micro)
    matrices = math.prod(b.shape[:-2])
    sharing = Batch(
        products,
        lambda index: _source(index, batch, a.shape[:-2]) * (count * layout.row),
        lambda index: _source(index, batch, b.shape[:-2]),
    )
    product = Product.of(
        isa, micro, rows, depth, layout, panels, sharing, finishing(call), call.plan
    )
    operands = {"a": Operand((call["a"],)), "b": Operand((call["b"],))}
    scratch = {"panels": TensorSpec((matrices * panels * padded * micro.columns,), micro.panel)}
    if prepared:
        a_dtype = torch.float32 if micro.a == "float32" else torch.bfloat16
        height = math.prod(a.shape[:-1])
        scratch["rows"] = TensorSpec((layout.elements(height + micro.rows),), a_dtype)
    work = product.scratch()

    def address(matrix: Expr, column: Expr, run: Expr, c: Expr) -> Expr:
        del run
        inside = column * k + c if transposed else c * columns + column
        return matrix * (k * columns) + inside

    def body(buffers: list[Any]) -> None:
        named = dict(zip([*operands, "out", *scratch], buffers, strict=False))
        pack_panels(
            isa,
            micro,
            named["b"],
            named["panels"],
            columns=columns,
            depth=k,
            runs=1,
            channels=padded,
            address=address,
            matrices=matrices,
        )
        if prepared:
            normalise.rows(
                layout,
                named["a"],
                named["rows"],
                count=math.prod(a.shape[:-1]),
                channels=k,
            )
        product.emit(
            named["rows"] if prepared else named["a"],
            named["panels"],
            buffers[-len(work) :],
            decode_split if micro.decoded else None,
            Epilogue(isa, micro, columns, named["out"]),
        )

    specs = [*(o.spec for o in operands.values()), call.out, *scratch.values(), *work]
    return Kernel(
        "matmul",
        call_key(call, isa),
        lambda: prim_func(specs, [*convert.texts(isa), product.micro.text], body),
        tuple(operands.values()),
        call.out,
        (*scratch.values(), *work),
        flops=2 * products * count * columns * k,
        notes={"micro": product.micro.name, **dataclasses.asdict(product.plan)},
        plan=product.plan,
        nearby=product.nearby,
    )
