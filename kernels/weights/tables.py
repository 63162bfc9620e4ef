"""Tables of int8 values that codes index, and looking up the nearest entry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

_PER_OCTAVE = 12

#: Steps at which a fitted table's loss is known, around the one it was fitted at.
LOSS_STEPS = [2 ** (i / _PER_OCTAVE) for i in range(-2 * _PER_OCTAVE, 2 * _PER_OCTAVE + 1)]

#: Cells of the look-up from a weight to its code.
_CELLS = 1 << 13

#: The evenly spaced values of 4-bit codes. The second ones lose less, by 6 % on weights that are
#: spread evenly: they reach equally far both ways. The first ones have a zero.
UNIFORM = (torch.arange(-8, 8, dtype=torch.int8), torch.arange(-15, 16, 2, dtype=torch.int8))


@dataclass(frozen=True)
class Table:
    """Values that codes stand for.

    Attributes:
        values: int8, ascending.
        reach: a group's size, in the table's own units.
        measure: that size: ``largest`` or ``rms``; or ``crest`` where the best step is chosen by
            both, see :mod:`.curves`.
        losses: squared error at the steps of :data:`LOSS_STEPS`, as parts of the step at which
            the table fits a group's size; by ``crest``, the curves.
    """

    values: torch.Tensor
    reach: float
    measure: str
    losses: torch.Tensor

    @cached_property
    def largest_scale(self) -> int:
        """The largest group scale that keeps every product within ±127."""
        return max(1, 127 // max(1, int(self.values.abs().max())))

    @cached_property
    def grid(self) -> tuple[float, float] | None:
        """The first value and the distance between any two, where that is the same."""
        distances = self.values.int().diff()
        first, distance = float(self.values[0]), float(distances[0])
        return (first, distance) if bool((distances == distance).all()) else None

    @cached_property
    def cells(self) -> tuple[torch.Tensor, float, float]:
        """The nearest value's code for every cell of a fine grid; the grid's start and pitch."""
        values = self.values.double()
        start, end = float(values[0]) - 1, float(values[-1]) + 1
        pitch = (end - start) / _CELLS
        centres = start + pitch * (torch.arange(_CELLS, dtype=torch.float64) + 0.5)
        codes = torch.bucketize(centres, (values[1:] + values[:-1]) / 2)
        return codes.to(torch.uint8), start, pitch

    def loss_at(self, part: torch.Tensor) -> torch.Tensor:
        """The loss of groups whose steps are that part of the ideal ones."""
        place = torch.log2(part).mul_(_PER_OCTAVE).add_(len(LOSS_STEPS) // 2).round_()
        index = place.clamp_(0, len(LOSS_STEPS) - 1).int()
        return self.losses.index_select(0, index.view(-1)).view(part.shape)

    def nearest(self, x: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The value nearest to each ``x / step``: its code, uint8, and itself, fp32."""
        last = len(self.values) - 1
        if self.grid is not None:
            first, distance = self.grid
            place = torch.mul(x, (1 / distance) / step).sub_(first / distance)
            place.round_().clamp_(0, last)
            return place.to(torch.uint8), place.mul_(distance).add_(first)
        cells, start, pitch = self.cells
        place = torch.mul(x, (1 / pitch) / step).sub_(start / pitch).clamp_(0, _CELLS - 1)
        codes = cells.index_select(0, place.int().view(-1))
        values = self.values.float().index_select(0, codes.int())
        return codes.view(x.shape), values.view(x.shape)
