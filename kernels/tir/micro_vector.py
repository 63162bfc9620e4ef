"""Micro-kernels on vector registers: fused multiply-add and pairwise bf16 dot products."""

from __future__ import annotations

from functools import cache

import torch

from .llvm import Text, attributes, loop_without_unrolling


@cache
def fma(rows: int, vectors: int, lanes: int, panel: torch.dtype, step: int = 0) -> Text:
    """fp32 A times a panel of fp32, bf16 or fp16, widened in registers.

    Plain LLVM operations: every processor with vectors of any width can run it. Where ``step`` is
    not 0, K comes in steps of so many values, and a list says where in A each begins.
    """
    float_ = f"<{lanes} x float>"
    kind = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[panel]
    widen = {
        "f32": [f"  %b{{j}} = load {float_}, ptr %bp{{j}}, align 4"],
        "f16": [
            f"  %h{{j}} = load <{lanes} x half>, ptr %bp{{j}}, align 2",
            f"  %b{{j}} = fpext <{lanes} x half> %h{{j}} to {float_}",
        ],
        "bf16": [
            f"  %h{{j}} = load <{lanes} x i16>, ptr %bp{{j}}, align 2",
            f"  %z{{j}} = zext <{lanes} x i16> %h{{j}} to <{lanes} x i32>",
            f"  %s{{j}} = shl <{lanes} x i32> %z{{j}}, splat (i32 16)",
            f"  %b{{j}} = bitcast <{lanes} x i32> %s{{j}} to {float_}",
        ],
    }[kind]
    suffix = f"v{lanes}f32"
    return _kernel(
        f"zoomc_fma_{kind}_{rows}x{vectors}x{lanes}{f'_{step}' if step else ''}",
        rows,
        vectors,
        lanes,
        accumulator="float",
        broadcast="float",
        b_bytes=panel.itemsize,
        widen=widen,
        multiply=f"call {float_} @llvm.fmuladd.{suffix}({float_} {{a}}, {float_} {{b}}, "
        f"{float_} {{c}})",
        declare=f"declare {float_} @llvm.fmuladd.{suffix}({float_}, {float_}, {float_})\n",
        features=(),
        step=step,
    )


@cache
def bf16_dot(rows: int, vectors: int, step: int = 0) -> Text:
    """Pairs of bf16 multiplied and added into 16 fp32 lanes (``vdpbf16ps``); see :func:`fma`."""
    helper = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
"""
    return _kernel(
        f"zoomc_dot_bf16_{rows}x{vectors}{f'_{step}' if step else ''}",
        rows,
        vectors,
        16,
        accumulator="float",
        broadcast="i32",
        b_bytes=4,
        widen=["  %b{j} = load <32 x bfloat>, ptr %bp{j}, align 4"],
        multiply="call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512("
        "<16 x float> {c}, <32 x bfloat> {a}, <32 x bfloat> {b})",
        cast="bitcast <16 x i32> {a} to <32 x bfloat>",
        declare=helper,
        features=("avx512f", "avx512bf16"),
        step=step // 2,
        pair=True,
    )


def _kernel(
    name: str,
    rows: int,
    vectors: int,
    lanes: int,
    *,
    accumulator: str,
    broadcast: str,
    b_bytes: int,
    widen: list[str],
    multiply: str,
    declare: str,
    features: tuple[str, ...],
    cast: str = "",
    step: int = 0,
    pair: bool = False,
) -> Text:
    """``rows × vectors`` accumulators; one 4-byte broadcast of A a row and turn.

    Where ``step`` is not 0, so many turns make a step of K, each of which begins where
    ``%offsets`` says: in 4-byte words, or in half as many if they are a ``pair`` of elements.
    """
    wide = f"<{lanes} x {accumulator}>"
    spread = f"<{lanes} x {broadcast}>"
    tile = [(i, j) for i in range(rows) for j in range(vectors)]
    stride = vectors * lanes * b_bytes
    out: list[str] = [
        f"define void @{name}(ptr %a, i64 %pitch, {'ptr %offsets, ' if step else ''}ptr %b, i64 %n,"
        " ptr %c, i32 %add) #0 {",
        "entry:",
        f"  %turns = mul nuw nsw i64 %n, {step or 1}",
    ]
    for i in range(rows):
        out.append(f"  %o{i} = mul i64 %pitch, {i}")
        out.append(f"  %a{i} = getelementptr i8, ptr %a, i64 %o{i}")
    for i, j in tile:
        offset = (i * vectors + j) * lanes * 4
        out.append(f"  %c{i}_{j} = getelementptr i8, ptr %c, i64 {offset}")
    out += [
        "  %fresh = icmp eq i32 %add, 0",
        "  br i1 %fresh, label %loop, label %old",
        "old:",
        *(f"  %i{i}_{j} = load {wide}, ptr %c{i}_{j}, align 16" for i, j in tile),
        "  br label %loop",
        "loop:",
        "  %k = phi i64 [0, %entry], [0, %old], [%k1, %loop]",
    ]
    for i, j in tile:
        out.append(
            f"  %s{i}_{j} = phi {wide} [zeroinitializer, %entry], [%i{i}_{j}, %old], "
            f"[%n{i}_{j}, %loop]"
        )
    if step:
        out += [
            f"  %step = lshr i64 %k, {step.bit_length() - 1}",
            f"  %turn = and i64 %k, {step - 1}",
            "  %op = getelementptr i32, ptr %offsets, i64 %step",
            "  %oi = load i32, ptr %op, align 4",
            "  %oe = sext i32 %oi to i64",
            f"  %ow = ashr exact i64 %oe, {int(pair)}",
            "  %at = add nsw i64 %ow, %turn",
        ]
    out.append(f"  %bo = mul i64 %k, {stride}")
    for j in range(vectors):
        out.append(f"  %bq{j} = getelementptr i8, ptr %b, i64 %bo")
        out.append(f"  %bp{j} = getelementptr i8, ptr %bq{j}, i64 {j * lanes * b_bytes}")
        out += [line.format(j=j) for line in widen]
    for i in range(rows):
        out += [
            f"  %p{i} = getelementptr {broadcast}, ptr %a{i}, i64 {'%at' if step else '%k'}",
            f"  %x{i} = load {broadcast}, ptr %p{i}, align 4",
            f"  %y{i} = insertelement {spread} poison, {broadcast} %x{i}, i32 0",
            f"  %v{i} = shufflevector {spread} %y{i}, {spread} poison, "
            f"<{lanes} x i32> zeroinitializer",
        ]
        a = f"%v{i}"
        if cast:
            out.append(f"  %w{i} = {cast.format(a=a)}")
            a = f"%w{i}"
        for j in range(vectors):
            out.append(f"  %n{i}_{j} = " + multiply.format(a=a, b=f"%b{j}", c=f"%s{i}_{j}"))
    out += [
        "  %k1 = add nuw nsw i64 %k, 1",
        "  %end = icmp eq i64 %k1, %turns",
        "  br i1 %end, label %done, label %loop, !llvm.loop !0",
        "done:",
        *(f"  store {wide} %n{i}_{j}, ptr %c{i}_{j}, align 16" for i, j in tile),
        "  ret void",
        "}",
    ]
    return Text(
        name, declare + "\n".join(out) + "\n" + attributes(features) + loop_without_unrolling()
    )
