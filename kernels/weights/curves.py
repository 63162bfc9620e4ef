"""What groups lose at every step of a uniform table, learned on a sample of the layer.

Measuring each group at each step takes many passes over the weights. How much a group loses is
told well enough by its crest, the ratio of its largest weight to their root mean square: groups
of 64 even weights have low crests and should not be clipped, groups with outliers high ones.
"""

from __future__ import annotations

import math

import torch

from ..integer import GROUP
from .tables import Table

#: Steps measured, as parts of the step that just spans a group's largest weight.
RATIOS = [0.925**i for i in range(14)]
_LOG_STEP = math.log(0.925)

#: Crests told apart: from 1 to the 8 of a group with one weight that is not zero.
_PER_OCTAVE = 8
_CRESTS = 3 * _PER_OCTAVE + 1


def uniform_table(values: torch.Tensor, x: torch.Tensor, importance: torch.Tensor | None) -> Table:
    """Evenly spaced values as a table fitted to a sample ``(64, G, O, taps)`` of a layer."""
    distance = float(values[1]) - float(values[0])
    # as far as both ends reach when what lies beyond them by half a distance rounds to them
    reach = min(float(values.abs()[0]), float(values.abs()[-1])) + distance / 2
    table = Table(values, reach, "crest", torch.empty(0))
    largest = largest_of(x)
    largest = torch.where(largest > 0, largest, 1.0)
    crest = _crest(largest, x.square().sum(dim=0)).flatten()
    weighed = x if importance is None else x * importance
    total = (weighed * x).sum(dim=0).flatten().double()
    lost = []
    for ratio in RATIOS:
        step = largest * (ratio / reach)
        error = table.nearest(x, step)[1].mul_(step).sub_(x).square_()
        lost.append((error if importance is None else error.mul_(importance)).sum(dim=0).flatten())
    # Crests that the sample has few of learn from those beside them.
    apart = torch.arange(_CRESTS, dtype=torch.float64)
    near = 0.03 ** (apart[:, None] - apart).abs()
    scale = largest.flatten().double().square()
    sums = near @ torch.zeros(_CRESTS, len(RATIOS), dtype=torch.float64).index_add_(
        0, crest, torch.stack(lost, 1).double() / scale[:, None]
    )
    energy = near @ torch.zeros(_CRESTS, dtype=torch.float64).index_add_(0, crest, total / scale)
    curves = torch.where(energy[:, None] > 0, sums / energy[:, None], 1.0).float()
    return Table(values, reach, "crest", curves)


def largest_of(x: torch.Tensor) -> torch.Tensor:
    """The largest size ``(G, O, taps)`` in each group of a block."""
    return torch.maximum(x.amax(dim=0), x.amin(dim=0).neg_())


def rms(x: torch.Tensor) -> torch.Tensor:
    """The root mean square ``(G, O, taps)`` of each group of a block."""
    return x.square().mean(dim=0).sqrt_()


class Expected:
    """What the groups of a block are expected to lose."""

    def __init__(
        self,
        x: torch.Tensor,
        table: Table,
        importance: torch.Tensor | None,
        largest: torch.Tensor,
    ) -> None:
        """``x`` is ``(64, G, O, taps)``, ``importance`` ``(64, G, 1, 1)`` or None."""
        square = x * x
        energy = square.sum(dim=0)
        # Groups below this square to nothing beside the channel's largest weight.
        largest = torch.where(largest < 1e-15, 1.0, largest)
        self.energy = energy if importance is None else square.mul_(importance).sum(dim=0)
        self.span = largest / table.reach
        self.table = table
        self.crest = _crest(largest, energy).long()
        best = torch.tensor(RATIOS)[table.losses.argmin(dim=1)][self.crest]
        self.ideal = torch.where(energy > 0, self.span * best, 0.0)

    def lost(self, step: torch.Tensor) -> torch.Tensor:
        """The error of every group at steps ``(n, G, O, taps)``, between the measured ones."""
        place = (step / self.span).log_().div_(_LOG_STEP)
        last = len(RATIOS) - 1
        below = place.clamp(0, last - 1).floor_()
        part = (place - below).clamp_(0, 1.5)
        index = below.long().add_(self.crest * len(RATIOS))
        curves = self.table.losses.flatten()
        between = torch.lerp(curves[index], curves[index.add_(1)], part)
        # Coarser than measured: the error of rounding grows with the square of the step.
        coarse = between.mul_(place.clamp_(max=0).mul_(2 * _LOG_STEP).exp_())
        return coarse.clamp_max_(1).mul_(self.energy)


def _crest(largest: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """Which crest each group has."""
    square = largest.square().mul_(GROUP).div_(energy.clamp_min(1e-30))
    return square.log2_().mul_(_PER_OCTAVE / 2).round_().clamp_(0, _CRESTS - 1).int()
