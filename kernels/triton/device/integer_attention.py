"""Attention in int8 products: its keys and values as codes, and the loop over them."""

from __future__ import annotations

import triton
import triton.language as tl

from .language import biased, largest, magnitude, scale_of, to_int8


@triton.jit
def head_rows(x, rows, length, pitch, at, heads, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of one head in fp32, ``[rows, WIDTH]``; zeros past ``length`` and ``HEAD``."""
    image = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    d = tl.arange(0, WIDTH)
    first = (image * length + rows) * pitch + at + head * HEAD
    inside = (rows < length)[:, None] & (d < HEAD)[None, :]
    return tl.load(x + first[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def key_sums(
    k,
    sums,
    keys,
    k_pitch,
    k_at,
    heads,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    BN: tl.constexpr,
):
    """Add up each block of keys: fp32 ``sums [images · heads, blocks, WIDTH]``.

    The grid is ``(blocks, images · heads)``.
    """
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    x = head_rows(k, rows, keys, k_pitch, k_at, heads, HEAD, WIDTH)
    at = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * WIDTH
    tl.store(sums + at + tl.arange(0, WIDTH), tl.sum(x, 0))


@triton.jit
def quantise_keys(
    k,
    v,
    sums,
    k8,
    k_scale,
    v8,
    v_scale,
    v_sum,
    keys,
    k_pitch,
    v_pitch,
    k_at,
    v_at,
    heads,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    PITCH: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
):
    """A block of keys less the mean of all, and its values, as codes.

    ``k8 [images · heads, blocks · BN, PITCH]`` has one ``k_scale [images · heads, blocks]`` a
    block. ``v8 [images · heads, PITCH, blocks · BN]`` lies along the keys, as the tensor cores
    take bytes along what they sum; it has one ``v_scale [images · heads, blocks, PITCH]`` a block
    and column, whose codes add up to a 128th of ``v_sum``. Codes past the last key and past
    ``HEAD`` are zero. ``BP`` partial sums are read at once. The grid is ``(blocks, images ·
    heads)``.
    """
    block = tl.program_id(0)
    blocks = tl.num_programs(0)
    plane = tl.program_id(1)
    n = block * BN + tl.arange(0, BN)
    d = tl.arange(0, WIDTH)
    mean = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, blocks, BP):
        part = first + tl.arange(0, BP)
        at = (plane * blocks + part)[:, None] * WIDTH + d[None, :]
        mean += tl.sum(tl.load(sums + at, mask=(part < blocks)[:, None], other=0.0), 0)
    mean = tl.div_rn(mean, keys * 1.0)
    stored = (d < PITCH)[None, :]
    x = head_rows(k, n, keys, k_pitch, k_at, heads, HEAD, WIDTH)
    x = tl.where((n < keys)[:, None] & (d < HEAD)[None, :], x - mean[None, :], 0.0)
    inverse, back = scale_of(tl.max(tl.max(magnitude(x), 1), 0), 127)
    at = (plane * blocks * BN + n)[:, None] * PITCH + d[None, :]
    tl.store(k8 + at, to_int8(x, inverse, 0.0), mask=stored)
    tl.store(k_scale + plane * blocks + block, back)
    y = head_rows(v, n, keys, v_pitch, v_at, heads, HEAD, WIDTH)
    inverse, back = scale_of(tl.max(magnitude(y), 0), 127)
    codes = to_int8(y, inverse[None, :], 0.0)
    at = (plane * PITCH + d)[:, None] * (blocks * BN) + n[None, :]
    tl.store(v8 + at, codes.T, mask=(d < PITCH)[:, None])
    at = (plane * blocks + block) * PITCH + d
    tl.store(v_scale + at, back, mask=d < PITCH)
    tl.store(v_sum + at, 128 * tl.sum(codes.to(tl.int32), 0), mask=d < PITCH)


@triton.jit
def integer_attention(
    q,
    k8,
    k_scale,
    v8,
    v_scale,
    v_sum,
    out,
    peaks,
    queries,
    keys,
    blocks,
    q_pitch,
    q_at,
    heads,
    scale,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    PITCH: tl.constexpr,
    NEGATIVE: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``softmax(scale · q kᵀ) v`` of one block of queries of one head, in int8 products.

    ``k8`` to ``v_sum`` are as :func:`quantise_keys` writes them, with its ``BN``. ``scale`` is not
    negative: with ``NEGATIVE`` the queries are negated instead, so that the largest sum is the
    largest score. With ``peaks [images · queries, heads]`` it gathers the largest magnitude of
    each query's result. The grid is ``(blocks of queries, images · heads)``.
    """
    plane = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, WIDTH)
    n = tl.arange(0, BN)
    a = head_rows(q, rows, queries, q_pitch, q_at, heads, HEAD, WIDTH)
    if NEGATIVE:
        a = -a
    inverse, back = scale_of(tl.max(magnitude(a), 1), 127)
    q8 = to_int8(a, inverse[:, None], 0.0)
    back = back * scale
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, WIDTH), tl.float32)
    k_at = (plane * blocks * BN + n)[:, None] * PITCH + d[None, :]
    v_at = (plane * PITCH + d)[:, None] * (blocks * BN) + n[None, :]
    for block in range(0, blocks):
        if WIDTH == PITCH:
            b = tl.load(k8 + k_at + block * (BN * PITCH))
            c = tl.load(v8 + v_at + block * BN)
        else:
            b = tl.load(k8 + k_at + block * (BN * PITCH), mask=(d < PITCH)[None, :], other=0)
            c = tl.load(v8 + v_at + block * BN, mask=(d < PITCH)[:, None], other=0)
        s = biased(tl.dot(q8, b.T))
        # Biased sums are positive, so that 0 is below all. (AMD keeps conditions in few registers;
        # as factors they are in the many.)
        seen = tl.where(block * BN + n < keys, 1.0, 0.0)[None, :]
        if not EVEN:
            s = s * seen
        peak = tl.max(s, 1)
        factor = back * tl.load(k_scale + plane * blocks + block)
        p = tl.exp2((s - peak[:, None]) * (factor * 1.4426950408889634)[:, None])
        if not EVEN:
            p = p * seen
        at = (plane * blocks + block) * PITCH + d
        columns = tl.load(v_scale + at, mask=d < PITCH, other=0.0)
        more = tl.load(v_sum + at, mask=d < PITCH, other=0)
        # Weights of 0 to 255 are signed codes less 128, rounded as in to_int8; the values' sums
        # bring the 128 back.
        p = p * 255.0 + 12582784.0
        here = (peak - 12582912.0) * factor
        new = tl.where(here > top, here, top)
        shrink = tl.exp2((top - new) * 1.4426950408889634)
        part = tl.exp2((here - new) * 1.4426950408889634)
        total = total * shrink + tl.sum(p - 12582784.0, 1) * part
        y = tl.dot(p.to(tl.int32, bitcast=True).to(tl.int8), c.T)
        y = biased(y + more[None, :]) - 12582912.0
        acc = acc * shrink[:, None] + y * (columns[None, :] * part[:, None])
        top = new
    y = acc / total[:, None]
    at = (plane // heads * queries + rows) * heads + plane % heads
    stored = (rows < queries)[:, None] & (d < HEAD)[None, :]
    y = y.to(out.dtype.element_ty)
    tl.store(out + (at * HEAD)[:, None] + d[None, :], y, mask=stored)
    if peaks is not None:
        top = largest(tl.where(stored, y.to(tl.float32), 0.0))
        tl.store(peaks + at, top, mask=rows < queries)
