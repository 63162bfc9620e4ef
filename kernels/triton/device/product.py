"""Matrix products whose left operand is rows or a map read as rows, and what follows them."""

from __future__ import annotations

import triton
import triton.language as tl

from .decode import decode
from .language import activate, gelu, largest, scale_of, tile_of, to_int8


@triton.jit
def scales_of(peaks, rows, blocks):
    """What rows are multiplied by to give codes, and the scales back, of their blocks' peaks."""
    top = tl.zeros_like(rows).to(tl.float32)
    spoiled = tl.zeros_like(rows)
    for first in range(0, blocks, 16):
        block = first + tl.arange(0, 16)
        at = rows[:, None] * blocks + block[None, :]
        peak = tl.load(peaks + at, mask=(block < blocks)[None, :], other=0.0)
        spoiled += tl.sum((peak != peak).to(tl.int32), 1)
        top = tl.maximum(top, tl.max(tl.where(peak == peak, peak, 0.0), 1))
    return scale_of(tl.where(spoiled > 0, float("nan"), top), 127)


@triton.jit
def accumulate(
    acc,
    x,
    w,
    table,
    group_scale,
    mean,
    deviation,
    gain,
    offset,
    rows,
    columns,
    tensor,
    begin,
    end,
    depth_at,
    depth,
    channel_at,
    channels,
    chunks,
    pixels,
    out_width,
    height,
    width,
    top,
    left,
    MAP: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    BORDER: tl.constexpr,
    NORM: tl.constexpr,
    PRE: tl.constexpr,
    CODES: tl.constexpr,
    PERMUTE: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Add one input's part of the product: steps ``begin`` to ``end`` over taps and channels."""
    k = tl.arange(0, BK)
    if MAP:
        image = rows // pixels
        pixel = rows % pixels
        y0 = pixel // out_width * STRIDE_H - top
        x0 = pixel % out_width * STRIDE_W - left
        if UPSAMPLE:
            source_height = height // 2
            source_width = width // 2
        else:
            source_height = height
            source_width = width
    for step in range(begin, end):
        if MAP:
            tap = step // chunks
            c = (step - tap * chunks) * BK + k
            yy = y0 + tap // KW * DILATION_H
            xx = x0 + tap % KW * DILATION_W
            inside = (yy >= 0) & (yy < height) & (xx >= 0) & (xx < width)
            if UPSAMPLE:
                yy = yy // 2
                xx = xx // 2
            at = ((image * source_height + yy) * source_width + xx) * channels
            mask = inside[:, None]
            if not EVEN:
                mask = mask & (c < channels)[None, :]
            if BORDER and EVEN:
                a = tl.load(x + at[:, None] + c[None, :])
            else:
                a = tl.load(x + at[:, None] + c[None, :], mask=mask, other=0.0)
        else:
            c = step * BK + k
            at = rows * channels
            if EVEN:
                a = tl.load(x + at[:, None] + c[None, :])
            else:
                mask = (c < channels)[None, :]
                a = tl.load(x + at[:, None] + c[None, :], mask=mask, other=0.0)
        if NORM == "rows":
            y = (a.to(tl.float32) - mean[:, None]) * deviation[:, None]
            if gain is not None:
                y = y * tl.load(gain + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
            if offset is not None:
                y = y + tl.load(offset + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
            y = activate(y, PRE)
            if not EVEN:
                y = tl.where(mask, y, 0.0)
            a = y.to(x.dtype.element_ty)
        elif NORM == "map":
            # All rows of a block lie in one image here, whose channels have one affine each.
            place = tensor + channel_at + c
            scale = tl.load(gain + place, mask=c < channels, other=0.0)
            shift = tl.load(offset + place, mask=c < channels, other=0.0)
            y = activate(a.to(tl.float32) * scale[None, :] + shift[None, :], PRE)
            a = tl.where(mask, y, 0.0).to(x.dtype.element_ty)
        elif NORM == "codes":
            # Past the end are zeros, whose code is zero.
            a = to_int8(a.to(tl.float32), deviation[:, None], 0.0)
        elif PRE != "none":
            y = activate(a.to(tl.float32), PRE)
            if MAP or not EVEN:
                y = tl.where(mask, y, 0.0)
            a = y.to(x.dtype.element_ty)
        if CODES:
            half = (depth_at + step * BK) // 2 + tl.arange(0, BK // 2)
            codes = tl.load(w + columns[:, None] * (depth // 2) + half[None, :])
            b = decode(codes, table, PERMUTE)
            group = (depth_at + step * BK) // 64
            b = b * tl.load(group_scale + columns * (depth // 64) + group)[:, None]
        else:
            b = tl.load(w + columns[:, None] * depth + (depth_at + step * BK + k)[None, :])
        if b.dtype != a.dtype:
            b = b.to(a.dtype)
        acc = tl.dot(a, b.T, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def epilogue(
    acc,
    out,
    row_scale,
    row_zero,
    channel_scale,
    column_sum,
    bias,
    shift,
    residual,
    read_peaks,
    moments,
    peaks,
    m0,
    n0,
    M,
    N,
    pixels,
    read_blocks,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Scale, add the bias, activate or gate, add shift and residual, store one block.

    With ``moments`` ``[4, M / BM, N]``, of which no block lies past an end, it gathers what
    :func:`~.maps.map_moments` would of what is stored. With ``peaks`` ``[M, columns of blocks]``
    it gathers the largest magnitude of each row in its block; ``read_peaks`` are those of the rows
    that were multiplied.
    """
    rows = m0 + tl.arange(0, BM)
    columns = n0 + tl.arange(0, BN)
    if row_zero is not None:
        zero = tl.load(row_zero + rows // pixels, mask=rows < M, other=0)
        acc -= zero[:, None] * tl.load(column_sum + columns, mask=columns < N, other=0)[None, :]
    y = acc.to(tl.float32)
    if channel_scale is not None:
        scale = tl.load(channel_scale + columns, mask=columns < N, other=0.0)[None, :]
        if row_scale is not None:
            # One scale a row, or with ``pixels`` rows an image, one an image.
            scale = tl.load(row_scale + rows // pixels, mask=rows < M, other=0.0)[:, None] * scale
        if read_peaks is not None:
            _, back = scales_of(read_peaks, tl.minimum(rows, M - 1), read_blocks)
            scale = back[:, None] * scale
        y = y * scale
    if bias is not None:
        y = y + tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    block = n0 // BN
    blocks = tl.cdiv(N, BN)
    if GATED:
        # Columns alternate between value and gate, so both lie in one thread's registers.
        value, gate = tl.split(y.reshape(BM, BN // 2, 2))
        y = value * gelu(gate)
        N = N // 2
        columns = n0 // 2 + tl.arange(0, BN // 2)
    else:
        y = activate(y, ACTIVATION)
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    if shift is not None:
        at = (rows // pixels * N)[:, None] + columns[None, :]
        y = y + tl.load(shift + at, mask=mask, other=0.0).to(tl.float32)
    at = rows[:, None] * N + columns[None, :]
    if residual is not None:
        y = y + tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    y = y.to(out.dtype.element_ty)
    tl.store(out + at, y, mask=mask)
    if moments is not None:
        value = y.to(tl.float32)
        mean = tl.sum(value, 0) / BM
        away = value - mean[None, :]
        inside = columns < N
        plane = M // BM * N
        at_column = m0 // BM * N + columns
        tl.store(moments + at_column, mean, mask=inside)
        tl.store(moments + plane + at_column, tl.sum(away * away, 0), mask=inside)
        tl.store(moments + 2 * plane + at_column, tl.min(value, 0), mask=inside)
        tl.store(moments + 3 * plane + at_column, tl.max(value, 0), mask=inside)
    if peaks is not None:
        top = largest(tl.where(mask, y.to(tl.float32), 0.0))
        tl.store(peaks + rows * blocks + block, top, mask=rows < M)


#: Numbers that no address is a multiple of: one code serves all their values.
_ANY = "M steps0 steps1 chunks0 chunks1 per_split out_width height width top left group".split()
_ANY += ["read_blocks"]


@triton.jit(do_not_specialize=_ANY)
def product(
    x0,
    x1,
    w,
    table,
    group_scale,
    mean,
    deviation,
    gain,
    offset,
    row_scale,
    row_zero,
    channel_scale,
    column_sum,
    bias,
    shift,
    residual,
    read_peaks,
    moments,
    peaks,
    out,
    partial,
    M,
    N,
    depth,
    depth1,
    channels0,
    channels1,
    chunks0,
    chunks1,
    steps0,
    steps1,
    per_split,
    pixels,
    read_blocks,
    out_width,
    height,
    width,
    top,
    left,
    group,
    MAP: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    BORDER: tl.constexpr,
    NORM: tl.constexpr,
    PRE: tl.constexpr,
    CODES: tl.constexpr,
    PERMUTE: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    INTEGER: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One block of ``out``, or of one split's partial sums.

    ``x0`` and ``x1`` are rows ``[M, channels]`` or, with ``MAP``, maps ``[images, height, width,
    channels]`` (halved in height and width with ``UPSAMPLE``) concatenated along the channels;
    with ``BORDER`` all that taps reach is in them.
    ``w`` is ``[N, depth]``: for each input its taps, for each tap its channels, padded with zeros
    to whole blocks. Programs walk down ``group`` block rows at a time.
    """
    block_m, block_n = tile_of(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), group)
    # Rows and columns past the end repeat the last one: loads need no mask, the store has one.
    rows = tl.minimum(block_m * BM + tl.arange(0, BM), M - 1)
    columns = tl.minimum(block_n * BN + tl.arange(0, BN), N - 1)
    if INTEGER:
        acc = tl.zeros((BM, BN), tl.int32)
    else:
        acc = tl.zeros((BM, BN), tl.float32)
    begin = 0
    end = steps0
    end1 = steps1
    if SPLIT > 1:
        begin = tl.program_id(1) * per_split
        end = tl.minimum(begin + per_split, steps0)
        end1 = tl.minimum(begin + per_split - steps0, steps1)
    row_mean = None
    row_deviation = None
    if NORM == "rows":
        row_mean = tl.load(mean + rows)
        row_deviation = tl.load(deviation + rows)
    elif NORM == "codes":
        row_deviation, _ = scales_of(read_peaks, rows, read_blocks)
    tensor = block_m * BM // pixels * (channels0 + channels1)
    acc = accumulate(
        acc, x0, w, table, group_scale, row_mean, row_deviation, gain, offset, rows, columns,
        tensor, begin, end, 0, depth, 0, channels0, chunks0, pixels, out_width, height, width,
        top, left, MAP, KW, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, UPSAMPLE, BORDER, NORM,
        PRE, CODES, PERMUTE, EVEN, PRECISION, BN, BK,
    )  # fmt: skip
    if x1 is not None:
        begin1 = tl.maximum(begin - steps0, 0)
        acc = accumulate(
            acc, x1, w, table, group_scale, row_mean, row_deviation, gain, offset, rows, columns,
            tensor, begin1, end1, depth1, depth, channels0, channels1, chunks1, pixels, out_width,
            height, width, top, left, MAP, KW, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W,
            UPSAMPLE, BORDER, NORM, PRE, CODES, PERMUTE, EVEN, PRECISION, BN, BK,
        )  # fmt: skip
    if SPLIT > 1:
        at_m = block_m * BM + tl.arange(0, BM)
        at_n = block_n * BN + tl.arange(0, BN)
        at = (tl.program_id(1) * M + at_m)[:, None] * N + at_n[None, :]
        tl.store(partial + at, acc, mask=(at_m < M)[:, None] & (at_n < N)[None, :])
    else:
        epilogue(
            acc, out, row_scale, row_zero, channel_scale, column_sum, bias, shift, residual,
            read_peaks, moments, peaks, block_m * BM, block_n * BN, M, N, pixels, read_blocks, BM,
            BN, GATED, ACTIVATION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M", "read_blocks"])
def finish(
    partial,
    row_scale,
    row_zero,
    channel_scale,
    column_sum,
    bias,
    shift,
    residual,
    read_peaks,
    moments,
    peaks,
    out,
    M,
    N,
    pixels,
    read_blocks,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Add up the splits' partial sums ``[SPLIT, M, N]`` in order, then what follows a product."""
    m0 = tl.program_id(0) * BM
    n0 = tl.program_id(1) * BN
    rows = m0 + tl.arange(0, BM)
    columns = n0 + tl.arange(0, BN)
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    at = rows[:, None] * N + columns[None, :]
    acc = tl.load(partial + at, mask=mask, other=0)
    for split in range(1, SPLIT):
        acc += tl.load(partial + split * M * N + at, mask=mask, other=0)
    epilogue(
        acc, out, row_scale, row_zero, channel_scale, column_sum, bias, shift, residual,
        read_peaks, moments, peaks, m0, n0, M, N, pixels, read_blocks, BM, BN, GATED, ACTIVATION,
    )  # fmt: skip


@triton.jit
def expand(
    codes,
    table,
    group_scale,
    out,
    N,
    depth,
    PERMUTE: tl.constexpr,
    BN: tl.constexpr,
):
    """Decode weights ``[N, depth / 2]`` to int8 ``[N, depth]``, a group of channels a program."""
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    group = tl.program_id(1)
    mask = (columns < N)[:, None]
    at = columns[:, None] * (depth // 2) + (group * 32 + tl.arange(0, 32))[None, :]
    w = decode(tl.load(codes + at, mask=mask, other=0), table, PERMUTE)
    scale = tl.load(group_scale + columns * (depth // 64) + group, mask=columns < N, other=0)
    at = columns[:, None] * depth + (group * 64 + tl.arange(0, 64))[None, :]
    tl.store(out + at, w * scale[:, None], mask=mask)
