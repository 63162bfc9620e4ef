"""What rows go through before a product: layer norm, activation, quantisation."""

from __future__ import annotations

import triton
import triton.language as tl

from .language import activate, largest, scale_of, to_int8


@triton.jit
def moments(x, K, eps, mask):
    """Mean and reciprocal deviation of whole rows held in registers."""
    mean = tl.sum(tl.where(mask, x, 0.0), 1) / K
    away = tl.where(mask, x - mean[:, None], 0.0)
    deviation = 1.0 / tl.sqrt_rn(tl.sum(away * away, 1) / K + eps)
    return mean, deviation


@triton.jit
def row_moments(x, mean, deviation, M, K, eps, BM: tl.constexpr, BK: tl.constexpr):
    """Mean and reciprocal deviation of each row of ``x [M, K]``, for a norm in a product's load."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.arange(0, BK)
    mask = (rows < M)[:, None] & (k < K)[None, :]
    values = tl.load(x + rows[:, None] * K + k[None, :], mask=mask, other=0.0).to(tl.float32)
    m, d = moments(values, K, eps, mask)
    tl.store(mean + rows, m, mask=rows < M)
    tl.store(deviation + rows, d, mask=rows < M)


@triton.jit
def prepare_rows(
    x,
    gain,
    offset,
    bounds,
    out,
    scale,
    M,
    K,
    pitch,
    eps,
    NORM: tl.constexpr,
    PRE: tl.constexpr,
    INTEGER: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Layer norm, activate and store rows ``[M, pitch]``, zeros past ``K``; int8 with a scale.

    The scale is of a row's largest magnitude, or with ``bounds [2]`` of theirs, beyond which values
    are clamped; it is not finite where a value that is activated is not.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.arange(0, BK)
    mask = (rows < M)[:, None] & (k < K)[None, :]
    y = tl.load(x + rows[:, None] * K + k[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        mean, deviation = moments(y, K, eps, mask)
        y = (y - mean[:, None]) * deviation[:, None]
        if gain is not None:
            y = y * tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
        if offset is not None:
            y = y + tl.load(offset + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    if bounds is not None:
        spoiled = tl.sum(tl.where(mask, y * 0.0, 0.0), 1)
    y = tl.where(mask, activate(y, PRE), 0.0)
    at = rows[:, None] * pitch + k[None, :]
    inside = (rows < M)[:, None] & (k < pitch)[None, :]
    if INTEGER:
        if bounds is not None:
            top = tl.maximum(-tl.load(bounds), tl.load(bounds + 1)) + spoiled
        else:
            top = largest(y)
        inverse, back = scale_of(top, 127)
        codes = to_int8(y, inverse[:, None], 0.0)
        if bounds is not None:
            codes = tl.maximum(codes, -127)
        tl.store(out + at, codes, mask=inside)
        tl.store(scale + rows, back, mask=rows < M)
    else:
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)
