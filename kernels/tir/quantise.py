"""fp32 values on their way into the int8 rows that integer micro-kernels read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..activation import DIPS
from ..integer import LIMIT, ROUND, SMALLEST, SPAN
from .isa import Isa
from .kernel import TensorSpec
from .llvm import attributes
from .math import ACTIVATIONS, let
from .memory import load, splat, store, typed
from .micro_int8 import STEP, IntegerMicro

Expr = Any
Buffer = Any

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
        self,
        out: Buffer,
        row: Expr,
        channel: Expr,
        value: Expr,
        inverse: Expr,
        zero: Expr,
        lanes: int,
        least: int | None = None,
    ) -> None:
        """Store ``round(value · inverse + zero)``, all in fp32; it fits the type of A.

        The sum's low bits are that integer, as ``zero`` is :meth:`rounding` of one. Where it may
        not fit, codes are clamped from ``least`` to 127.
        """
        rounded = value * splat(inverse, lanes) + splat(zero, lanes)
        if least is not None:
            ends = (T.float32(ROUND + self.micro.zero + code) for code in (least, LIMIT))
            low, high = (splat(end, lanes) for end in ends)
            rounded = let(T.min(T.max(rounded, low), high))
        low = T.Cast(typed(self.micro.a, lanes), T.reinterpret(typed("int32", lanes), rounded))
        at = self.at(row, channel)
        T.buffer_store(out, low, [T.ramp(at, 1, lanes) if lanes > 1 else at])

    def rounding(self, zero: Expr) -> Expr:
        """An int32 as the fp32 to add so that the sum's low bits are an integer."""
        return T.Cast("float32", zero) + T.float32(ROUND)

    def zeros(self, out: Buffer, row: Expr, zero: Expr, first: int = 0) -> None:
        """Store int32 ``zero`` from a channel on, padding included."""
        zero = T.Cast(self.micro.a, zero)
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
    """Pixels of one image as rows of :class:`Blocks`, all by one scale and zero.

    Attributes:
        blocks: the layout.
        inverse: what values are multiplied by.
        zero: int32, how 0 is stored.
        rounding: the same as :meth:`Blocks.rounding` gives it.
        least: the code that values are clamped to; None where none lies beyond the codes' ends.
        row: pixels are counted, not elements.
    """

    blocks: Blocks
    inverse: Expr
    zero: Expr
    rounding: Expr
    least: int | None = None
    row: int = 1

    @classmethod
    def of(cls, blocks: Blocks, inverse: Expr, zero: Expr, least: int | None = None) -> ImagePixels:
        """Pixels by values that are read once."""
        inverse, zero = T.bind(inverse), T.bind(zero)
        return cls(blocks, inverse, zero, T.bind(blocks.rounding(zero)), least)

    def store(self, buffer: Buffer, row: Expr, channel: Expr, value: Expr, lanes: int) -> None:
        """Store fp32 lanes at a channel of a pixel."""
        self.blocks.store(
            buffer, row, channel, value, self.inverse, self.rounding, lanes, self.least
        )

    def zeros(self, buffer: Buffer, row: Expr) -> None:
        """Zero a whole pixel."""
        self.blocks.zeros(buffer, row, self.zero)

    def aligned(self, channel: int, lanes: int) -> bool:
        """Whether ``lanes`` values from a channel on are stored side by side."""
        return channel % lanes == 0

    def pad(self, buffer: Buffer, row: Expr, channels: int) -> None:
        """Zero what follows the channels of a pixel."""
        self.blocks.zeros(buffer, row, self.zero, channels)


#: What :func:`magnitude` gives of infinities; NaN lie above.
INFINITY = 0x7F800000


def magnitude(value: Expr, lanes: int) -> Expr:
    """A key that orders fp32 lanes by magnitude, NaN above all: their bits without the sign."""
    bits = T.reinterpret(typed("int32", lanes), value)
    return T.bitwise_and(bits, splat(T.int32(0x7FFFFFFF), lanes))


def lane_texts(isa: Isa) -> list[str]:
    """LLVM IR that :class:`Sum` needs on this path."""
    n = isa.lanes
    return [
        f"""
declare float @llvm.vector.reduce.fadd.v{n}f32(float, <{n} x float>)
declare i32 @llvm.vector.reduce.smax.v{n}i32(<{n} x i32>)
define float @zoomc_lane_sum(<{n} x float> %x) #0 {{
  %y = call reassoc float @llvm.vector.reduce.fadd.v{n}f32(float -0.0, <{n} x float> %x)
  ret float %y
}}
define i32 @zoomc_lane_max(<{n} x i32> %x) #0 {{
  %y = call i32 @llvm.vector.reduce.smax.v{n}i32(<{n} x i32> %x)
  ret i32 %y
}}
"""
        + attributes(())
    ]


