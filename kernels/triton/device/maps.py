"""What maps go through before a convolution: group norm, activation, quantisation, concat."""

from __future__ import annotations

import triton
import triton.language as tl

from .language import activate, extent, largest, scale_between, to_int8


@triton.jit
def map_moments(
    x,
    moments,
    pixels,
    per_chunk,
    channels,
    channel_at,
    all_channels,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """Statistics of each channel over each chunk of an image's pixels.

    ``x`` is ``[images, pixels, channels]``; ``moments`` is ``[4, images, chunks, all_channels]``:
    mean, sum of squared distances from it, least and greatest value. The grid is ``(chunks,
    blocks of channels, images)``.
    """
    chunk = tl.program_id(0)
    image = tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < channels
    begin = chunk * per_chunk
    end = tl.minimum(begin + per_chunk, pixels)
    mean = tl.zeros((BC,), tl.float32)
    squares = tl.zeros((BC,), tl.float32)
    low = tl.full((BC,), float("inf"), tl.float32)
    high = tl.full((BC,), float("-inf"), tl.float32)
    for p0 in range(begin, end, BP):
        p = p0 + tl.arange(0, BP)
        mask = (p < end)[:, None] & inside[None, :]
        at = (image * pixels + p)[:, None] * channels + c[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(end - p0, BP) * 1.0
        here = tl.sum(value, 0) / count
        away = tl.where(mask, value - here[None, :], 0.0)
        # Two sets' moments make those of their union (Chan, Golub and LeVeque).
        seen = (p0 - begin) * 1.0
        gap = here - mean
        share = count / (seen + count)
        squares += tl.sum(away * away, 0) + gap * gap * seen * share
        mean += gap * share
        low = tl.minimum(low, tl.min(tl.where(mask, value, float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(mask, value, float("-inf")), 0))
    plane = tl.num_programs(2) * tl.num_programs(0) * all_channels
    at = (image * tl.num_programs(0) + chunk) * all_channels + channel_at + c
    tl.store(moments + at, mean, mask=inside)
    tl.store(moments + plane + at, squares, mask=inside)
    tl.store(moments + 2 * plane + at, low, mask=inside)
    tl.store(moments + 3 * plane + at, high, mask=inside)


@triton.jit
def sums_of(
    moments, c, inside, pixels, per_chunk, chunks, channels, BCHUNK: tl.constexpr, BC: tl.constexpr
):
    """Sums of channels over an image, and whether one is NaN or infinite."""
    image = tl.program_id(1)
    total = tl.zeros((BC,), tl.float32)
    spoiled = tl.zeros((BC,), tl.float32)
    for first in range(0, chunks, BCHUNK):
        chunk = first + tl.arange(0, BCHUNK)
        mask = (chunk < chunks)[:, None] & inside[None, :]
        at = (image * chunks + chunk)[:, None] * channels + c[None, :]
        means = tl.load(moments + at, mask=mask, other=0.0)
        count = tl.minimum(pixels - chunk * per_chunk, per_chunk) * 1.0
        total += tl.sum(means * count[:, None], 0)
        spoiled += tl.sum(means * 0.0, 0)
    return total, spoiled


@triton.jit
def spread_of(
    moments,
    mean,
    c,
    inside,
    pixels,
    per_chunk,
    chunks,
    channels,
    BCHUNK: tl.constexpr,
    BC: tl.constexpr,
):
    """Sums of squared distances from ``mean``, of channels over an image."""
    image = tl.program_id(1)
    spread = tl.zeros((BC,), tl.float32)
    plane = tl.num_programs(1) * chunks * channels
    for first in range(0, chunks, BCHUNK):
        chunk = first + tl.arange(0, BCHUNK)
        mask = (chunk < chunks)[:, None] & inside[None, :]
        at = (image * chunks + chunk)[:, None] * channels + c[None, :]
        count = tl.minimum(pixels - chunk * per_chunk, per_chunk) * 1.0
        gap = tl.where(mask, tl.load(moments + at, mask=mask, other=0.0) - mean, 0.0)
        squares = tl.load(moments + plane + at, mask=mask, other=0.0)
        spread += tl.sum(squares + gap * gap * count[:, None], 0)
    return spread


@triton.jit
def reach_of(moments, c, inside, chunks, channels, BCHUNK: tl.constexpr, BC: tl.constexpr):
    """Least and greatest value of channels over an image; infinities where there is none."""
    image = tl.program_id(1)
    low = tl.full((BC,), float("inf"), tl.float32)
    high = tl.full((BC,), float("-inf"), tl.float32)
    plane = tl.num_programs(1) * chunks * channels
    for first in range(0, chunks, BCHUNK):
        chunk = first + tl.arange(0, BCHUNK)
        mask = (chunk < chunks)[:, None] & inside[None, :]
        at = 2 * plane + (image * chunks + chunk)[:, None] * channels + c[None, :]
        low = tl.minimum(low, tl.min(tl.load(moments + at, mask=mask, other=float("inf")), 0))
        most = tl.load(moments + plane + at, mask=mask, other=float("-inf"))
        high = tl.maximum(high, tl.max(most, 0))
    return low, high


@triton.jit
def map_affine(
    moments0,
    moments1,
    weight,
    bias,
    gain,
    offset,
    extremes,
    pixels,
    per_chunk0,
    per_chunk1,
    chunks0,
    chunks1,
    channels0,
    channels1,
    in_group,
    eps,
    NORM: tl.constexpr,
    BCHUNK: tl.constexpr,
    BC: tl.constexpr,
):
    """A group's norm as one multiplication and addition a channel, and the extremes it gives.

    ``moments0`` and ``moments1`` ``[4, images, chunks, channels]`` are of maps that are
    concatenated along their channels; a channel's chunks may differ between them. Writes ``gain``
    and ``offset`` ``[images, channels]`` with ``NORM``, and ``extremes`` ``[2, images, groups]`` if
    it is not None. The grid is ``(groups, images)``.
    """
    group = tl.program_id(0)
    image = tl.program_id(1)
    channels = channels0 + channels1
    c = group * in_group + tl.arange(0, BC)
    inside = (tl.arange(0, BC) < in_group) & (c < channels)
    inside0 = inside & (c < channels0)
    inside1 = inside & (c >= channels0)
    c1 = c - channels0
    sums, spoiled = sums_of(
        moments0, c, inside0, pixels, per_chunk0, chunks0, channels0, BCHUNK, BC
    )
    if moments1 is not None:
        more, worse = sums_of(
            moments1, c1, inside1, pixels, per_chunk1, chunks1, channels1, BCHUNK, BC
        )
        sums += more
        spoiled += worse
    a = tl.full((BC,), 1.0, tl.float32)
    b = tl.zeros((BC,), tl.float32)
    if NORM:
        total = pixels * in_group * 1.0
        mean = tl.sum(sums, 0) / total
        spread = spread_of(
            moments0, mean, c, inside0, pixels, per_chunk0, chunks0, channels0, BCHUNK, BC
        )
        if moments1 is not None:
            spread += spread_of(
                moments1, mean, c1, inside1, pixels, per_chunk1, chunks1, channels1, BCHUNK, BC
            )
        deviation = 1.0 / tl.sqrt_rn(tl.sum(spread, 0) / total + eps)
        a = a * deviation
        if weight is not None:
            a = a * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
        b = -mean * a
        if bias is not None:
            b = b + tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
        tl.store(gain + image * channels + c, a, mask=inside)
        tl.store(offset + image * channels + c, b, mask=inside)
    if extremes is not None:
        low, high = reach_of(moments0, c, inside0, chunks0, channels0, BCHUNK, BC)
        if moments1 is not None:
            low1, high1 = reach_of(moments1, c1, inside1, chunks1, channels1, BCHUNK, BC)
            low = tl.where(inside1, low1, low)
            high = tl.where(inside1, high1, high)
        first = low * a + b
        second = high * a + b
        least = tl.min(tl.where(inside, tl.minimum(first, second), float("inf")), 0)
        most = tl.max(tl.where(inside, tl.maximum(first, second), float("-inf")), 0)
        # A minimum may pass over a NaN; a mean does not. Infinities become NaN in it or stay.
        spoiled = tl.sum(spoiled, 0)
        spoiled = (spoiled != spoiled) | (least != least) | (most != most)
        least = tl.where(spoiled, float("nan"), least)
        most = tl.where(spoiled, float("nan"), most)
        at = image * tl.num_programs(0) + group
        tl.store(extremes + at, least)
        tl.store(extremes + tl.num_programs(1) * tl.num_programs(0) + at, most)


@triton.jit
def prepare_map(
    x,
    gain,
    offset,
    extremes,
    bounds,
    out,
    scale,
    zero,
    peaks,
    pixels,
    map_height,
    map_width,
    bordered,
    wide,
    top,
    left,
    channels,
    channel_at,
    all_channels,
    width,
    pitch,
    groups,
    BORDER: tl.constexpr,
    PRE: tl.constexpr,
    INTEGER: tl.constexpr,
    DIP: tl.constexpr,
    DEPTH: tl.constexpr,
    BG: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """Normalise, activate and store one input as channels of ``out [images, bordered, pitch]``.

    With ``BORDER`` the ``pixels`` lie in rows of ``wide``, ``top`` rows and ``left`` pixels from
    the border's. ``width`` channels are written from ``channel_at`` on, zeros where the input has
    none. With ``INTEGER`` they are int8: ``zero [images]`` is what stands for 0 and ``scale
    [images]`` takes differences from it back. Their codes begin and end at ``bounds [2]`` if that
    is not None, beyond which values are clamped. ``peaks [images, pixels, blocks of channels]``
    takes the largest magnitudes of what is stored, if it is not None. The grid is ``(blocks of
    pixels, blocks of channels, images)``.
    """
    image = tl.program_id(2)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    real = p < bordered
    source = p
    if BORDER:
        y0 = p // wide - top
        x0 = p % wide - left
        real = real & (y0 >= 0) & (y0 < map_height) & (x0 >= 0) & (x0 < map_width)
        source = y0 * map_width + x0
    mask = real[:, None] & (c < channels)[None, :]
    at = (image * pixels + source)[:, None] * channels + c[None, :]
    y = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if gain is not None:
        at = image * all_channels + channel_at + c
        a = tl.load(gain + at, mask=c < channels, other=0.0)
        b = tl.load(offset + at, mask=c < channels, other=0.0)
        y = y * a[None, :] + b[None, :]
    y = tl.where(mask, activate(y, PRE), 0.0)
    at = (image * bordered + p)[:, None] * pitch + channel_at + c[None, :]
    inside = (p < bordered)[:, None] & (c < width)[None, :]
    if INTEGER:
        group = tl.arange(0, BG)
        at_group = image * groups + group
        low = tl.load(extremes + at_group, mask=group < groups, other=float("inf"))
        at_group += tl.num_programs(2) * groups
        high = tl.load(extremes + at_group, mask=group < groups, other=float("-inf"))
        spoiled = tl.sum(((low != low) & (group < groups)).to(tl.int32), 0) > 0
        least = tl.where(spoiled, float("nan"), tl.min(low, 0))
        most = tl.where(spoiled, float("nan"), tl.max(high, 0))
        if bounds is not None:
            # Neither is finite where a value of the image is not.
            least, most = tl.load(bounds) + least * 0.0, tl.load(bounds + 1) + most * 0.0
        else:
            least, most = extent(least, most, PRE, DIP, DEPTH)
        inverse, nothing, back = scale_between(least, most)
        tl.store(out + at, to_int8(y, inverse, nothing), mask=inside)
        first = (tl.program_id(0) == 0) & (tl.program_id(1) == 0) & (channel_at == 0)
        tl.store(scale + image, back, mask=first)
        tl.store(zero + image, nothing.to(tl.int32), mask=first)
    else:
        y = y.to(out.dtype.element_ty)
        tl.store(out + at, y, mask=inside)
        if peaks is not None:
            at = (image * bordered + p) * tl.num_programs(1) + tl.program_id(1)
            tl.store(peaks + at, largest(y.to(tl.float32)), mask=p < bordered)
