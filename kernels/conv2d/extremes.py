"""One int8 scale an image, from the extremes of what goes into the activation.

An activation's largest magnitude follows from the least and the largest value it is applied to,
so no pass over activated values is needed. Behind a group norm these come from every channel's
extremes, which the statistics gather on their way; elsewhere from one pass over the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir.isa import Isa
from ..tir.kernel import TensorSpec
from ..tir.memory import load, splat
from ..tir.normalise import each
from ..tir.quantise import Largest, Sum, extent, magnitude, scale_of, sweep

Expr = Any
Buffer = Any

_INFINITY = 0x7F800000


def scratch(images: int, height: int, channels: int, norm: bool) -> dict[str, TensorSpec]:
    """Workspace: every image's scale and its inverse, and chunks' extremes."""
    table = TensorSpec((images,), torch.float32)
    chunks = TensorSpec((images * height * (channels if norm else 1),), torch.float32)
    named = {"scales": table, "inverses": table, "lows": chunks, "highs": chunks}
    return named if norm else named | {"keys": TensorSpec((images * height,), torch.int32)}


class _Range:
    """The least and the largest of lanes, and whether one is not finite."""

    def __init__(self, lanes: int) -> None:
        least = T.float32(-torch.finfo(torch.float32).max)
        self._high = Largest(lanes, "float32", least)
        self._low = Largest(lanes, "float32", least)
        self._key = Largest(lanes, "int32", T.int32(0))

    def add(self, value: Expr, lanes: int) -> None:
        value = T.bind(value)
        self._high.add(value, lanes)
        self._low.add(splat(T.float32(0), lanes) - value, lanes)
        self.add_key(magnitude(value, lanes), lanes)

    def add_key(self, key: Expr, lanes: int) -> None:
        self._key.add(key, lanes)

    def result(self) -> tuple[Expr, Expr, Expr]:
        """Least, largest, and the key of the largest magnitude."""
        low = T.bind(T.float32(0) - self._low.result())
        return low, self._high.result(), self._key.result()


def _finish(named: dict[str, Buffer], image: Expr, found: _Range, activation: str) -> None:
    low, high, key = found.result()
    largest = extent(low, high, activation)
    wrong = key >= T.int32(_INFINITY)
    inverse, scale = scale_of(T.Select(wrong, T.reinterpret("float32", key), largest))
    T.buffer_store(named["inverses"], inverse, [image])
    T.buffer_store(named["scales"], scale, [image])


def of_channels(
    isa: Isa, named: dict[str, Buffer], images: int, height: int, channels: int, activation: str
) -> None:
    """Emit the scales from the extremes of :mod:`.statistics` and the norm's gain and offset."""
    with T.parallel(images) as image:
        found = _Range(isa.lanes)

        def channel(c: Expr, n: int) -> None:
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
                found.add(end * load(named["gain"], [at], n) + load(named["offset"], [at], n), n)

        each(channels, isa.lanes, channel)
        _finish(named, image, found, activation)


def of_inputs(
    isa: Isa,
    inputs: Sequence[Buffer],
    channels: Sequence[int],
    named: dict[str, Buffer],
    images: int,
    height: int,
    width: int,
    activation: str,
) -> None:
    """Emit the scales from the inputs themselves."""
    plain = activation == "none"  # the largest magnitude is all that counts
    with T.parallel(images * height) as task:
        found = None if plain else _Range(isa.lanes)
        most = Sum(isa, "int32")
        for buffer, count in zip(inputs, channels, strict=True):
            start = T.bind(task * (width * count))

            def one(
                i: Expr, n: int, part: int, buffer: Buffer = buffer, start: Expr = start
            ) -> None:
                value = T.bind(load(buffer, [start + i], n))
                most.add(magnitude(value, n), n, part)
                if found:
                    found.add(value, n)

            sweep(width * count, isa.lanes, one)
        key = most.result()
        high = T.bind(T.reinterpret("float32", key))
        low = high
        if found:
            low, high, _ = found.result()
        T.buffer_store(named["lows"], low, [task])
        T.buffer_store(named["highs"], high, [task])
        T.buffer_store(named["keys"], key, [task])
    with T.parallel(images) as image:
        found = _Range(1)
        with T.serial(height) as y:
            at = image * height + y
            for name in ("lows", "highs"):
                found.add(named[name][at], 1)
            # A NaN may have been neither least nor largest, but its key was the largest.
            found.add_key(named["keys"][at], 1)
        _finish(named, image, found, activation)
