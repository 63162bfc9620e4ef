"""One int8 scale and zero an image, from the extremes of what goes into the activation, or given.

An activation's least and largest value follow from those it is applied to, so no pass over
activated values is needed. Behind a group norm these come from every channel's extremes, which
the statistics gather on their way; elsewhere from one pass over the inputs.

Extremes are held as int32 keys: the bits of an fp32 that is not negative order as it does, NaN
above all. A least value is held as its negation's.

Where the codes' ends are given, no extremes are looked for: whoever writes the codes only notes
whether a value is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir.isa import Isa
from ..tir.kernel import TensorSpec
from ..tir.math import let
from ..tir.memory import load, load_raw, splat, typed
from ..tir.micro_int8 import IntegerMicro
from ..tir.quantise import INFINITY, Sum, extent, scale_between, sweep

Expr = Any
Buffer = Any

_SIGN = -(2**31)


def scratch(
    images: int, height: int, channels: int, norm: bool, written: int | None = None
) -> dict[str, TensorSpec]:
    """Workspace: every image's scale, its inverse and its zero, and chunks' extremes.

    With given ends, the largest magnitude of each of the ``written`` rows of an image instead.
    """
    table, integers = (TensorSpec((images,), d) for d in (torch.float32, torch.int32))
    named = {"scales": table, "inverses": table, "zeros": integers}
    if written is not None:
        return named | {"magnitudes": TensorSpec((images * written,), torch.int32)}
    if norm:
        chunks = TensorSpec((images * height * channels,), torch.float32)
    else:
        chunks = TensorSpec((images * height,), torch.int32)
    return named | {"lows": chunks, "highs": chunks}


class _Range:
    """The least and the largest of lanes and 0, or a NaN, over a :func:`.sweep`."""

    def __init__(self, isa: Isa) -> None:
        self._low, self._high = Sum(isa, "int32"), Sum(isa, "int32")

    def add(self, value: Expr, lanes: int, part: int) -> None:
        """Take lanes into account."""
        bits = T.bind(T.reinterpret(typed("int32", lanes), value))
        self._high.add(bits, lanes, part)
        # Negations; what is not below 0 is then negative, or 0, from which both begin.
        self._low.add(T.bitwise_xor(bits, splat(T.int32(_SIGN), lanes)), lanes, part)

    def result(self) -> tuple[Expr, Expr]:
        """Keys of the negated least and of the largest."""
        return self._low.result(), self._high.result()


def of_channels(
    isa: Isa, named: dict[str, Buffer], height: int, channels: int
) -> Callable[[Expr], tuple[Expr, Expr]]:
    """How to find an image's keys in extremes of :mod:`.statistics`, with the norm applied."""

    def find(image: Expr) -> tuple[Expr, Expr]:
        found = _Range(isa)

        def channel(c: Expr, n: int, part: int) -> None:
            ends = []
            for name, pick in (("lows", T.min), ("highs", T.max)):
                held = T.alloc_buffer((n,), "float32", scope="local")
                everywhere = [T.ramp(0, 1, n)] if n > 1 else [0]
                base = image * (height * channels) + c
                T.buffer_store(held, load(named[name], [base], n), everywhere)
                with T.serial(height) as y:
                    value = load(named[name], [base + y * channels], n)
                    T.buffer_store(held, pick(load(held, [0], n), value), everywhere)
                ends.append(load(held, [0], n))
            at = image * channels + c
            for end in ends:
                value = end * load(named["gain"], [at], n) + load(named["offset"], [at], n)
                found.add(value, n, part)

        sweep(channels, isa.lanes, channel)
        return found.result()

    return find


def of_inputs(
    isa: Isa,
    inputs: Sequence[Buffer],
    channels: Sequence[int],
    named: dict[str, Buffer],
    images: int,
    height: int,
    width: int,
) -> Callable[[Expr], tuple[Expr, Expr]]:
    """Emit the pass over the inputs; the result is how to find an image's keys in what it left."""
    with T.parallel(images * height) as task:
        found = _Range(isa)
        for buffer, count in zip(inputs, channels, strict=True):
            start = T.bind(task * (width * count))

            def one(
                i: Expr, n: int, part: int, buffer: Buffer = buffer, start: Expr = start
            ) -> None:
                found.add(load(buffer, [start + i], n), n, part)

            sweep(width * count, isa.lanes, one)
        for name, key in zip(("lows", "highs"), found.result(), strict=True):
            T.buffer_store(named[name], key, [task])

    def find(image: Expr) -> tuple[Expr, Expr]:
        ends = []
        for name in ("lows", "highs"):
            held = T.alloc_buffer((1,), "int32", scope="local")
            T.buffer_store(held, T.int32(0), [0])
            with T.serial(height) as y:
                T.buffer_store(held, T.max(held[0], named[name][image * height + y]), [0])
            ends.append(held[0])
        return ends[0], ends[1]

    return find


def scales(
    isa: Isa,
    micro: IntegerMicro,
    named: dict[str, Buffer],
    images: int,
    columns: int,
    activation: str,
    find: Callable[[Expr], tuple[Expr, Expr]] | None,
) -> None:
    """Emit every image's scale and zero, and what its zero adds to sums of products, negated.

    Args:
        isa: the instruction path.
        micro: who reads the codes.
        named: buffers of :func:`scratch`; ``correction`` the sums of the weights' columns, and
            ``corrections`` the result, ``[image][columns]``.
        images: how many.
        columns: of all panels, a multiple of the lanes.
        activation: what follows.
        find: the keys of an image; None takes ``bounds`` for the ends of every image's codes.
    """

    def between(image: Expr) -> tuple[Expr, Expr, Expr]:
        if find is None:
            return scale_between(named["bounds"][0], named["bounds"][1])
        low_key, high_key = find(image)
        wrong = let(T.max(low_key, high_key)) >= T.int32(INFINITY)
        kept = [T.Select(wrong, T.int32(0), key) for key in (low_key, high_key)]
        negated, high = (let(T.reinterpret("float32", key)) for key in kept)
        low = let(T.float32(0) - negated)
        inverse, zero, scale = scale_between(*extent(low, high, activation))
        return inverse, zero, T.Select(wrong, T.float32(float("nan")), scale)

    with T.parallel(images) as image:
        inverse, zero, scale = between(image)
        zero = let(zero + T.int32(micro.zero))
        T.buffer_store(named["inverses"], inverse, [image])
        T.buffer_store(named["scales"], scale, [image])
        T.buffer_store(named["zeros"], zero, [image])
        lanes = isa.lanes
        with T.serial(columns // lanes) as v:
            sums = load_raw(named["correction"], [v * lanes], lanes)
            moved = splat(T.int32(0) - zero, lanes) * sums
            T.buffer_store(
                named["corrections"], moved, [T.ramp(image * columns + v * lanes, 1, lanes)]
            )


def spoil(named: dict[str, Buffer], images: int, written: int) -> None:
    """Make the scales NaN of images in which a value is not finite, by ``magnitudes``."""
    with T.parallel(images) as image:
        most = T.alloc_buffer((1,), "int32", scope="local")
        T.buffer_store(most, T.int32(0), [0])
        with T.serial(written) as y:
            here = named["magnitudes"][image * written + y]
            T.buffer_store(most, T.max(most[0], here), [0])
        scale = T.Select(
            most[0] >= T.int32(INFINITY), T.float32(float("nan")), named["scales"][image]
        )
        T.buffer_store(named["scales"], scale, [image])