#: Vectors that are summed side by side, so that one addition need not wait for the last.
_PARTS = 4


def sweep(channels: int, lanes: int, emit: Callable[[Expr, int, int], None]) -> None:
    """Emit for every channel, first four vectors at a time: ``emit(channel, lanes, part)``."""
    whole, rest = divmod(channels, lanes)
    turns, left = divmod(whole, _PARTS)
    if turns:
        with T.serial(turns) as turn:
            for part in range(_PARTS):
                emit((turn * _PARTS + part) * lanes, lanes, part)
    for part in range(left):
        emit((turns * _PARTS + part) * lanes, lanes, part)
    if rest:
        with T.serial(rest) as i:
            emit(whole * lanes + i, 1, 0)


class Sum:
    """Over a :func:`sweep`: the sum of fp32, or the largest of int32 that are not negative."""

    def __init__(self, isa: Isa, dtype: str) -> None:
        self._lanes, self._dtype = isa.lanes, dtype
        self._fold = T.max if dtype == "int32" else lambda a, b: a + b
        self._held = T.alloc_buffer((_PARTS * isa.lanes,), dtype, scope="local")
        self._rest = T.alloc_buffer((1,), dtype, scope="local")
        zero = T.Cast(dtype, T.int32(0))
        self._store(zero, 1, 0)
        for part in range(_PARTS):
            self._store(splat(zero, isa.lanes), isa.lanes, part)

    def _load(self, lanes: int, part: int) -> Expr:
        if lanes == 1:
            return self._rest[0]
        return self._held.vload([part * lanes], dtype=typed(self._dtype, lanes))

    def _store(self, value: Expr, lanes: int, part: int) -> None:
        if lanes == 1:
            T.buffer_store(self._rest, value, [0])
        else:
            T.buffer_store(self._held, value, [T.ramp(part * lanes, 1, lanes)])

    def add(self, value: Expr, lanes: int, part: int) -> None:
        """Take lanes into account."""
        self._store(self._fold(self._load(lanes, part), value), lanes, part)

    def result(self) -> Expr:
        """What they come to."""
        n = self._lanes
        pair = self._fold(self._load(n, 0), self._load(n, 1))
        every = self._fold(pair, self._fold(self._load(n, 2), self._load(n, 3)))
        name = "zoomc_lane_max" if self._dtype == "int32" else "zoomc_lane_sum"
        return T.bind(self._fold(T.call_extern(self._dtype, name, every), self._rest[0]))


def scale_of(largest: Expr, codes: int = LIMIT) -> tuple[Expr, Expr]:
    """What values up to this are multiplied by to give so many codes, and the scale back."""
    smallest = T.float32(SMALLEST)
    largest = let(largest)
    largest = let(T.Select(largest < smallest, smallest, largest))
    return let(T.float32(codes) / largest), let(largest / T.float32(codes))


def scale_between(low: Expr, high: Expr) -> tuple[Expr, Expr, Expr]:
    """As :func:`zoomc.kernels.integer.quantise_between`: the inverse, the zero, the scale back.

    Both ends are finite.
    """
    inverse, scale = scale_of(high - low, SPAN)
    steps = T.floor((T.float32(0) - low) * inverse)
    return inverse, let(T.Cast("int32", steps) - T.int32(LIMIT)), scale


def extent(low: Expr, high: Expr, activation: str) -> tuple[Expr, Expr]:
    """:func:`zoomc.kernels.integer.extent` of scalars, of which neither is above nor below 0."""
    least, most = (let(ACTIVATIONS[activation](v, 1)) for v in (low, high))
    if activation not in DIPS:
        return least, most
    where, depth = DIPS[activation]
    inside = T.And(low < T.float32(where), least > T.float32(-depth))
    return let(T.Select(inside, T.float32(-depth), least)), most


@dataclass(frozen=True)
class RowSource:
    """What rows are before they are quantised.

    Attributes:
        x: flat buffer ``[count][channels]``.
        norm: layer norm over each row; the variance is taken about the mean.
        gain: flat ``[channels]`` or None.
        offset: flat ``[channels]`` or None.
        eps: added to the variance.
        activation: name of an activation, applied last.
    """

    x: Buffer
    norm: bool
    gain: Buffer | None
    offset: Buffer | None
    eps: float
    activation: str


