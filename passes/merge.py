"""Linears that share an input and an attention become one: queries, keys and values."""

from __future__ import annotations

from typing import Any

from torch import fx

from .canonicalize import slice_range, sliced
from .ops import ATTENTION, CAT, LINEAR, SLICE, aten
from .rewrite import (
    Answer,
    Rule,
    arguments,
    build,
    call,
    change,
    dtype,
    is_call,
    rule,
    shape,
)


def _plain(node: fx.Node) -> bool:
    """Whether the linear does nothing but multiply and add its bias."""
    given = {"x", "weight", "bias"}
    return build(LINEAR, {n: v for n, v in arguments(node).items() if n not in given}).kwargs == {}


def _attention_of(node: fx.Node) -> fx.Node | None:
    """The one attention that reads the linear, which it can do in place in a wider result."""
    users = list(node.users)
    if len(users) == 1 and is_call(users[0], ATTENTION) and users[0].kwargs.get("mask") is not node:
        return users[0]
    return None


def _mergeable(node: fx.Node, x: fx.Node) -> bool:
    return is_call(node, LINEAR) and node.args[0] is x and _plain(node)


@rule("attention(linear(x, v), linear(x, w)) => attention(linear(x, cat([v, w])))", LINEAR)
def _merge_linears(node: fx.Node) -> Answer:
    # Only within one attention: projections of the prompt for all layers, or of the time
    # embedding for all blocks, would each read a slice of its own, and need a kernel of its own.
    x, reader = node.args[0], _attention_of(node)
    if reader is None:
        return None
    family = sorted(u for u in x.users if _mergeable(u, x) and _attention_of(u) is reader)
    if len(family) < 2 or node is not family[0]:
        return None
    found = [arguments(member) for member in family]
    if len({dtype(values["weight"]) for values in found}) != 1:
        return None
    sizes = [shape(values["weight"])[0] for values in found]
    weight = call(CAT, [values["weight"] for values in found], 0)
    bias: Any = None
    if any(values["bias"] is not None for values in found):
        like = {"dtype": dtype(node), "device": node.meta["val"].device}
        zeros = (call(aten.full.default, [size], 0.0, **like) for size in sizes)
        biases = [values["bias"] or zero for values, zero in zip(found, zeros, strict=True)]
        bias = call(CAT, biases, 0)
    rows = shape(x)[:-1]
    given = {"x": x, "weight": weight, "bias": bias}
    merged = build(LINEAR, given, node, size=(*rows, sum(sizes)))
    last = len(shape(node)) - 1
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return {
        member: sliced(merged, last, end - size, end)
        for member, size, end in zip(family, sizes, ends, strict=True)
    }


@rule("attention(slice(x), ...) => attention(x, ..., offsets)", ATTENTION)
def _attention_offsets(node: fx.Node) -> Answer:
    values = arguments(node)
    offsets = list(values["offsets"])
    changes: dict[str, fx.Node] = {}
    for i, name in enumerate("qkv"):
        x = values[name]
        if not is_call(x, SLICE):
            continue
        dim, start, _, step = slice_range(x)
        if dim == len(shape(x)) - 1 and step == 1:
            offsets[i] += start
            changes[name] = x.args[0]
    return change(node, offsets=offsets, **changes) if changes else None


MERGE_RULES: tuple[Rule, ...] = (_merge_linears, _attention_offsets)
