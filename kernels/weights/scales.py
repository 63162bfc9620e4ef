"""Two-level scales: an integer for every group, one fp32 number for every output channel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from .tables import Table

#: Steps tried for a group, as parts of the step that just spans its largest weight.
_RATIOS = [1.06 * 0.86**i for i in range(8)]
_LOG_STEP = math.log(0.86)

#: The uniform table, and how far it spans each way.
_LOW, _HIGH, _SPAN = -8, 7, 7.5

#: How far the channel's unit is tried below the one that lets its widest group have the largest
#: integer: where one group stands out, the others are better served by finer integers.
_SHRINK = (1.0, 0.93, 0.86, 0.75, 0.62, 0.48, 0.35)


class _Profile(NamedTuple):
    """What each group loses under the uniform quantiser of 16 levels.

    Attributes:
        largest: ``(O, G, taps)``, the largest size in a group; 1 where there are only zeros.
        errors: ``(8, O, G, taps)``, squared error where the quantiser spans
            ``largest * _RATIOS[i]`` each way.
        energy: ``(O, G, taps)``, squared error of rounding all to zero.
    """

    largest: torch.Tensor
    errors: torch.Tensor
    energy: torch.Tensor


def choose_scales(
    x: torch.Tensor, table: Table, importance: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers of the groups and units of the channels that lose least together.

    The uniform table's steps are found by measuring each group at several of them. A fitted
    table follows the measure of a group's size that it was fitted by, and the loss it then showed
    at other steps.

    Args:
        x: a block of weights ``(64, O, G, taps)``, none much larger than 1.
        table: whose values the scales multiply.
        importance: ``(64, 1, G, 1)`` or None.

    Returns:
        ``(O, G, taps)`` whole numbers from 1 as fp32, and ``(O, 1, 1)`` units:
        the step of a group is their product.
    """
    if table.measure == "search":
        found = _profile(x, importance)
        span = found.largest * torch.tensor(_RATIOS)[found.errors.argmin(dim=0)]
        ideal = torch.where(found.energy > 0, span / _SPAN, 0.0)
        return _together(ideal, table.largest_scale, lambda step: _lost(found, step * _SPAN))
    ideal = group_size(x, table.measure).clamp_min(1e-15) / table.reach
    energy = ideal.square()
    return _together(ideal, table.largest_scale, lambda step: energy * table.loss_at(step / ideal))


def group_size(x: torch.Tensor, measure: str) -> torch.Tensor:
    """The size ``(O, G, taps)`` of the groups of a block, by ``largest`` or ``rms``."""
    if measure == "largest":
        return torch.maximum(x.amax(dim=0), -x.amin(dim=0))
    return x.square().mean(dim=0).sqrt_()


def _together(
    ideal: torch.Tensor, largest_scale: int, lost: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each channel the unit, and for each group the multiple of it, that lose least.

    ``ideal`` are the steps the groups would choose, ``lost`` gives their errors at other steps.
    """
    widest = ideal.amax(dim=(1, 2), keepdim=True) / largest_scale
    widest = torch.where(widest > 0, widest, 1.0)
    best = torch.full_like(widest, torch.inf)
    chosen, units = torch.ones_like(ideal), widest
    for shrink in _SHRINK:
        unit = widest * shrink
        low = (ideal / unit).floor_().clamp_(1, largest_scale)
        high = (low + 1).clamp_(max=largest_scale)
        lost_low, lost_high = lost(low * unit), lost(high * unit)
        scale = torch.where(lost_high < lost_low, high, low)
        total = torch.minimum(lost_low, lost_high).sum(dim=(1, 2), keepdim=True)
        better = total < best
        best = torch.where(better, total, best)
        chosen = torch.where(better, scale, chosen)
        units = torch.where(better, unit, units)
    return chosen, units


def _profile(x: torch.Tensor, importance: torch.Tensor | None) -> _Profile:
    """Measure a block at every step of the search."""
    largest = group_size(x, "largest")
    # Groups below this square to nothing beside the channel's largest weight.
    largest = torch.where(largest < 1e-15, 1.0, largest)
    unit = x / largest
    q, t = torch.empty_like(x), torch.empty_like(x)
    errors = x.new_empty(len(_RATIOS), *largest.shape)
    for i, ratio in enumerate(_RATIOS):
        torch.mul(unit, _SPAN / ratio, out=t)
        torch.round(t, out=q)
        q.clamp_(_LOW, _HIGH).sub_(t).square_()
        if importance is not None:
            q.mul_(importance)
        torch.sum(q, dim=0, out=errors[i])
        errors[i].mul_((ratio / _SPAN) ** 2)
    torch.mul(unit, unit, out=t)
    energy = (t if importance is None else t.mul_(importance)).sum(dim=0)
    square = largest * largest
    return _Profile(largest, errors.mul_(square), energy.mul_(square))


def _lost(found: _Profile, span: torch.Tensor) -> torch.Tensor:
    """The error of every group whose table spans that much, between the measured steps."""
    place = (span / (found.largest * _RATIOS[0])).log_().div_(_LOG_STEP)
    last = len(_RATIOS) - 1
    below = place.clamp(0, last - 1).floor()
    part = (place - below).clamp_(max=1.5)
    index = below.long().unsqueeze(0)
    left, right = (found.errors.gather(0, index + i).squeeze(0) for i in (0, 1))
    between = torch.lerp(left, right, part.clamp_min(0))
    # Coarser than measured: the error of rounding grows with the square of the step.
    coarse = found.errors[0] * (place.clamp_max(0) * (2 * _LOG_STEP)).exp_()
    return torch.where(place < 0, torch.minimum(coarse, found.energy), between)


def refit(
    x: torch.Tensor,
    codes: torch.Tensor,
    table: Table,
    group_scale: torch.Tensor,
    channel_scale: torch.Tensor,
    importance: torch.Tensor | None,
) -> torch.Tensor:
    """The channel scales that lose least with these codes: least squares, in closed form."""
    value = table.look_up(codes)
    weighted = value if importance is None else value * importance
    moment = (weighted * x).sum(dim=0).mul_(group_scale).sum(dim=(1, 2), keepdim=True)
    norm = value.mul_(weighted).sum(dim=0).mul_(group_scale.square()).sum(dim=(1, 2), keepdim=True)
    return torch.where((norm > 0) & (moment > 0), moment / norm, channel_scale)
