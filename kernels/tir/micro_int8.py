"""Micro-kernels that multiply int8 by int8 and add up in int32, exactly, on every path.

They read A in blocks of 64 channels: a row's 64 values side by side, rows one after another, and
a table of byte offsets that says where each step of 64 values begins. So one call runs over any
taps of a map, and the rows of a step are neighbours in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from tvm.tirx.script import builder as T

from . import micro_neon
from .isa import Isa
from .llvm import Text, attributes, loop_without_unrolling
from .micro import Micro
from .micro_amx import PRELUDE, load_tile, products

Expr = Any

_FETCH = "zoomc_fetch"

#: Values of K in a step: a block of channels, and a group of weights that share a scale.
STEP = 64


@dataclass(frozen=True)
class IntegerMicro(Micro):
    """An integer micro-kernel.

    Attributes:
        zero: how a code of 0 is stored in A; 128 where A is stored unsigned, by 128 more than it
            is. Every sum is then too large by 128 times its column's sum.
        vector: bytes of a vector register.
    """

    zero: int = 0
    vector: int = 64

    @property
    def step_bytes(self) -> int:
        """Bytes of a row's values in a step."""
        return STEP * (2 if self.a == "int16" else 1)

    def multiply(
        self,
        a: list[Expr],
        offsets: Expr,
        panel: Expr,
        steps: Expr,
        c: Expr,
        accumulate: Expr,
        soon: Expr = None,
    ) -> None:
        """Emit one call.

        Args:
            a: address of each group's first row, to which the offsets are added.
            offsets: address of the steps' int32 byte offsets.
            panel: address of the first step's int8 values.
            steps: how many, at least one.
            c: address of the int32 result, ``[block][columns]``.
            accumulate: int32; zero overwrites C, else it is added to.
            soon: address from which to fetch ahead; needed where ``ahead`` is not zero.
        """
        args = [*a, offsets, panel, T.Cast("int64", steps), c, accumulate]
        args += [soon] if self.ahead else []
        T.evaluate(T.call_extern("void", self.name, *args))

    def fetch(self, buffer: Any, at: Expr, count: Expr) -> None:
        """Emit fetches of bytes into the second-level cache; tiles only."""
        with T.serial(T.floordiv(count, 64)) as line:
            T.evaluate(T.call_extern("void", _FETCH, T.address_of(buffer[at + line * 64])))


def micro(isa: Isa) -> IntegerMicro:
    """The integer micro-kernel of a path."""
    common: dict[str, Any] = {"kstep": STEP, "accumulator": "int32", "panel": torch.int8}
    if isa.amx:
        text = _tiles()
        return IntegerMicro(
            text.name, text.ir, 16, 2, 32, 4, a="int8", tiles=True, vector=64, **common
        )
    if isa.dotprod:
        text = micro_neon.matrix(STEP) if isa.i8mm else micro_neon.dot(STEP)
        rows, columns, packed = micro_neon.ROWS, micro_neon.COLUMNS, 8 if isa.i8mm else 4
        return IntegerMicro(
            text.name, text.ir, rows, 1, columns, packed, a="int8", vector=16, **common
        )
    rows = 8 if isa.registers >= 32 else 4
    vector = isa.lanes * 4
    if isa.vnni:
        text = _vector("vnni", rows, isa.lanes)
        packed, a, zero = 4, "uint8", 128
    else:
        text = _vector("madd" if isa.lanes >= 8 else "plain", rows, isa.lanes)
        packed, a, zero = 2, "int16", 0
    return IntegerMicro(
        text.name, text.ir, rows, 1, 2 * isa.lanes, packed, a=a, zero=zero, vector=vector, **common
    )


