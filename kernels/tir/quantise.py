"""fp32 values on their way into the int8 rows that integer micro-kernels read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..activation import DIPS
from ..integer import LIMIT, SMALLEST
from .isa import Isa
from .kernel import TensorSpec
from .math import ACTIVATIONS
from .memory import splat, typed
from .micro_int8 import STEP, IntegerMicro
from .normalise import each

Expr = Any
Buffer = Any

#: Added to an fp32, it leaves the nearest integer, ties to even, in the low bits.
_ROUND = 1.5 * 2.0**23

_DTYPES = {"int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16}


@dataclass(frozen=True)
class Blocks:
    """Rows in blocks of 64 channels: ``[blocks][rows][64]``.

    Attributes:
        isa: the instruction path.
        micro: who reads them.
        channels: of a row, without padding.
        rows: how many, with those that groups may run over.
    """

    isa: Isa
    micro: IntegerMicro
    channels: int
    rows: int

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return -(-self.channels // STEP)

    @property
    def spec(self) -> TensorSpec:
        """Of the buffer that holds them."""
        return TensorSpec((self.blocks * self.rows * STEP,), _DTYPES[self.micro.a])

    def at(self, row: Expr, channel: Expr) -> Expr:
        """Element of a row's channel."""
        block = T.floordiv(channel, STEP) * (self.rows * STEP)
        return block + row * STEP + T.floormod(channel, STEP)

    def store(
        self, out: Buffer, row: Expr, channel: Expr, value: Expr, inverse: Expr, lanes: int
    ) -> None:
        """Store ``round(value · inverse)``, which is between ±127."""
        rounded = value * splat(inverse, lanes) + splat(T.float32(_ROUND + self.micro.zero), lanes)
        low = T.Cast(typed(self.micro.a, lanes), T.reinterpret(typed("int32", lanes), rounded))
        at = self.at(row, channel)
        T.buffer_store(out, low, [T.ramp(at, 1, lanes) if lanes > 1 else at])

    def zeros(self, out: Buffer, row: Expr, first: int = 0) -> None:
        """Store zeros from a channel on, padding included."""
        zero = T.Cast(self.micro.a, T.int32(self.micro.zero))
        edge = min(-(-first // STEP) * STEP, self.blocks * STEP)
        if edge > first:
            with T.serial(edge - first) as i:
                T.buffer_store(out, zero, [self.at(row, first + i)])
        if edge < self.blocks * STEP:
            with T.serial(self.blocks - edge // STEP) as b:
                at = self.at(row, edge + b * STEP)
                T.buffer_store(out, T.broadcast(zero, STEP), [T.ramp(at, 1, STEP)])


@dataclass(frozen=True)
class ImagePixels:
    """Pixels of one image as rows of :class:`Blocks`, all by one scale.

    Attributes:
        blocks: the layout.
        inverse: what values are multiplied by.
        row: pixels are counted, not elements.
    """

    blocks: Blocks
    inverse: Expr
    row: int = 1

    def store(self, buffer: Buffer, row: Expr, channel: Expr, value: Expr, lanes: int) -> None:
        """Store fp32 lanes at a channel of a pixel."""
        self.blocks.store(buffer, row, channel, value, self.inverse, lanes)

    def zeros(self, buffer: Buffer, row: Expr) -> None:
        """Zero a whole pixel."""
        self.blocks.zeros(buffer, row)

    def aligned(self, channel: int, lanes: int) -> bool:
        """Whether ``lanes`` values from a channel on are stored side by side."""
        return channel % lanes == 0

    def pad(self, buffer: Buffer, row: Expr, channels: int) -> None:
        """Zero what follows the channels of a pixel."""
        self.blocks.zeros(buffer, row, channels)


def magnitude(value: Expr, lanes: int) -> Expr:
    """A key that orders fp32 lanes by magnitude, NaN above all: their bits without the sign."""
    bits = T.reinterpret(typed("int32", lanes), value)
    return T.bitwise_and(bits, splat(T.int32(0x7FFFFFFF), lanes))


class Largest:
    """The largest of many lanes, held in a vector; values are int32 or fp32."""

    def __init__(self, lanes: int, dtype: str, first: Expr) -> None:
        self._lanes, self._dtype = lanes, dtype
        self._held = T.alloc_buffer((lanes,), dtype, scope="local")
        T.buffer_store(self._held, splat(first, lanes), [T.ramp(0, 1, lanes) if lanes > 1 else 0])

    def add(self, value: Expr, lanes: int) -> None:
        """Take lanes into account; one, or as many as the vector has."""
        if lanes == 1:
            T.buffer_store(self._held, T.max(self._held[0], value), [0])
            return
        before = self._held.vload([0], dtype=typed(self._dtype, lanes))
        T.buffer_store(self._held, T.max(before, value), [T.ramp(0, 1, lanes)])

    def result(self) -> Expr:
        """The largest so far."""
        terms = [self._held[i] for i in range(self._lanes)]
        while len(terms) > 1:
            terms = [T.max(terms[i], terms[i + 1]) for i in range(0, len(terms), 2)]
        return T.bind(terms[0])


def scale_of(largest: Expr) -> tuple[Expr, Expr]:
    """What values with this largest magnitude are multiplied by, and the scale back."""
    smallest = T.float32(SMALLEST)
    largest = T.bind(T.Select(largest < smallest, smallest, largest))
    return T.bind(T.float32(LIMIT) / largest), T.bind(largest / T.float32(LIMIT))


def extent(low: Expr, high: Expr, activation: str) -> Expr:
    """:func:`zoomc.kernels.integer.extent` of scalars."""
    fn = ACTIVATIONS[activation]
    ends = [T.bind(magnitude(T.bind(fn(v, 1)), 1)) for v in (low, high)]
    largest = T.bind(T.reinterpret("float32", T.max(*ends)))
    if activation not in DIPS:
        return largest
    where, depth = DIPS[activation]
    inside = T.And(low < T.float32(where), high > T.float32(where))
    deeper = T.And(inside, largest < T.float32(depth))
    return T.bind(T.Select(deeper, T.float32(depth), largest))


def rows(
    layout: Blocks,
    out: Buffer,
    scales: Buffer,
    count: int,
    prepare: Callable[[Expr], Callable[[Expr, int], Expr]],
) -> None:
    """Emit the loop that quantises rows, each by a scale of its own.

    Args:
        layout: of the rows.
        out: flat buffer of them.
        scales: fp32, one a row.
        count: rows.
        prepare: from a row's index, what gives its fp32 lanes at a channel.
    """
    lanes = layout.isa.lanes
    with T.parallel(count) as m:
        value = prepare(m)
        most = Largest(lanes, "int32", T.int32(0))
        each(layout.channels, lanes, lambda c, n: most.add(magnitude(value(c, n), n), n))
        inverse, scale = scale_of(T.reinterpret("float32", most.result()))
        T.buffer_store(scales, scale, [m])
        each(layout.channels, lanes, lambda c, n: layout.store(out, m, c, value(c, n), inverse, n))
        layout.zeros(out, m, layout.channels)
