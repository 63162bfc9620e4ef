"""The integer arithmetic of coded weights, in plain torch: what every target must match.

Activations become int8 by one scale a token, or one scale and one zero an image; weights are int8
by one scale a column, products add up exactly, and one multiplication takes the sums back.

An image's values lie mostly on one side of 0 (behind SiLU none is below -0.28), so its codes begin
at the least of them: a zero of its own halves the scale. Tokens come from layer norms, which
centre them: their zero is 0.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from .activation import ACTIVATIONS, DIPS

#: Consecutive input channels that share an integer scale.
GROUP = 64

#: The largest weight and code of a token: symmetric, so that both signs have the same codes.
LIMIT = 127

#: Codes from an image's least value to its largest.
SPAN = 2 * LIMIT

#: What absolute maxima and spans are raised to, so that neither scale nor inverse leaves fp32.
SMALLEST = 2.0**-100

#: Values of K whose products are certain to add up within int32.
LONGEST = (2**31 - 1) // (SPAN * LIMIT)

#: Added to an fp32, it leaves the nearest integer, halves to even.
ROUND = 1.5 * 2.0**23

#: Codes of weights that are summed at a time.
_TOGETHER = 1 << 20


def extent(
    low: torch.Tensor, high: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest value an activation takes between two values and 0.

    No result may be as low only where no value lies in an activation's dip. So the extremes of
    what goes into an activation are all that is needed of it. 0 counts because padding is 0.
    """
    fn = ACTIVATIONS[activation]
    low, high = low.clamp(max=0), high.clamp(min=0)
    least, most = fn(low), fn(high)
    if activation in DIPS:
        where, depth = DIPS[activation]
        least = torch.minimum(least, (low < where) * least.new_tensor(-depth))
    return least, most


def image_ends(
    x: torch.Tensor, activation: str, bounds: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Between which values images are quantised, ``(N, 1, 1, 1)`` each: their own, or given ones.

    Args:
        x: fp32 ``(N, C, H, W)``, what goes into the activation.
        activation: its name.
        bounds: fp32 ``(2,)``, the ends for every image; None finds each image's own.

    Returns:
        both ends of what comes out, not finite where a value of the image is not.
    """
    if bounds is None:
        low, high = (fn((1, 2, 3), keepdim=True) for fn in (x.amin, x.amax))
        return extent(low, high, activation)
    spoilt = (x * 0).sum((1, 2, 3), keepdim=True)
    return bounds[0] + spoilt, bounds[1] + spoilt


def token_largest(
    x: torch.Tensor, activated: torch.Tensor, bounds: torch.Tensor | None
) -> torch.Tensor:
    """The magnitude that rows are quantised by, ``(..., 1)``: their own largest, or a given one.

    Args:
        x: fp32 ``(..., K)``, what goes into the activation.
        activated: what comes out.
        bounds: fp32 ``(2,)``, the ends of which the larger is for every row; None finds each
            row's own.

    Returns:
        not finite where a value of the row is not.
    """
    if bounds is None:
        return activated.abs().amax(-1, keepdim=True)
    return bounds.abs().amax() + (x * 0).sum(-1, keepdim=True)


def quantise(x: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes of an fp32 tensor, and the scale that takes them back; larger values clamp.

    ``largest`` broadcasts against ``x``. Where it is not finite, neither is the scale, and the
    codes say nothing.
    """
    largest = torch.where(largest < SMALLEST, SMALLEST, largest)
    codes = torch.round(x * (largest.new_tensor(LIMIT) / largest)).nan_to_num()
    return codes.clamp(-LIMIT, LIMIT).to(torch.int8), largest / LIMIT


def quantise_between(
    x: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """int8 codes of an fp32 tensor between two values, the code of 0, and the scale.

    ``x`` is about ``scale * (codes - zero)``; 0 is so exactly. ``low`` and ``high``, which
    broadcast against ``x``, are neither above nor below 0. The zero is rounded towards the codes'
    lower end, which has one to spare: so values need not be clamped, those at the ends included.
    Those beyond the ends are clamped, at most a step beyond.

    Args:
        x: fp32.
        low: where the codes begin.
        high: where they end.

    Returns:
        int8 codes, int8 zeros and fp32 scales, these two in the shape of ``low``. Where ``low`` or
        ``high`` is not finite, neither is the scale, and codes and zero say nothing.
    """
    span = high - low
    span = torch.where(span < SMALLEST, SMALLEST, span)
    inverse = span.new_tensor(SPAN) / span
    zero = (torch.floor(-low * inverse) - LIMIT).nan_to_num()
    codes = (x * inverse + (ROUND + zero) - ROUND).nan_to_num().clamp(-LIMIT - 1, LIMIT)
    return codes.to(torch.int8), zero.to(torch.int8), span / SPAN


_sums: contextvars.ContextVar[torch.dtype] = contextvars.ContextVar("sums", default=torch.float64)


def terms(codes: torch.Tensor) -> torch.Tensor:
    """Integers as the type that references sum products in: fp64, which is exact."""
    return codes.to(_sums.get())


@contextlib.contextmanager
def sums_in(dtype: torch.dtype) -> Iterator[None]:
    """Let references sum in another type inside the block: fp32 errs by 1e-7 and is far faster."""
    token = _sums.set(dtype)
    try:
        yield
    finally:
        _sums.reset(token)


def integer_weight(
    weight: torch.Tensor, table: torch.Tensor | None, group_scale: torch.Tensor | None
) -> torch.Tensor:
    """int8 weights of codes.

    Args:
        weight: int8 values, or uint8 indices into ``table``; ``(N, C, ...)``.
        table: int8, as many entries as there are codes, or None.
        group_scale: int8, ``(N, ceil(C / 64), ...)``, or None.
    """
    values = weight if table is None else table[weight.long()]
    if group_scale is None:
        return values
    return values * group_scale.repeat_interleave(GROUP, dim=1)[:, : weight.shape[1]]


def column_sums(
    weight: torch.Tensor, table: torch.Tensor | None, group_scale: torch.Tensor | None
) -> torch.Tensor:
    """What the int8 weights of each column add up to: int32 ``(N,)``.

    Codes are padded with code 0 to whole groups, as kernels do that decode whole groups.
    """
    if table is None or group_scale is None:
        return weight.flatten(1).sum(1, dtype=torch.int32)
    groups = group_scale.shape[1]
    rest = groups * GROUP - weight.shape[1]
    padding = (0, 0) * (weight.dim() - 2) + (0, rest)
    sums = []
    few = max(1, _TOGETHER // max(1, weight[0].numel()))  # indices are four times the codes
    for rows, scale in zip(weight.split(few), group_scale.split(few), strict=True):
        codes = F.pad(rows, padding).flatten().int()
        values = table.index_select(0, codes).view(len(rows), groups, GROUP, -1)
        of_groups = values.sum(2, dtype=torch.int32) * scale.reshape(len(rows), groups, -1)
        sums.append(of_groups.flatten(1).sum(1, dtype=torch.int32))
    return torch.cat(sums)


def wide(*tensors: torch.Tensor | None) -> list[Any]:
    """The tensors that there are, in fp32."""
    return [None if t is None else t.float() for t in tensors]
