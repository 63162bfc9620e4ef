"""Weights laid out as panels, in torch, once, and in TIR where the weight is not a constant."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F
from tvm.tirx.script import builder as T

from .isa import Isa
from .kernel import Operand, Pack, TensorSpec, Value
from .memory import load
from .micro import Micro

Expr = Any
Buffer = Any

#: Bytes packed at a time.
_PART = 1 << 20

#: An integer of that many bytes.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not less."""
    return -(-value // multiple) * multiple


def panel_count(columns: int, micro: Micro, gated: bool = False) -> int:
    """Panels that hold that many columns; gated ones hold half of them as gates."""
    width = micro.columns // 2 if gated else micro.columns
    return -(-(columns // 2 if gated else columns) // width)


def ordered(weight: torch.Tensor, width: int, gated: bool) -> torch.Tensor:
    """Axis 0 padded to whole panels; gated: value columns and their gates side by side."""
    if not gated:
        pad = round_up(weight.shape[0], width) - weight.shape[0]
        return F.pad(weight, (0, 0) * (weight.dim() - 1) + (0, pad)) if pad else weight
    half = width // 2
    parts = [ordered(part, half, False) for part in weight.chunk(2)]
    paired = torch.stack([p.unflatten(0, (-1, half)) for p in parts], dim=1)
    return paired.flatten(0, 2)


def panels(
    out: torch.Tensor, weight: torch.Tensor, micro: Micro, channels: int, gated: bool = False
) -> None:
    """Pack ``(N, C, ...)`` into ``[panel][K / kpack][columns · kpack]``, of any shape.

    ``channels`` is C with its padding; K is the taps (all axes after C), each of that many.
    A few panels at a time, so that they stay in the near cache on the way.
    """
    width = micro.columns // 2 if gated else micro.columns
    values, *gates = weight.chunk(2) if gated else (weight,)
    depth, taps = weight.shape[1], math.prod(weight.shape[2:])
    # What is kpacked moves as one word.
    word = _WORDS[micro.kpack * micro.panel.itemsize]
    rows = out.view(-1, channels * taps * micro.columns).view(word)
    target = rows.view(len(rows), taps, channels // micro.kpack, micro.columns)
    few = max(1, _PART // (rows.shape[1] * word.itemsize))
    for first in range(0, len(rows), few):
        those = slice(first * width, (first + few) * width)
        part = torch.cat([v[those] for v in (values, *gates)]) if gated else values[those]
        part = ordered(part.to(micro.panel), micro.columns, gated)
        if taps > 1:  # a matrix transposed, which torch is fast at
            part = part.reshape(-1, taps).t().contiguous()
        part = part.reshape(taps, -1, micro.columns, depth)
        if channels > depth:
            part = F.pad(part, (0, channels - depth))
        target[first : first + few].copy_(part.contiguous().view(word).permute(1, 0, 3, 2))


def panel_operand(value: Value, micro: Micro, channels: int, gated: bool = False) -> Operand:
    """A constant ``(N, C)`` or ``(N, C, KH, KW)`` weight as a packed operand."""
    shape = value.spec.shape

    def write(out: torch.Tensor, weight: torch.Tensor) -> None:
        panels(out, weight, micro, channels, gated)

    count = panel_count(shape[0], micro, gated)
    packed = (count, math.prod(shape[2:]) * channels // micro.kpack, micro.columns * micro.kpack)
    key = ("panels", micro.columns, micro.kpack, channels, gated, micro.panel)
    return Operand((value,), Pack(key, write, TensorSpec(packed, micro.panel)))


def column_operand(value: Value, micro: Micro, gated: bool = False) -> Operand:
    """A constant bias ``(N,)`` as fp32, padded and ordered as the panels' columns."""

    def fn(bias: torch.Tensor) -> torch.Tensor:
        return ordered(bias.float(), micro.columns, gated)

    length = panel_count(value.spec.shape[0], micro, gated) * micro.columns
    spec = TensorSpec((length,), torch.float32)
    return Operand((value,), Pack.of(("columns", micro.columns, gated), fn, spec))


def source_column(micro: Micro, columns: int, gated: bool, index: Expr) -> tuple[Expr, Expr]:
    """Which of ``columns`` weight rows a packed column holds, and whether it holds one."""
    if not gated:
        return index, index < columns
    half = micro.columns // 2
    panel, inside = T.floordiv(index, micro.columns), T.floormod(index, micro.columns)
    gate, lane = T.floordiv(inside, half), T.floormod(inside, half)
    unit = panel * half + lane
    return gate * (columns // 2) + unit, unit < columns // 2


def pack_columns(bias: Buffer, out: Buffer, columns: int, micro: Micro, gated: bool) -> None:
    """Emit what :func:`column_operand` does, for a bias known only at run time."""
    with T.serial(panel_count(columns, micro, gated) * micro.columns) as index:
        column, real = source_column(micro, columns, gated, index)
        value = T.if_then_else(real, load(bias, [column]), T.float32(0))
        T.buffer_store(out, value, [index])


def pack_panels(
    isa: Isa,
    micro: Micro,
    weight: Buffer,
    out: Buffer,
    *,
    columns: int,
    depth: int,
    runs: int,
    channels: int,
    address: Any,
    gated: bool = False,
    matrices: int = 1,
) -> None:
    """Emit what :func:`panel_operand` does, for weights known only at run time.

    Args:
        isa: whose workers share the loop.
        micro: the micro-kernel that reads the panels.
        weight: flat buffer in the panel's dtype or one that widens to it.
        out: flat buffer of panels.
        columns: N.
        depth: C, without padding.
        runs: runs of K.
        channels: C with padding.
        address: element of ``weight`` from (matrix, column, run, channel).
        gated: as for :func:`panels`.
        matrices: how many weights lie behind one another in ``out``.
    """
    del isa
    count = panel_count(columns, micro, gated)
    steps = channels // micro.kpack
    with T.parallel(matrices * count) as task, T.serial(runs) as run, T.serial(steps) as step:
        matrix, panel = T.floordiv(task, count), T.floormod(task, count)
        base = T.bind((task * runs + run) * channels * micro.columns)
        with T.serial(micro.columns) as lane, T.serial(micro.kpack) as k:
            column, real = source_column(micro, columns, gated, panel * micro.columns + lane)
            c = step * micro.kpack + k
            where = T.if_then_else(
                T.And(real, c < depth), address(matrix, column, run, c), T.int32(0)
            )
            raw = weight[where]
            if weight.dtype != out.dtype:
                raw = load(weight, [where])
            value = T.Select(T.And(real, c < depth), raw, T.Cast(out.dtype, T.int32(0)))
            at = base + (step * micro.columns + lane) * micro.kpack + k
            T.buffer_store(out, value, [at])
