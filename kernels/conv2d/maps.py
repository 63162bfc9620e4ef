"""A convolution's input rewritten so that every tap is a matrix product over plain rows.

Inputs are concatenated, normalised, activated, enlarged, padded with zeros and converted. Pixels
whose coordinates leave different remainders by the stride go to different planes, so that the
pixels one tap needs for an output row are neighbours whatever the stride.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tvm.tirx.script import builder as T

from ..tir.gemm import Depth, Rows
from ..tir.isa import Isa
from ..tir.layout import Layout
from ..tir.memory import load
from ..tir.quantise import Sum, magnitude

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Map:
    """Geometry of the rewritten input: pixels ``[image][phase][rows][pitch]``.

    Attributes:
        images: how many.
        height: rows of the inputs.
        width: pixels of a row of the inputs.
        channels: of every input.
        scale: 2 where every pixel is repeated 2×2, else 1.
        padding: zeros at top, bottom, left, right.
        stride: rows, columns.
        dilation: rows, columns.
        kernel: taps down and across.
    """

    images: int
    height: int
    width: int
    channels: tuple[int, ...]
    scale: int
    padding: tuple[int, int, int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    kernel: tuple[int, int]

    @property
    def rows(self) -> int:
        """Pixel rows of a phase."""
        top, bottom, _, _ = self.padding
        return -(-(self.height * self.scale + top + bottom) // self.stride[0])

    @property
    def written(self) -> int:
        """Rows of the padded input, as far as phases reach."""
        return self.rows * self.stride[0]

    @property
    def pitch(self) -> int:
        """Pixels of a row of a phase."""
        _, _, left, right = self.padding
        return -(-(self.width * self.scale + left + right) // self.stride[1])

    @property
    def image(self) -> int:
        """Pixels of an image in all its phases."""
        return self.stride[0] * self.stride[1] * self.rows * self.pitch

    @property
    def pixels(self) -> int:
        """All pixels."""
        return self.images * self.image

    def output(self, height: int, width: int) -> Rows:
        """The rows of a product that yields ``height × width`` pixels an image."""
        return Rows(self.images, height, width, self.pitch, self.image, exact=False)

    def pixel(self, y: Expr, x: Expr) -> Expr:
        """Pixel index, within an image, of a row and column of the padded map."""
        down, across = self.stride
        phase = T.floormod(y, down) * across + T.floormod(x, across)
        return (phase * self.rows + T.floordiv(y, down)) * self.pitch + T.floordiv(x, across)

    def tap(self, ky: Expr, kx: Expr) -> Expr:
        """Pixels from the one an output stands at to a tap's."""
        return self.pixel(ky * self.dilation[0], kx * self.dilation[1])

    def taps(self) -> tuple[int, ...]:
        """Pixels from the one an output stands at to each of its taps, row by row."""
        down, across = self.stride
        found = []
        for ky in range(self.kernel[0]):
            for kx in range(self.kernel[1]):
                y, x = ky * self.dilation[0], kx * self.dilation[1]
                phase = y % down * across + x % across
                found.append((phase * self.rows + y // down) * self.pitch + x // across)
        return tuple(found)

    def depth(self, layout: Layout) -> Depth:
        """K in runs: taps of a row together where they are neighbours in memory."""
        down, across = self.kernel
        neighbours = self.stride[1] == 1 and self.dilation[1] == 1 and not layout.slab
        if across == 1 or neighbours:
            return Depth(down, across * layout.values, lambda run: self.tap(run, 0) * layout.row)

        def tap(run: Expr) -> Expr:
            return self.tap(T.floordiv(run, across), T.floormod(run, across)) * layout.row

        return Depth(down * across, layout.values, tap)


class Pixels(Protocol):
    """How the channels of one image's pixels are written."""

    @property
    def row(self) -> int:
        """Elements from one pixel to the next."""

    def store(self, buffer: Buffer, row: Expr, channel: Expr, value: Expr, lanes: int) -> None:
        """Store fp32 lanes at a channel of the pixel that begins at element ``row``."""

    def zeros(self, buffer: Buffer, row: Expr) -> None:
        """Zero a whole pixel."""

    def pad(self, buffer: Buffer, row: Expr, channels: int) -> None:
        """Zero what follows the channels of a pixel."""

    def aligned(self, channel: int, lanes: int) -> bool:
        """Whether ``lanes`` values from a channel on are stored side by side."""


def write(
    isa: Isa,
    writer: Callable[[Expr], Pixels],
    shape: Map,
    inputs: Sequence[Buffer],
    out: Buffer,
    *,
    gain: Buffer | None,
    offset: Buffer | None,
    activation: Callable[[Expr, int], Expr],
    magnitudes: Buffer | None = None,
) -> None:
    """Emit the loop that fills a map.

    Args:
        isa: the instruction path.
        writer: from an image's index, how its pixels are written.
        shape: of the map.
        inputs: flat buffers ``[image][y][x][channel]``.
        out: flat buffer of the map.
        gain: flat fp32 ``[image][channel]``: what normalisation multiplies by, or None.
        offset: the same for what it adds.
        activation: of fp32 lanes and their number, applied after the normalisation.
        magnitudes: int32, receives the key of the largest magnitude that goes into the activation,
            of each of an image's :attr:`Map.written` rows; None where nobody asks.
    """
    top, _, left, _ = shape.padding
    height, width = shape.height * shape.scale, shape.width * shape.scale
    across = shape.pitch * shape.stride[1]
    down = shape.written
    total = sum(shape.channels)

    def pixel(layout: Pixels, image: Expr, y: Expr, x: Expr) -> Expr:
        return T.bind((image * shape.image + shape.pixel(y, x)) * layout.row)

    def blank(layout: Pixels, image: Expr, y: Expr, start: int, stop: int) -> None:
        if stop > start:
            with T.serial(stop - start) as x:
                layout.zeros(out, pixel(layout, image, y, x + start))

    def fill(layout: Pixels, image: Expr, y: Expr, most: Sum | None) -> None:
        source_y = T.floordiv(y - top, shape.scale)
        with T.serial(width) as x:
            target = pixel(layout, image, y, x + left)
            first = 0
            source = (image * shape.height + source_y) * shape.width + T.floordiv(x, shape.scale)
            source = T.bind(source)
            for buffer, channels in zip(inputs, shape.channels, strict=True):
                at = T.bind(source * channels)
                part(layout, buffer, at, image, target, first, channels, most)
                first += channels
            layout.pad(out, target, total)

    def part(
        layout: Pixels,
        buffer: Buffer,
        source: Expr,
        image: Expr,
        target: Expr,
        first: int,
        channels: int,
        most: Sum | None,
    ) -> None:
        def one(c: Expr, lanes: int) -> None:
            v = load(buffer, [source + c], lanes)
            if gain is not None:
                at = image * total + first + c
                v = v * load(gain, [at], lanes) + load(offset, [at], lanes)
            if most:
                v = T.bind(v)
                most.add(magnitude(v, lanes), lanes, 0)
            layout.store(out, target, c + first, activation(v, lanes), lanes)

        lanes = isa.lanes if layout.aligned(first, isa.lanes) else 1
        whole, rest = divmod(channels, lanes)
        if whole:
            with T.serial(whole) as v:
                one(v * lanes, lanes)
        if rest:
            with T.serial(rest) as i:
                one(whole * lanes + i, 1)

    with T.parallel(shape.images * down) as task:
        image, y = T.bind(T.floordiv(task, down)), T.bind(T.floormod(task, down))
        layout = writer(image)
        most = Sum(isa, "int32") if magnitudes is not None else None
        with T.If(T.And(y >= top, y < top + height)):
            with T.Then():
                blank(layout, image, y, 0, left)
                fill(layout, image, y, most)
                blank(layout, image, y, left + width, across)
            with T.Else():
                blank(layout, image, y, 0, across)
        if most:
            T.buffer_store(magnitudes, most.result(), [task])
