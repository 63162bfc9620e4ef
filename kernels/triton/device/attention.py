"""Flash attention: the scores of a block of queries never leave the multiprocessor."""

from __future__ import annotations

import triton
import triton.language as tl

from .language import largest


@triton.jit
def attention(
    q,
    k,
    v,
    mask,
    out,
    peaks,
    queries,
    keys,
    q_pitch,
    k_pitch,
    v_pitch,
    q_at,
    k_at,
    v_at,
    heads,
    mask_batch,
    mask_head,
    mask_query,
    mask_key,
    scale,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr,
    BOOLEAN: tl.constexpr,
    EVEN: tl.constexpr,
    ROUND: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``softmax(scale · q kᵀ + mask) v`` of one block of queries of one head.

    Rows of ``q``, ``k`` and ``v`` are ``*_pitch`` elements apart, their heads ``HEAD`` wide from
    ``*_at`` on; ``WIDTH`` is ``HEAD`` rounded up to a power of two. With ``ROUND`` they are
    multiplied in bf16. With ``peaks [batch · queries, heads]`` it gathers the largest magnitude of
    each query's result. The grid is ``(blocks of queries, batch · heads)``.
    """
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    here = tl.minimum(rows, queries - 1)
    d = tl.arange(0, WIDTH)
    q_rows = (batch * queries + here) * q_pitch + q_at + head * HEAD
    if WIDTH == HEAD:
        a = tl.load(q + q_rows[:, None] + d[None, :])
    else:
        a = tl.load(q + q_rows[:, None] + d[None, :], mask=(d < HEAD)[None, :], other=0.0)
    if ROUND:
        a = a.to(tl.bfloat16)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, WIDTH), tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, (tl.program_id(0) + 1) * BM)
    for start in range(0, end, BN):
        columns = start + tl.arange(0, BN)
        # Keys past the end repeat the last one and are masked below: 0 · NaN would be NaN.
        there = columns
        if not EVEN:
            there = tl.minimum(columns, keys - 1)
        k_rows = (batch * keys + there) * k_pitch + k_at + head * HEAD
        v_rows = (batch * keys + there) * v_pitch + v_at + head * HEAD
        if WIDTH == HEAD:
            b = tl.load(k + k_rows[:, None] + d[None, :])
            c = tl.load(v + v_rows[:, None] + d[None, :])
        else:
            b = tl.load(k + k_rows[:, None] + d[None, :], mask=(d < HEAD)[None, :], other=0.0)
            c = tl.load(v + v_rows[:, None] + d[None, :], mask=(d < HEAD)[None, :], other=0.0)
        if ROUND:
            b = b.to(tl.bfloat16)
            c = c.to(tl.bfloat16)
        # Exponents are powers of two, whose instruction is a multiplication cheaper: the factor
        # goes into the scale, unless a mask may hold numbers it would push past the lowest.
        s = tl.dot(a, b.T, input_precision=PRECISION)
        s = s * scale if mask is not None else s * (scale * 1.4426950408889634)
        if mask is not None:
            at = batch * mask_batch + head * mask_head
            at = at + (here * mask_query)[:, None] + (there * mask_key)[None, :]
            m = tl.load(mask + at)
            if BOOLEAN:
                s = tl.where(m != 0, s, float("-inf"))
            else:
                s = s + m.to(tl.float32)
        if CAUSAL:
            s = tl.where(rows[:, None] >= columns[None, :], s, float("-inf"))
        if not EVEN:
            # AMD keeps conditions in few registers; what is added is in the many.
            s = s + tl.where(columns < keys, 0.0, float("-inf"))[None, :]
        peak = tl.max(s, 1)
        new = tl.where(peak > top, peak, top)
        # Rows that have seen no key yet: any finite number does.
        base = tl.where(new == float("-inf"), 0.0, new)
        s = s - base[:, None]
        shrink = top - base
        if mask is not None:
            s = s * 1.4426950408889634
            shrink = shrink * 1.4426950408889634
        p = tl.exp2(s)
        shrink = tl.exp2(shrink)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(c.dtype), c, acc, input_precision=PRECISION)
        top = new
    # Zero where every key is masked, as torch has it; a NaN is no zero.
    y = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    at = ((batch * queries + rows) * heads + head) * HEAD
    stored = (rows < queries)[:, None] & (d < HEAD)[None, :]
    y = y.to(out.dtype.element_ty)
    tl.store(out + at[:, None] + d[None, :], y, mask=stored)
    if peaks is not None:
        # Past HEAD are zeros, or NaN like the whole row.
        at = (batch * queries + rows) * heads + head
        tl.store(peaks + at, largest(y.to(tl.float32)), mask=rows < queries)
