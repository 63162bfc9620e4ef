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


@dataclass(frozen=True)
class Table:
    """Values that codes stand for.

    Attributes:
        values: int8, ascending.
        reach: a group's size, in the table's own units.
        measure: that size: ``largest``, ``rms``, or ``search`` to find the best step instead.
        losses: squared error at the steps of :data:`LOSS_STEPS`, as parts of the step at which
            the table fits a group's size; None for the uniform table.
    """

    values: torch.Tensor
    reach: float
    measure: str
    losses: torch.Tensor | None = None

    @cached_property
    def largest_scale(self) -> int:
        """The largest group scale that keeps every product within ±127."""
        return max(1, 127 // max(1, int(self.values.abs().max())))

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
        assert self.losses is not None
        place = torch.log2(part).mul_(_PER_OCTAVE).add_(len(LOSS_STEPS) // 2).round_()
        index = place.clamp_(0, len(LOSS_STEPS) - 1).int()
        return self.losses.index_select(0, index.view(-1)).view(part.shape)

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """The values of codes, fp32."""
        flat = codes.reshape(-1).int()
        return self.values.float().index_select(0, flat).view(codes.shape)


#: -8 … 7.
UNIFORM = Table(torch.arange(-8, 8, dtype=torch.int8), 7.5, "search")


def codes_of(x: torch.Tensor, step: torch.Tensor, table: Table) -> torch.Tensor:
    """The code of the value nearest to each ``x / step``, uint8."""
    cells, start, pitch = table.cells
    place = torch.mul(x, (1 / pitch) / step).sub_(start / pitch).clamp_(0, _CELLS - 1)
    return cells.index_select(0, place.int().view(-1)).view(x.shape)
