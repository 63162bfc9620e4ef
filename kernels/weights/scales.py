"""Two-level scales: an integer for every group, one fp32 number for every output channel."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .curves import Expected, rms
from .tables import Table

#: How far the channel's unit is tried below the one that lets its widest group have the largest
#: integer: where one group stands out, the others are better served by finer integers.
_SHRINK = (1.0, 0.93, 0.86, 0.75, 0.62, 0.48, 0.35)


def choose_scales(
    x: torch.Tensor, table: Table, importance: torch.Tensor | None, largest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers of the groups and units of the channels that lose least together.

    Each group asks for the step at which groups like it lost least in the sample that the table
    was fitted to.

    Args:
        x: a block of weights ``(64, G, O, taps)``, none much larger than 1.
        table: whose values the scales multiply.
        importance: ``(64, G, 1, 1)`` or None.
        largest: ``(G, O, taps)``, the largest size in each group.

    Returns:
        ``(G, O, taps)`` whole numbers from 1 as fp32, and ``(1, O, 1)`` units:
        the step of a group is their product.
    """
    if table.measure == "crest":
        expected = Expected(x, table, importance, largest)
        return _together(expected.ideal, table.largest_scale, expected.lost)
    size = largest if table.measure == "largest" else rms(x)
    ideal = size.clamp_min(1e-15) / table.reach
    energy = ideal.square()
    return _together(ideal, table.largest_scale, lambda step: energy * table.loss_at(step / ideal))


def _together(
    ideal: torch.Tensor, largest_scale: int, lost: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each channel the unit, and for each group the multiple of it, that lose least.

    ``ideal`` are the steps the groups would choose, ``lost`` gives their errors at other steps,
    of any number of them along a new first axis.
    """
    widest = ideal.amax(dim=(0, 2), keepdim=True) / largest_scale
    widest = torch.where(widest > 0, widest, 1.0)
    units = widest * torch.tensor(_SHRINK).view(-1, 1, 1, 1)
    low = (ideal / units).floor_().clamp_(1, largest_scale)
    scales = torch.stack([low, (low + 1).clamp_(max=largest_scale)])
    losses, which = lost((scales * units).flatten(0, 1)).view(scales.shape).min(dim=0)
    best = losses.sum(dim=(1, 3), keepdim=True).argmin(dim=0)
    chosen = torch.where(which == 0, scales[0], scales[1])
    scale = chosen.gather(0, best.expand_as(ideal)[None])[0]
    return scale, units.gather(0, best[None])[0]


def refit(
    x: torch.Tensor,
    values: torch.Tensor,
    group_scale: torch.Tensor,
    channel_scale: torch.Tensor,
    importance: torch.Tensor | None,
) -> torch.Tensor:
    """The channel scales that lose least with these values: least squares, in closed form."""
    weighted = values if importance is None else values * importance
    moment = (weighted * x).sum(dim=0).mul_(group_scale).sum(dim=(0, 2), keepdim=True)
    norm = (values * weighted).sum(dim=0).mul_(group_scale.square()).sum(dim=(0, 2), keepdim=True)
    return torch.where((norm > 0) & (moment > 0), moment / norm, channel_scale)
