"""Rows prepared for a product: layer norm, activation, conversion, padding, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T

from .layout import Layout
from .math import ACTIVATIONS
from .memory import load, splat, typed

Expr = Any
Buffer = Any


def lane_sum(vector: Buffer, lanes: int) -> Expr:
    """The sum of a local vector's lanes, pairwise."""
    terms = [vector[i] for i in range(lanes)]
    while len(terms) > 1:
        terms = [terms[i] + terms[i + 1] for i in range(0, len(terms), 2)]
    return T.bind(terms[0])


def _sum(x: Buffer, row: Expr, channels: int, lanes: int, term: Any) -> Expr:
    """Sum of ``term(value, lanes)`` over a row."""
    whole, rest = divmod(channels, lanes)
    wide = T.alloc_buffer((lanes,), "float32", scope="local")
    every = [T.ramp(0, 1, lanes)]
    T.buffer_store(wide, T.broadcast(T.float32(0), lanes), every)
    if whole:
        with T.serial(whole) as v:
            value = term(load(x, [row + v * lanes], lanes), lanes)
            before = wide.vload([0], dtype=typed("float32", lanes))
            T.buffer_store(wide, before + value, every)
    if rest:
        with T.serial(rest) as i:
            value = term(load(x, [row + whole * lanes + i]), 1)
            T.buffer_store(wide, wide[0] + value, [0])
    return lane_sum(wide, lanes)


def row_values(
    lanes: int,
    x: Buffer,
    row: Expr,
    channels: int,
    *,
    norm: bool = False,
    gain: Buffer | None = None,
    offset: Buffer | None = None,
    eps: float = 0.0,
    activation: str = "none",
) -> Callable[[Expr, int], Expr]:
    """Emit what a row's values depend on; the result gives the fp32 lanes at a channel.

    Args:
        lanes: of a vector.
        x: flat buffer.
        row: element at which the row begins.
        channels: its values.
        norm: layer norm over the row; the variance is taken about the mean.
        gain: flat ``[channels]`` or None.
        offset: flat ``[channels]`` or None.
        eps: added to the variance.
        activation: name of an activation, applied last.
    """
    mean = scale = None
    if norm:
        per = T.float32(1.0 / channels)
        mean = T.bind(_sum(x, row, channels, lanes, lambda v, n: v) * per)

        def square(v: Expr, n: int) -> Expr:
            d = T.bind(v - splat(mean, n))
            return d * d

        variance = _sum(x, row, channels, lanes, square) * per
        scale = T.bind(T.float32(1) / T.sqrt(variance + T.float32(eps)))

    def value(c: Expr, n: int) -> Expr:
        v = load(x, [row + c], n)
        if norm:
            v = (v - splat(mean, n)) * splat(scale, n)
            v = v * load(gain, [c], n) if gain is not None else v
            v = v + load(offset, [c], n) if offset is not None else v
        return T.bind(ACTIVATIONS[activation](v, n))

    return value


def each(channels: int, lanes: int, emit: Callable[[Expr, int], None]) -> None:
    """Emit for every channel: vectors, then what is left."""
    whole, rest = divmod(channels, lanes)
    if whole:
        with T.serial(whole) as v:
            emit(v * lanes, lanes)
    if rest:
        with T.serial(rest) as i:
            emit(whole * lanes + i, 1)


def rows(
    layout: Layout,
    x: Buffer,
    out: Buffer,
    *,
    count: int,
    channels: int,
    norm: bool = False,
    gain: Buffer | None = None,
    offset: Buffer | None = None,
    eps: float = 0.0,
    activation: str = "none",
) -> None:
    """Emit the loop that writes ``count`` rows of ``x`` in a micro-kernel's layout.

    Args:
        layout: of the rows; channels up to its ``values`` are zeroed.
        x: flat buffer ``[count][channels]``.
        out: flat buffer.
        count: rows.
        channels: values of a row.
        norm: layer norm over each row; the variance is taken about the mean.
        gain: flat ``[channels]`` or None.
        offset: flat ``[channels]`` or None.
        eps: added to the variance.
        activation: name of an activation, applied last.
    """
    lanes = layout.isa.lanes
    with T.parallel(count) as m:
        row = T.bind(m * channels)
        target = T.bind(m * layout.row)
        value = row_values(
            lanes,
            x,
            row,
            channels,
            norm=norm,
            gain=gain,
            offset=offset,
            eps=eps,
            activation=activation,
        )
        each(channels, lanes, lambda c, n: layout.store(out, target, c, value(c, n), n))
        if layout.values > channels:
            zero = T.float32(0)
            with T.serial(layout.values - channels) as i:
                layout.store(out, target, channels + i, zero, 1)
