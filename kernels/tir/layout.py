"""The layout in which micro-kernels read A, and the fp32 split behind one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from .convert import store
from .isa import Isa
from .memory import splat, typed

Expr = Any
Buffer = Any

#: Values of K between the planes of a split row.
_STEP = 32


def split_in_three(value: Expr, lanes: int) -> list[Expr]:
    """An fp32 value as three uint32 whose upper halves are bf16 that add up to it exactly.

    Truncation keeps the next 8 significant bits each time. Of an infinity or NaN the two lower
    parts are zero, so that products stay infinite or NaN.
    """
    word, real = typed("uint32", lanes), typed("float32", lanes)
    high = splat(T.uint32(0xFFFF0000), lanes)
    exponent = splat(T.uint32(0x7F800000), lanes)
    bits = T.bind(T.reinterpret(word, value))
    finite = T.bitwise_and(bits, exponent) < exponent
    rest = T.reinterpret(real, bits) - T.reinterpret(real, T.bitwise_and(bits, high))
    rest = T.bind(T.Select(finite, rest, splat(T.float32(0), lanes)))
    middle = T.bind(T.reinterpret(word, rest))
    low = T.bind(T.reinterpret(word, rest - T.reinterpret(real, T.bitwise_and(middle, high))))
    return [bits, middle, low]


@dataclass(frozen=True)
class Layout:
    """How a row of A is written for a micro-kernel.

    Attributes:
        isa: the instruction path.
        planes: elements that stand for one value; see :class:`.micro.Micro`.
    """

    isa: Isa
    planes: int = 1

    def offset(self, channel: Expr) -> Expr:
        """Element of a row at which a channel (a multiple of the step if split) lies."""
        if self.planes == 1:
            return channel
        step = T.floordiv(channel, _STEP) * (_STEP * self.planes)
        return step + T.floormod(channel, _STEP)

    def store(self, buffer: Buffer, row: Expr, channel: Expr, value: Expr, lanes: int) -> None:
        """Store fp32 lanes at a channel of the row that begins at element ``row``."""
        at = row + self.offset(channel)
        if self.planes == 1:
            store(self.isa, buffer, at, value, lanes)
            return
        sixteen = splat(T.uint32(16), lanes)
        for plane, bits in enumerate(split_in_three(value, lanes)):
            half = T.Cast(typed("uint16", lanes), T.shift_right(bits, sixteen))
            index = at + plane * _STEP
            T.buffer_store(buffer, half, [T.ramp(index, 1, lanes) if lanes > 1 else index])

    def aligned(self, channel: int, lanes: int) -> bool:
        """Whether ``lanes`` values from a channel on are stored side by side."""
        return self.planes == 1 or channel % lanes == 0

    def zeros(self, buffer: Buffer, start: Expr, count: int) -> None:
        """Zero ``count`` elements from an index on."""
        lanes = self.isa.lanes
        zero = T.Cast(buffer.dtype, T.int32(0))
        whole, rest = divmod(count, lanes)
        if whole:
            with T.serial(whole) as v:
                T.buffer_store(
                    buffer, T.broadcast(zero, lanes), [T.ramp(start + v * lanes, 1, lanes)]
                )
        for i in range(rest):
            T.buffer_store(buffer, zero, [start + whole * lanes + i])


def decode_split(panels: Buffer, start: Expr, k: Expr, room: Buffer, at: Expr) -> None:
    """Split fp32 panel rows ``[k][32]`` into ``[k / 32][plane][16][32]`` pairs of bf16."""
    columns, lanes = 32, 16
    high, sixteen = splat(T.uint32(0xFFFF0000), lanes), splat(T.uint32(16), lanes)
    with T.serial(T.floordiv(k, 2)) as pair, T.serial(columns // lanes) as half:
        source = T.bind(start + pair * 2 * columns + half * lanes)
        even, odd = (
            split_in_three(
                panels.vload([source + i * columns], dtype=typed("float32", lanes)), lanes
            )
            for i in (0, 1)
        )
        step, inside = T.floordiv(pair, _STEP // 2), T.floormod(pair, _STEP // 2)
        for plane in range(3):
            both = T.bitwise_or(
                T.shift_right(even[plane], sixteen), T.bitwise_and(odd[plane], high)
            )
            target = at + ((step * 3 + plane) * (_STEP // 2) + inside) * columns + half * lanes
            T.buffer_store(
                room, T.reinterpret(typed("int32", lanes), both), [T.ramp(target, 1, lanes)]
            )
