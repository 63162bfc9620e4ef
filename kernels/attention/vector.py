"""Vector pieces of the attention kernels: transposes, bf16 pairs, exponentials, tile registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T

from ..tir import math as vmath
from ..tir.isa import Isa
from ..tir.memory import splat, typed

Expr = Any
Buffer = Any

# TVM legalises bf16 vectors to fp32, so the two bf16 instructions are reached through LLVM text
# on bit patterns. ``pair`` gives (a, b) of each lane as the low and high half of an int32.
BF16_HELPERS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float>, <16 x float>)
define <16 x float> @zoomc_attention_dot(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) #0 {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %x,
                                                           <32 x bfloat> %y)
  ret <16 x float> %r
}
define <16 x i32> @zoomc_attention_pair(<16 x float> %a, <16 x float> %b) #0 {
  %x = call <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float> %b, <16 x float> %a)
  %s = shufflevector <32 x bfloat> %x, <32 x bfloat> poison, <32 x i32> <ORDER>
  %r = bitcast <32 x bfloat> %s to <16 x i32>
  ret <16 x i32> %r
}
attributes #0 = { alwaysinline "target-features"="+avx512f,+avx512bw,+avx512vl,+avx512bf16" }
""".replace("ORDER", ", ".join(f"i32 {i}, i32 {i + 16}" for i in range(16)))


def dot(c: Expr, a: Expr, b: Expr) -> Expr:
    """``c + a · b`` over pairs of bf16, 16 lanes."""
    return T.call_extern("float32x16", "zoomc_attention_dot", c, a, b)


def pair(a: Expr, b: Expr) -> Expr:
    """Two fp32 vectors as one vector of bf16 pairs, rounded to nearest even, 16 lanes."""
    return T.call_extern("int32x16", "zoomc_attention_pair", a, b)


def unrolled_transpose(rows: Sequence[Expr]) -> list[Expr]:
    """Transpose n vectors of n lanes in ``log2 n`` rounds of two-input shuffles."""
    n = len(rows)
    rows = list(rows)
    bit = 1
    while bit < n:
        low = [i if not i & bit else n + (i ^ bit) for i in range(n)]
        high = [(i | bit) if not i & bit else n + i for i in range(n)]
        out = list(rows)
        for i in range(n):
            if not i & bit:
                pairs = [rows[i], rows[i | bit]]
                out[i] = T.bind(T.Shuffle(pairs, low))
                out[i | bit] = T.bind(T.Shuffle(pairs, high))
        rows = out
        bit *= 2
    return rows


def transpose(load: Callable[[int], Expr], store: Callable[[int, Expr], None], lanes: int) -> None:
    """Transpose a square of ``lanes`` rows, read by ``load(row)``, written by ``store``."""
    rows = [T.bind(load(i)) for i in range(lanes)]
    for i, row in enumerate(unrolled_transpose(rows)):
        store(i, row)


def put(buffer: Buffer, index: list[Expr], value: Expr, lanes: int) -> None:
    """Store a vector as it is."""
    last = T.ramp(index[-1], 1, lanes) if lanes > 1 else index[-1]
    T.buffer_store(buffer, value, [*index[:-1], last])


def get(buffer: Buffer, index: list[Expr], lanes: int) -> Expr:
    """Load a vector as it is."""
    return buffer.vload(index, dtype=typed(buffer.dtype, lanes))


def settle(value: Expr, dtype: str, lanes: int) -> Expr:
    """Name a value by storing it: TVM expands a chain of bindings, in which each is used several
    times, to exponential length while it simplifies. LLVM takes the storage away again."""
    buffer = T.alloc_buffer((lanes,), dtype, scope="local")
    put(buffer, [0], value, lanes)
    return get(buffer, [0], lanes) if lanes > 1 else buffer[0]


@cache
def exp2_coefficients(degree: int) -> tuple[float, ...]:
    """2^f on [0, 1), constant first, near-minimax in relative error (reweighted least squares)."""
    f = (np.cos(np.pi * (np.arange(2001) + 0.5) / 2001) + 1) / 2
    rows = np.vander(f, degree + 1, increasing=True) / (2.0**f)[:, None]
    weight = np.ones_like(f)
    fit: NDArray[np.floating[Any]] = np.zeros(degree + 1)
    for _ in range(40):
        fit = np.linalg.lstsq(rows * weight[:, None], weight, rcond=None)[0]
        error = np.abs(rows @ fit - 1)
        weight *= np.sqrt(error / error.max() + 1e-3)
        weight /= weight.max()
    return tuple(float(c) for c in fit)


def exp2(t: Expr, isa: Isa, precise: bool) -> Expr:
    """``2^t`` for ``t`` up to 127; zero at -inf, NaN at NaN.

    ``precise``: to fp32's last places; otherwise to a relative 1e-4, below what rounding to
    bf16 loses.
    """
    if isa.lanes != 16:
        return vmath.exp2(t, isa.lanes)
    t = settle(t, "float32", 16)
    zero, all_lanes, current = splat(T.float32(0), 16), T.int16(-1), T.int32(4)

    def avx512(name: str, *args: Expr) -> Expr:
        name = f"llvm.x86.avx512.mask.{name}.ps.512"
        return T.call_llvm_pure_intrin("float32x16", name, *args, zero, all_lanes, current)

    fraction = settle(avx512("reduce", t, T.int32(1)), "float32", 16)  # t - floor(t), exactly
    p = vmath.polynomial(fraction, exp2_coefficients(6 if precise else 3), 16)
    return settle(avx512("scalef", p, t), "float32", 16)  # p · 2^floor(t)


def largest(x: Expr) -> Expr:
    """The largest lane; NaN lanes do not count."""
    return T.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fmax", x)


# --- tile registers --------------------------------------------------------------------------

_PALETTE = bytes([1]) + bytes(15) + bytes([64, 0] * 8) + bytes(16) + bytes([16] * 8) + bytes(8)


def tile(name: str, *args: Expr) -> None:
    """One AMX instruction, by LLVM's name; registers are int8 immediates."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *args))


def tile_configure(buffer: Buffer, worker: Expr) -> None:
    """Eight tiles of 16 rows of 64 bytes; ``buffer[worker]`` holds 64 bytes to write it down."""
    for i, byte in enumerate(_PALETTE):
        T.buffer_store(buffer, T.uint8(byte), [worker, i])
    tile("ldtilecfg", T.address_of(buffer[worker, 0]))


def tile_load(register: int, buffer: Buffer, index: list[Expr], stride: int = 64) -> None:
    """Load 16 rows of 64 bytes."""
    tile("tileloadd64", T.int8(register), T.address_of(buffer[tuple(index)]), T.int64(stride))


def tile_store(register: int, buffer: Buffer, index: list[Expr], stride: int) -> None:
    """Store 16 rows of 64 bytes."""
    tile("tilestored64", T.int8(register), T.address_of(buffer[tuple(index)]), T.int64(stride))
