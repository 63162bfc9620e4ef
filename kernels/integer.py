"""The integer arithmetic of coded weights, in plain torch: what every target must match.

Activations become int8 by one scale a token or an image, weights are int8 by one scale a column,
products add up exactly, and one multiplication takes the sums back.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import torch

from .activation import ACTIVATIONS, DIPS

#: Consecutive input channels that share an integer scale.
GROUP = 64

#: The largest code: symmetric, so that a product of two negated operands is the same.
LIMIT = 127

#: What absolute maxima are raised to, so that neither scale nor inverse leaves fp32.
SMALLEST = 2.0**-100

#: Values of K whose products are certain to add up within int32.
LONGEST = (2**31 - 1) // LIMIT**2


def extent(low: torch.Tensor, high: torch.Tensor, activation: str) -> torch.Tensor:
    """The largest magnitude an activation reaches between two values: a scale's absolute maximum.

    A result may lie below it only where the values straddle an activation's dip and none is in
    it. So the extremes of what goes into an activation are all that is needed of it.
    """
    fn = ACTIVATIONS[activation]
    largest = torch.maximum(fn(low).abs(), fn(high).abs())
    if activation in DIPS:
        where, depth = DIPS[activation]
        inside = (low < where) & (high > where)
        largest = torch.maximum(largest, inside * largest.new_tensor(depth))
    return largest


def quantise(x: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes of an fp32 tensor, and the scale that takes them back.

    ``largest`` broadcasts against ``x``. Where it is not finite, neither is the scale, and the
    codes say nothing.
    """
    largest = torch.where(largest < SMALLEST, SMALLEST, largest)
    codes = torch.round(x * (LIMIT / largest)).nan_to_num().clamp(-LIMIT, LIMIT)
    return codes.to(torch.int8), largest / LIMIT


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


def wide(*tensors: torch.Tensor | None) -> list[Any]:
    """The tensors that there are, in fp32."""
    return [None if t is None else t.float() for t in tensors]
