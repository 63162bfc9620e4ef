"""Narrowing fp32 vectors on the way to memory, by the processor's own instruction if it has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.tirx.script import builder as T

from .isa import Isa
from .llvm import attributes
from .memory import from_fp32

Expr = Any
Buffer = Any

_NARROW = """
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
define <16 x i16> @zoomc_narrow(<16 x float> %x) #0 {
  %y = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %z = bitcast <16 x bfloat> %y to <16 x i16>
  ret <16 x i16> %z
}
""" + attributes(("avx512f", "avx512bf16"))


def texts(isa: Isa) -> list[str]:
    """LLVM IR that :func:`store` needs on this path."""
    return [_NARROW] if isa.bf16_dot else []


def narrow(isa: Isa, value: Expr, dtype: str, lanes: int) -> Expr:
    """fp32 lanes in a storage dtype, rounded to nearest even.

    The instruction for bf16 takes denormals as zero; elsewhere they are kept.
    """
    if isa.bf16_dot and dtype == "uint16" and lanes == 16:
        return T.call_extern("uint16x16", "zoomc_narrow", value)
    return from_fp32(value, dtype, lanes)


def store(isa: Isa, buffer: Buffer, index: Expr, value: Expr, lanes: int = 1) -> None:
    """Store fp32 lanes at a flat index, in the buffer's dtype."""
    where: Sequence[Expr] = [T.ramp(index, 1, lanes) if lanes > 1 else index]
    T.buffer_store(buffer, narrow(isa, value, buffer.dtype, lanes), list(where))
