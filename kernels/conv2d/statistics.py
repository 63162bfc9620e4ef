"""Group-norm statistics of channels-last maps, merged from chunks so that nothing cancels.

Each input row gives every channel a mean and a sum of squares about that mean, in two passes
over data the caches still hold. Chunks merge by the parallel-variance formula (Chan, Golub and
LeVeque 1983), first over rows, then over a group's channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir.isa import Isa
from ..tir.kernel import TensorSpec
from ..tir.memory import load, store, typed

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

    def extreme(at: Expr, count: int, n: int, pixel: Callable[[Expr], Expr]) -> None:
        for name, pick in (("lows", T.min), ("highs", T.max)):
            held = T.alloc_buffer((n,), "float32", scope="local")
            store(held, [0], pixel(0), n)
            with T.serial(count) as x:
                store(held, [0], pick(load(held, [0], n), pixel(x)), n)
            store(named[name], [at], load(held, [0], n), n)

    with T.parallel(images * height) as task:
        first = 0
        for buffer, count in zip(inputs, channels, strict=True):

            def chunk(
                c: Expr, n: int, buffer: Buffer = buffer, count: int = count, first: int = first
            ) -> None:
                def pixel(x: Expr) -> Expr:
                    return load(buffer, [(task * width + x) * count + c], n)

                mean = T.bind(_total(width, n, pixel) * _constant(1 / width, n))

                def square(x: Expr) -> Expr:
                    d = T.bind(pixel(x) - mean)
                    return d * d

                at = task * total + first + c
                store(means, [at], mean, n)
                store(squares, [at], _total(width, n, square), n)
                if "lows" in named:
                    extreme(at, width, n, pixel)

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