def fetching(micro: IntegerMicro, step_bytes: int, blocks: int) -> IntegerMicro:
    """The variant that fetches the next chunk of weights while ``blocks`` blocks use this one.

    Only tiles are so fast that the hardware's own prefetching falls behind.
    """
    lines = -(-step_bytes // 64)
    if not micro.tiles or 2 * blocks > lines:
        return micro
    ahead = -(-lines // blocks)
    text = _tiles(ahead)
    return replace(micro, name=text.name, text=text.ir, ahead=ahead)


@cache
def _tiles(ahead: int = 0) -> Text:
    """Two groups of 16 rows by 32 columns, on AMX tiles.

    Each step fetches ``ahead`` lines from a last argument on.
    """
    name = f"zoomc_tiles_int8_{ahead}" if ahead else "zoomc_tiles_int8"
    soon = ", ptr %soon" if ahead else ""
    fetch = [f"  %so = mul nuw nsw i64 %k, {ahead * 64}"] if ahead else []
    for i in range(ahead):
        fetch += [
            f"  %q{i} = getelementptr i8, ptr %soon, i64 %so",
            f"  %r{i} = getelementptr i8, ptr %q{i}, i64 {i * 64}",
            f"  call void @llvm.prefetch.p0(ptr %r{i}, i32 0, i32 2, i32 1)",
        ]
    quarters = [(t, (t // 2) * 16 * 128 + (t % 2) * 64) for t in range(4)]
    lines = [
        f"define void @{name}(ptr %a0, ptr %a1, ptr %offsets, ptr %b, i64 %n, ptr %c, i32 %add"
        f"{soon}) #0 {{",
        "entry:",
        *(f"  %c{t} = getelementptr i8, ptr %c, i64 {offset}" for t, offset in quarters),
        "  %fresh = icmp eq i32 %add, 0",
        "  br i1 %fresh, label %zero, label %old",
        "zero:",
        *(f"  call void @llvm.x86.tilezero(i8 {t})" for t, _ in quarters),
        "  br label %loop",
        "old:",
        *(load_tile(t, f"%c{t}", "128") for t, _ in quarters),
        "  br label %loop",
        "loop:",
        "  %k = phi i64 [0, %zero], [0, %old], [%k1, %loop]",
        "  %op = getelementptr i32, ptr %offsets, i64 %k",
        "  %oi = load i32, ptr %op, align 4",
        "  %o = sext i32 %oi to i64",
        "  %bo = mul nuw nsw i64 %k, 2048",
        "  %pa0 = getelementptr i8, ptr %a0, i64 %o",
        "  %pa1 = getelementptr i8, ptr %a1, i64 %o",
        "  %pb = getelementptr i8, ptr %b, i64 %bo",
        "  %pb1 = getelementptr i8, ptr %pb, i64 64",
        load_tile(6, "%pb", "128"),
        load_tile(4, "%pa0", "64"),
        load_tile(7, "%pb1", "128"),
        load_tile(5, "%pa1", "64"),
        *products("tdpbssd"),
        *fetch,
        "  %k1 = add nuw nsw i64 %k, 1",
        "  %end = icmp eq i64 %k1, %n",
        "  br i1 %end, label %done, label %loop, !llvm.loop !0",
        "done:",
        *(f"  call void @llvm.x86.tilestored64(i8 {t}, ptr %c{t}, i64 128)" for t, _ in quarters),
        "  ret void",
        "}",
    ]
    lines += [
        f"define void @{_FETCH}(ptr %p) #0 {{",
        "  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 2, i32 1)",
        "  ret void",
        "}",
    ]
    ir = PRELUDE + "\n".join(lines) + "\n"
    return Text(name, ir + attributes(("amx-tile", "amx-int8")) + loop_without_unrolling())


#: Words of a row multiplied in one turn of the loop: finding addresses takes ports from products.
_TOGETHER = 8


@cache
def _vector(kind: str, rows: int, lanes: int) -> Text:
    """``rows`` rows by two vectors of columns; a step is 256 bytes of broadcasts a row or less.

    ``vnni`` multiplies four unsigned by signed bytes at a time (A is stored by 128 more than it
    is), ``madd`` two words, ``plain`` the same in operations that every processor has.
    """
    name = f"zoomc_{kind}_int8_{rows}x{lanes}"
    wide, half = f"<{lanes} x i32>", f"<{2 * lanes} x i16>"
    packed = 4 if kind == "vnni" else 2
    pitch = STEP * (1 if kind == "vnni" else 2)
    inner = pitch // 4
    tile = [(i, j) for i in range(rows) for j in (0, 1)]
    bytes_ = lanes * packed
    declare = ""
    features: tuple[str, ...] = ()
    if kind == "vnni":
        quad = f"<{lanes * 4} x i8>"
        function = f"@llvm.x86.avx512.vpdpbusd.{lanes * 32}"
        declare = f"declare {wide} {function}({wide}, {quad}, {quad})\n"
        features = ("avx512f", "avx512vnni") if lanes == 16 else ("avx2", "avxvnni")
    elif kind == "madd":
        quad = half
        function = "@llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "@llvm.x86.avx2.pmadd.wd"
        declare = f"declare {wide} {function}({half}, {half})\n"
        features = ("avx512f", "avx512bw") if lanes == 16 else ("avx2",)
    together = _TOGETHER if kind == "vnni" else 1
    turns = inner // together
    out = [
        f"define void @{name}(ptr %a, ptr %offsets, ptr %b, i64 %n, ptr %c, i32 %add) #0 {{",
        "entry:",
        f"  %total = mul nuw nsw i64 %n, {turns}",
        *(
            f"  %c{i}_{j} = getelementptr i8, ptr %c, i64 {(i * 2 + j) * lanes * 4}"
            for i, j in tile
        ),
        "  %fresh = icmp eq i32 %add, 0",
        "  br i1 %fresh, label %loop, label %old",
        "old:",
        *(f"  %i{i}_{j} = load {wide}, ptr %c{i}_{j}, align 16" for i, j in tile),
        "  br label %loop",
        "loop:",
        "  %k = phi i64 [0, %entry], [0, %old], [%k1, %loop]",
        *(
            f"  %s0_{i}_{j} = phi {wide} [zeroinitializer, %entry], [%i{i}_{j}, %old], "
            f"[%n{i}_{j}, %loop]"
            for i, j in tile
        ),
        f"  %step = lshr i64 %k, {turns.bit_length() - 1}",
        f"  %turn = and i64 %k, {turns - 1}",
        "  %op = getelementptr i32, ptr %offsets, i64 %step",
        "  %oi = load i32, ptr %op, align 4",
        "  %o = sext i32 %oi to i64",
        "  %ao = getelementptr i8, ptr %a, i64 %o",
        f"  %ap = getelementptr [{together} x i32], ptr %ao, i64 %turn",
        f"  %bo = mul nuw nsw i64 %k, {together * 2 * bytes_}",
        "  %bp = getelementptr i8, ptr %b, i64 %bo",
    ]
    even = ", ".join(f"i32 {2 * i}" for i in range(lanes))
    odd = ", ".join(f"i32 {2 * i + 1}" for i in range(lanes))
    both = f"<{2 * lanes} x i32>"
    for u in range(together):
        for j in (0, 1):
            out += [
                f"  %bp{u}_{j} = getelementptr i8, ptr %bp, i64 {(2 * u + j) * bytes_}",
                f"  %r{u}_{j} = load <{bytes_} x i8>, ptr %bp{u}_{j}, align 4",
            ]
            if kind != "vnni":
                out.append(f"  %b{u}_{j} = sext <{bytes_} x i8> %r{u}_{j} to {half}")
            if kind == "plain":
                out.append(f"  %x{u}_{j} = sext {half} %b{u}_{j} to {both}")
        for i in range(rows):
            w = f"{u}_{i}"
            out += [
                f"  %p{w} = getelementptr i8, ptr %ap, i64 {i * pitch + 4 * u}",
                f"  %l{w} = load i32, ptr %p{w}, align 4",
                f"  %y{w} = insertelement {wide} poison, i32 %l{w}, i32 0",
                f"  %v{w} = shufflevector {wide} %y{w}, {wide} poison, "
                f"<{lanes} x i32> zeroinitializer",
                f"  %w{w} = bitcast {wide} %v{w} to {quad if kind == 'vnni' else half}",
            ]
            if kind == "plain":
                out.append(f"  %z{w} = sext {half} %w{w} to {both}")
            for j in (0, 1):
                at, old = f"{u}_{i}_{j}", f"%s{u}_{i}_{j}"
                new = f"%n{i}_{j}" if u == together - 1 else f"%s{u + 1}_{i}_{j}"
                if kind == "vnni":
                    out.append(
                        f"  {new} = call {wide} {function}"
                        f"({wide} {old}, {quad} %w{w}, {quad} %r{u}_{j})"
                    )
                    continue
                if kind == "madd":
                    out.append(f"  %d{at} = call {wide} {function}({half} %w{w}, {half} %b{u}_{j})")
                else:
                    out += [
                        f"  %m{at} = mul nsw {both} %z{w}, %x{u}_{j}",
                        f"  %e{at} = shufflevector {both} %m{at}, {both} poison, "
                        f"<{lanes} x i32> <{even}>",
                        f"  %q{at} = shufflevector {both} %m{at}, {both} poison, "
                        f"<{lanes} x i32> <{odd}>",
                        f"  %d{at} = add {wide} %e{at}, %q{at}",
                    ]
                out.append(f"  {new} = add {wide} {old}, %d{at}")
    out += [
        "  %k1 = add nuw nsw i64 %k, 1",
        "  %end = icmp eq i64 %k1, %total",
        "  br i1 %end, label %done, label %loop, !llvm.loop !0",
        "done:",
        *(f"  store {wide} %n{i}_{j}, ptr %c{i}_{j}, align 16" for i, j in tile),
        "  ret void",
        "}",
    ]
    ir = declare + "\n".join(out) + "\n" + attributes(features) + loop_without_unrolling()
    return Text(name, ir)
