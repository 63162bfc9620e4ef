"""The layout in which micro-kernels read A, and the fp32 split behind one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from .convert import store
from .isa import Isa
from .memory import splat, typed
from .micro import Micro

Expr = Any
Buffer = Any


def split_in_three(value: Expr, lanes: int, infinite: bool = True) -> list[Expr]:
    """An fp32 value as three uint32 whose upper halves are bf16 that add up to it exactly.

    Truncation keeps the next 8 significant bits each time. Of an infinity the two lower parts are
    zero, so that products stay infinite; unless not ``infinite``: then they are NaN, which saves
    a third of the work.
    """
    word, real = typed("uint32", lanes), typed("float32", lanes)
    high = splat(T.uint32(0xFFFF0000), lanes)
    exponent = splat(T.uint32(0x7F800000), lanes)
    bits = T.bind(T.reinterpret(word, value))
    rest = T.reinterpret(real, bits) - T.reinterpret(real, T.bitwise_and(bits, high))
    if infinite:
        finite = T.bitwise_and(bits, exponent) < exponent
        rest = T.Select(finite, rest, splat(T.float32(0), lanes))
    rest = T.bind(rest)
    middle = T.bind(T.reinterpret(word, rest))
    low = T.bind(T.reinterpret(word, rest - T.reinterpret(real, T.bitwise_and(middle, high))))
    return [bits, middle, low]


@dataclass(frozen=True)
class Layout:
    """How rows of A are written for a micro-kernel.

    Rows either follow one another whole, or, for tiles, cut into slabs of one K step: all rows'
    values of the first step, then all rows' values of the second. A tile's rows are then
    neighbours in memory, which the second-level cache delivers a quarter faster than rows apart.

    Attributes:
        isa: the instruction path.
        planes: elements that stand for one value; see :class:`.micro.Micro`.
        values: values of K in a row, a multiple of the step.
        kstep: values of K a micro-kernel takes at a time.
        slab: elements of a slab; 0 where rows are whole.
    """

    isa: Isa
    planes: int = 1
    values: int = 0
    kstep: int = 1
    slab: int = 0

    @property
    def row(self) -> int:
        """Elements from one row to the next."""
        return self.planes * (self.kstep if self.slab else self.values)

    @property
    def step(self) -> int:
        """Elements from one K step of a row to the next."""
        return self.slab or self.planes * self.kstep

    def offset(self, channel: Expr) -> Expr:
        """Element at which a channel (a multiple of the step if split) lies, from its row's."""
        if self.planes == 1 and not self.slab:
            return channel
        return T.floordiv(channel, self.kstep) * self.step + T.floormod(channel, self.kstep)

    def store(self, buffer: Buffer, row: Expr, channel: Expr, value: Expr, lanes: int) -> None:
        """Store fp32 lanes at a channel of the row that begins at element ``row``."""
        at = row + self.offset(channel)
        if self.planes == 1:
            store(self.isa, buffer, at, value, lanes)
            return
        sixteen = splat(T.uint32(16), lanes)
        for plane, bits in enumerate(split_in_three(value, lanes)):
            half = T.Cast(typed("uint16", lanes), T.shift_right(bits, sixteen))
            index = at + plane * self.kstep
            T.buffer_store(buffer, half, [T.ramp(index, 1, lanes) if lanes > 1 else index])

    def aligned(self, channel: int, lanes: int) -> bool:
        """Whether ``lanes`` values from a channel on are stored side by side."""
        return (self.planes == 1 and not self.slab) or channel % lanes == 0

    def elements(self, rows: int) -> int:
        """Size of that many rows; of slabs, the size of all there are."""
        return self.values // self.kstep * self.slab if self.slab else rows * self.row

    def pad(self, buffer: Buffer, row: Expr, channels: int) -> None:
        """Zero what follows that many channels of a row."""
        if self.values > channels:
            with T.serial(self.values - channels) as c:
                self.store(buffer, row, c + channels, T.float32(0), 1)

    def zeros(self, buffer: Buffer, row: Expr) -> None:
        """Zero the row that begins at element ``row``."""
        if self.slab:
            with T.serial(self.values // self.kstep) as s:
                self._zeros(buffer, T.bind(row + s * self.slab), self.row)
        else:
            self._zeros(buffer, row, self.row)

    def _zeros(self, buffer: Buffer, start: Expr, count: int) -> None:
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


def laid_out(isa: Isa, micro: Micro, values: int, rows: int, sliced: bool = True) -> Layout:
    """The layout of ``rows`` rows for a micro-kernel, which may read ``micro.rows`` more.

    Whether ``sliced`` helps was measured: always, but for maps of several planes.

    Those spare rows also keep slabs from a power of two apart, where they would compete for the
    same lines of the first-level cache.
    """
    slab = (rows + micro.rows) * micro.kstep * micro.planes
    sliced = sliced and micro.tiles and values > micro.kstep
    return Layout(isa, micro.planes, values, micro.kstep, slab if sliced else 0)


def decode_split(panels: Buffer, start: Expr, k: Expr, room: Buffer, at: Expr) -> None:
    """Split fp32 panel rows ``[k][32]`` into ``[k / 32][plane][16][32]`` pairs of bf16."""
    columns, lanes, pairs = 32, 16, 16
    high, sixteen = splat(T.uint32(0xFFFF0000), lanes), splat(T.uint32(16), lanes)
    with T.serial(T.floordiv(k, 2)) as pair, T.serial(columns // lanes) as half:
        source = T.bind(start + pair * 2 * columns + half * lanes)
        even, odd = (
            split_in_three(
                panels.vload([source + i * columns], dtype=typed("float32", lanes)),
                lanes,
                infinite=False,
            )
            for i in (0, 1)
        )
        step, inside = T.floordiv(pair, pairs), T.floormod(pair, pairs)
        for plane in range(3):
            both = T.bitwise_or(
                T.shift_right(even[plane], sixteen), T.bitwise_and(odd[plane], high)
            )
            target = at + ((step * 3 + plane) * pairs + inside) * columns + half * lanes
            T.buffer_store(
                room, T.reinterpret(typed("int32", lanes), both), [T.ramp(target, 1, lanes)]
            )