def row(
    layout: Blocks,
    source: RowSource,
    held: Buffer,
    base: Expr,
    out: Buffer,
    scales: Buffer,
    m: Expr,
    fixed: tuple[Expr, Expr] | None = None,
    origin: Expr = 0,
) -> None:
    """Emit the quantisation of one row.

    Args:
        layout: of the rows.
        source: what they are.
        held: fp32, room for the row from element ``base`` on.
        base: see ``held``.
        out: flat buffer of the quantised rows.
        scales: fp32, one a row.
        m: which row.
        fixed: what all rows are multiplied by, and their scale; None finds the row's own.
        origin: the row that lies first in the source and in ``out``.
    """
    isa, channels = layout.isa, layout.channels
    lanes = isa.lanes
    zero = T.int32(layout.micro.zero)
    rounding = T.float32(ROUND + layout.micro.zero)
    here = T.bind(m - origin)
    start = T.bind(here * channels)

    def read(c: Expr, n: int) -> Expr:
        return load(source.x, [start + c], n)

    def kept(c: Expr, n: int) -> Expr:
        return load(held, [base + c], n)

    value = read
    mean = scale = None
    if source.norm:
        per = T.float32(1.0 / channels)
        total = Sum(isa, "float32")

        def first(c: Expr, n: int, part: int) -> None:
            v = T.bind(read(c, n))
            store(held, [base + c], v, n)
            total.add(v, n, part)

        sweep(channels, lanes, first)
        mean = T.bind(total.result() * per)
        squares = Sum(isa, "float32")

        def second(c: Expr, n: int, part: int) -> None:
            d = T.bind(kept(c, n) - splat(mean, n))
            squares.add(d * d, n, part)

        sweep(channels, lanes, second)
        variance = squares.result() * per
        scale = T.bind(T.float32(1) / T.sqrt(variance + T.float32(source.eps)))
    most = Sum(isa, "int32")

    def last(c: Expr, n: int, part: int) -> None:
        v = kept(c, n) if source.norm else read(c, n)
        if source.norm:
            v = (v - splat(mean, n)) * splat(scale, n)
            v = v * load(source.gain, [c], n) if source.gain is not None else v
            v = v + load(source.offset, [c], n) if source.offset is not None else v
        if fixed:
            v = T.bind(v)
            most.add(magnitude(v, n), n, part)
        v = T.bind(ACTIVATIONS[source.activation](v, n))
        if fixed:
            layout.store(out, here, c, v, fixed[0], rounding, n, least=-LIMIT)
            return
        if value is kept:
            store(held, [base + c], v, n)
        most.add(magnitude(v, n), n, part)

    value = kept if source.norm or source.activation != "none" else read
    sweep(channels, lanes, last)
    layout.zeros(out, here, zero, channels)
    if fixed:
        wrong = most.result() >= T.int32(INFINITY)
        T.buffer_store(scales, T.Select(wrong, T.float32(float("nan")), fixed[1]), [m])
        return
    inverse, back = scale_of(T.reinterpret("float32", most.result()))
    T.buffer_store(scales, back, [m])

    def code(c: Expr, n: int, part: int) -> None:
        del part
        layout.store(out, here, c, value(c, n), inverse, rounding, n)

    sweep(channels, lanes, code)


def rows(
    layout: Blocks,
    source: RowSource,
    held: Buffer,
    out: Buffer,
    scales: Buffer,
    count: int,
    bounds: Buffer | None = None,
) -> None:
    """Emit the loop that quantises rows, each by a scale of its own or all by that of ``bounds``.

    Args:
        layout: of the rows.
        source: what they are.
        held: fp32, a row of ``layout.channels`` a worker.
        out: flat buffer of the quantised rows.
        scales: fp32, one a row.
        count: rows.
        bounds: fp32, where the codes of every row begin and end; None finds each row's own.
    """
    threads = layout.isa.threads
    with T.parallel(threads) as worker:
        first = T.bind(T.floordiv(worker * count, threads))
        stop = T.bind(T.floordiv((worker + 1) * count, threads))
        fixed = None
        if bounds is not None:
            inverse, back = scale_of(T.max(T.float32(0) - bounds[0], bounds[1]))
            fixed = T.bind(inverse), T.bind(back)
        with T.serial(first, stop) as m:
            row(layout, source, held, T.bind(worker * layout.channels), out, scales, m, fixed)
