"""Group-norm statistics of channels-last maps, merged from chunks so that nothing cancels.

Each input row gives every channel a mean and a sum of squares about that mean, in one pass: both
are gathered about the row's first pixel, which is near the mean. Chunks merge by the
parallel-variance formula (Chan, Golub and LeVeque 1983), first over rows, then over a group's
channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir.isa import Isa
from ..tir.kernel import TensorSpec
from ..tir.memory import load, splat, store, typed

Expr = Any
Buffer = Any


def scratch(images: int, height: int, channels: int) -> dict[str, TensorSpec]:
    """Workspace: chunk means and squares, and the gain and offset that come of them."""
    chunks = TensorSpec((images * height * channels,), torch.float32)
    table = TensorSpec((images * channels,), torch.float32)
    return {"means": chunks, "squares": chunks, "gain": table, "offset": table}


def _each(channels: int, lanes: int, emit: Callable[[Expr, int], None]) -> None:
    """Emit for every channel: vectors, then what is left."""
    whole, rest = divmod(channels, lanes)
    if whole:
        with T.serial(whole) as v:
            emit(v * lanes, lanes)
    if rest:
        with T.serial(rest) as i:
            emit(whole * lanes + i, 1)


def _total(count: int, lanes: int, term: Callable[[Expr], Expr]) -> Expr:
    """The sum of ``term(i)`` for i below ``count``; the terms are vectors."""
    held = T.alloc_buffer((lanes,), "float32", scope="local")

    def read() -> Expr:
        return held.vload([0], dtype=typed("float32", lanes)) if lanes > 1 else held[0]

    zero = T.broadcast(T.float32(0), lanes) if lanes > 1 else T.float32(0)
    store(held, [0], zero, lanes)
    with T.serial(count) as i:
        store(held, [0], read() + term(i), lanes)
    return T.bind(read())


class _Held:
    """A sum, least or largest of lanes in a register."""

    def __init__(self, lanes: int, fold: str, first: Expr) -> None:
        folds = {"sum": lambda a, b: a + b, "min": T.min, "max": T.max}
        self._lanes, self._fold = lanes, folds[fold]
        self._buffer = T.alloc_buffer((lanes,), "float32", scope="local")
        store(self._buffer, [0], first, lanes)

    def value(self) -> Expr:
        return load(self._buffer, [0], self._lanes)

    def add(self, value: Expr) -> None:
        store(self._buffer, [0], self._fold(self.value(), value), self._lanes)


def emit(
    isa: Isa,
    inputs: Sequence[Buffer],
    channels: Sequence[int],
    named: dict[str, Buffer],
    *,
    images: int,
    height: int,
    width: int,
    groups: int,
    weight: Buffer | None,
    bias: Buffer | None,
    eps: float,
) -> None:
    """Emit the loops that fill ``named["gain"]`` and ``named["offset"]``.

    The normalised value of channel c of an image is then ``x · gain[c] + offset[c]``.

    Args:
        isa: the instruction path.
        inputs: flat buffers ``[image][y][x][channel]``.
        channels: of every input.
        named: the buffers of :func:`scratch`; of :func:`.extremes.scratch` too, where every
            chunk's least and largest values are wanted.
        images: how many.
        height: rows of a map.
        width: pixels of a row.
        groups: of the concatenated channels.
        weight: flat gain of the norm, or None.
        bias: flat offset of the norm, or None.
        eps: added to the variance.
    """
    means, squares, gain, offset = (named[n] for n in ("means", "squares", "gain", "offset"))
    total = sum(channels)
    lanes = isa.lanes
    extremes = "lows" in named

    with T.parallel(images * height) as task:
        first = 0
        for buffer, count in zip(inputs, channels, strict=True):

            def chunk(
                c: Expr, n: int, buffer: Buffer = buffer, count: int = count, first: int = first
            ) -> None:
                def pixel(x: Expr) -> Expr:
                    return load(buffer, [(task * width + x) * count + c], n)

                # About the first pixel, so that a large mean cancels before anything is squared.
                origin = T.bind(pixel(0))
                total_of = _Held(n, "sum", splat(T.float32(0), n))
                squares_of = _Held(n, "sum", splat(T.float32(0), n))
                ends = [_Held(n, which, origin) for which in ("min", "max")] if extremes else []
                with T.serial(width - 1) as x:
                    value = T.bind(pixel(x + 1))
                    d = T.bind(value - origin)
                    total_of.add(d)
                    squares_of.add(d * d)
                    for end in ends:
                        end.add(value)
                moved = T.bind(total_of.value() * _constant(1 / width, n))
                at = task * total + first + c
                store(means, [at], origin + moved, n)
                rest = T.bind(squares_of.value() - moved * moved * _constant(width, n))
                store(squares, [at], T.max(rest, splat(T.float32(0), n)), n)
                for end, name in zip(ends, ("lows", "highs"), strict=False):
                    store(named[name], [at], end.value(), n)

            _each(count, lanes, chunk)
            first += count

    with T.parallel(images) as image:

        def merge(c: Expr, n: int) -> None:
            def at(y: Expr) -> list[Expr]:
                return [(image * height + y) * total + c]

            mean = _total(height, n, lambda y: load(means, at(y), n))
            mean = T.bind(mean * _constant(1 / height, n))

            def square(y: Expr) -> Expr:
                d = T.bind(load(means, at(y), n) - mean)
                return load(squares, at(y), n) + _constant(width, n) * d * d

            store(gain, [image * total + c], mean, n)
            store(offset, [image * total + c], _total(height, n, square), n)

        _each(total, lanes, merge)
        size = total // groups
        with T.serial(groups) as group:
            base = T.bind(image * total + group * size)
            mean = T.bind(_total(size, 1, lambda i: gain[base + i]) * T.float32(1 / size))

            def square(i: Expr) -> Expr:
                d = T.bind(gain[base + i] - mean)
                return offset[base + i] + T.float32(height * width) * d * d

            variance = _total(size, 1, square) * T.float32(1 / (size * height * width))
            scale = T.bind(T.float32(1) / T.sqrt(variance + T.float32(eps)))
            with T.serial(size) as i:
                factor = scale
                if weight is not None:
                    factor = T.bind(scale * load(weight, [group * size + i]))
                moved = T.float32(0) - mean * factor
                if bias is not None:
                    moved = load(bias, [group * size + i]) + moved
                T.buffer_store(gain, factor, [base + i])
                T.buffer_store(offset, moved, [base + i])


def _constant(value: float, lanes: int) -> Expr:
    return T.broadcast(T.float32(value), lanes) if lanes > 1 else T.float32(value)
