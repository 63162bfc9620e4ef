"""Vector loads and stores that hide how a dtype is stored: arithmetic is always fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.tirx.script import builder as T

Expr = Any
Buffer = Any


def typed(dtype: str, lanes: int) -> str:
    """TIR's name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: Expr, lanes: int) -> Expr:
    """The scalar in every lane."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def is_nan(x: Expr, lanes: int) -> Expr:
    """Whether fp32 or fp64 lanes are NaN, by their bits: TVM's float ``!=`` is false for NaN."""
    size = 64 if str(x.ty.dtype).startswith("float64") else 32
    kind = getattr(T, f"int{size}")
    infinity = 0x7FF0000000000000 if size == 64 else 0x7F800000
    bits = T.reinterpret(typed(f"int{size}", lanes), x)
    magnitude = T.bitwise_and(bits, splat(kind(2 ** (size - 1) - 1), lanes))
    return T.GT(magnitude, splat(kind(infinity), lanes))


def load(buffer: Buffer, index: Sequence[Expr], lanes: int = 1) -> Expr:
    """Load ``lanes`` consecutive elements as fp32; uint16 storage is bf16."""
    return to_fp32(load_raw(buffer, index, lanes), buffer.dtype, lanes)


def load_raw(buffer: Buffer, index: Sequence[Expr], lanes: int = 1) -> Expr:
    """Load ``lanes`` consecutive elements as they are stored."""
    if lanes == 1:
        return buffer[tuple(index)]
    return buffer.vload(list(index), dtype=typed(buffer.dtype, lanes))


def to_fp32(raw: Expr, dtype: str, lanes: int) -> Expr:
    """Widen loaded elements to fp32."""
    if dtype == "float32":
        return raw
    if dtype == "uint16":
        wide = T.Cast(typed("uint32", lanes), raw)
        shifted = T.shift_left(wide, splat(T.uint32(16), lanes))
        return T.reinterpret(typed("float32", lanes), shifted)
    return T.Cast(typed("float32", lanes), raw)


def store(buffer: Buffer, index: Sequence[Expr], value: Expr, lanes: int = 1) -> None:
    """Store fp32 lanes in the buffer's dtype: round to nearest even for bf16, NaN kept NaN."""
    index = list(index)
    if lanes > 1:
        index[-1] = T.ramp(index[-1], 1, lanes)
    T.buffer_store(buffer, from_fp32(value, buffer.dtype, lanes), index)


def from_fp32(value: Expr, dtype: str, lanes: int) -> Expr:
    """Narrow fp32 lanes to a storage dtype."""
    if dtype == "float32":
        return value
    if dtype == "uint16":
        bits = T.reinterpret(typed("uint32", lanes), value)
        one = splat(T.uint32(1), lanes)
        sixteen = splat(T.uint32(16), lanes)
        odd = T.bitwise_and(T.shift_right(bits, sixteen), one)
        rounded = T.shift_right(bits + splat(T.uint32(0x7FFF), lanes) + odd, sixteen)
        quiet = T.bitwise_or(T.shift_right(bits, sixteen), splat(T.uint32(0x40), lanes))
        kept = T.Select(is_nan(value, lanes), quiet, rounded)
        return T.Cast(typed("uint16", lanes), kept)
    return T.Cast(typed(dtype, lanes), value)
