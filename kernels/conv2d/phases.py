"""A convolution of an enlarged map as four smaller ones of the map itself.

Every pixel repeated 2×2 meets a 3×3 kernel at most as 2×2 different values: the kernel's taps that
fall on the same pixel are added up beforehand. Which do depends on whether the output's row and
column are even, so there are four kernels, and 4/9 of the arithmetic, for 16/9 of the weights.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir.gemm import Batch, Place
from ..tir.kernel import Call, Operand, Pack, TensorSpec, Value
from ..tir.layout import Layout
from ..tir.micro import Micro
from ..tir.pack import panel_count, panels
from .maps import Map

Expr = Any

#: Pixels of the inputs from which on arithmetic costs more than reading the larger weights.
_PIXELS = 128


@dataclass(frozen=True)
class Axis:
    """Rows, or columns, of an enlarged map.

    Attributes:
        size: of the map before it is enlarged.
        before: zeros ahead of the enlarged map.
        kernel: taps.
        out: of the result, even.
    """

    size: int
    before: int
    kernel: int
    out: int

    def source(self, phase: int, tap: int = 0) -> int:
        """Where a tap of the output at ``2 i + phase`` lies, as seen from ``i``."""
        return (phase - self.before + tap) // 2

    @property
    def taps(self) -> int:
        """Taps of a phase's kernel; one more than it needs may be zero."""
        return self.kernel // 2 + 1

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros around the map before it is enlarged."""
        last = self.out // 2 - 1 + self.source(1) + self.taps - 1
        return -self.source(0), max(0, last - self.size + 1)

    def summed(self, weight: torch.Tensor, dim: int, phase: int) -> torch.Tensor:
        """The kernel of a phase: taps along an axis of the weight, added where they coincide."""
        shape = list(weight.shape)
        shape[dim] = self.taps
        result = weight.new_zeros(shape)
        places = [self.source(phase, tap) - self.source(phase) for tap in range(self.kernel)]
        return result.index_add_(dim, torch.tensor(places, device=weight.device), weight)


@dataclass(frozen=True)
class Phases:
    """The four convolutions: phase ``2 p + q`` yields rows ``2 i + p`` and columns ``2 j + q``."""

    down: Axis
    across: Axis
    map: Map

    @classmethod
    def of(cls, call: Call, shape: Map) -> Phases | None:
        """The phases of a call that reads ``shape``; None where they do not apply or not pay."""
        _, height, width, _ = call.out.shape
        if (
            not call["upsample"]
            or not call["weight"].constant
            or call["groups"] > 1
            or (shape.stride, shape.dilation) != ((1, 1), (1, 1))
            or min(shape.kernel) < 2
            or height % 2
            or width % 2
            or shape.images * shape.height * shape.width < _PIXELS
        ):
            return None
        top, _, left, _ = shape.padding
        down = Axis(shape.height, top, shape.kernel[0], height)
        across = Axis(shape.width, left, shape.kernel[1], width)
        small = dataclasses.replace(
            shape,
            scale=1,
            padding=(*down.padding, *across.padding),
            kernel=(down.taps, across.taps),
        )
        return cls(down, across, small)

    def batch(self, layout: Layout) -> Batch:
        """A product for each phase: where its rows begin, with panels of its own."""

        def start(phase: Expr) -> Expr:
            p, q = T.floordiv(phase, 2), T.floormod(phase, 2)
            # From phase 0 to phase 1 the first tap moves by one pixel or stays.
            rows = p * (self.down.source(1) - self.down.source(0))
            columns = q * (self.across.source(1) - self.across.source(0))
            return (rows * self.map.pitch + columns) * layout.row

        return Batch(4, start, lambda phase: phase)

    def spread(self, place: Place) -> Place:
        """A group of the products' pixels, ``[phase][image][i][j]``, where the result has them."""
        height, width = self.down.out // 2, self.across.out // 2
        count = self.map.images * height * width

        def pixel(row: Expr) -> tuple[Expr, Expr | None]:
            index, counts = place.pixel(row)
            phase, inside = T.floordiv(index, count), T.floormod(index, count)
            line, j = T.floordiv(inside, width), T.floormod(inside, width)
            # Images are dense, so lines of all of them are simply twice as many.
            line = 2 * line + T.floordiv(phase, 2)
            return line * (2 * width) + 2 * j + T.floormod(phase, 2), counts

        return dataclasses.replace(place, pixel=pixel)

    def operand(self, weight: Value, micro: Micro, channels: int) -> Operand:
        """The packed kernels of all phases; arguments as of :func:`.pack.panel_operand`."""
        count = panel_count(weight.spec.shape[0], micro)
        k = self.down.taps * self.across.taps * channels

        def write(out: torch.Tensor, weight: torch.Tensor) -> None:
            for phase, part in enumerate(out.chunk(4)):
                rows = self.down.summed(weight.float(), 2, phase // 2)
                panels(part, self.across.summed(rows, 3, phase % 2), micro, channels)

        spec = TensorSpec((4 * count, k // micro.kpack, micro.columns * micro.kpack), micro.panel)
        key = ("phases", self.down, self.across, micro.columns, micro.kpack, channels, micro.panel)
        return Operand((weight,), Pack(key, write, spec))
