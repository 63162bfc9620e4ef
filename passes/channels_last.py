"""Images keep their channels in the last axis from the graph's first node to its last.

Convolutions and group norms become channels-last operators between two permutes; then every
permute sinks through what does not care about the order of axes until it meets its inverse.
What remains are the permutes of the graph's own inputs and outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .canonicalize import slice_range, sliced
from .constants import is_constant
from .ops import CAT, CONV2D, GROUP_NORM, PAD, PERMUTE, SLICE, TO, aten
from .rewrite import (
    Answer,
    Call,
    Rule,
    arguments,
    build,
    call,
    dtype,
    is_call,
    is_tensor,
    rule,
    shape,
)
from .views import VIEW_RULES, inverse, reshaped

TO_LAST = [0, 2, 3, 1]
TO_FIRST = [0, 3, 1, 2]


def _pair(values: Any) -> list[int]:
    values = list(values)
    return values * 2 if len(values) == 1 else values


@rule(
    "conv2d(x, constant w) => permute(zoomc.conv2d(permute(x), w))",
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.convolution.default,
)
def _lower_conv2d(node: fx.Node) -> Answer:
    values = arguments(node)
    x, w, b = values["input"], values["weight"], values["bias"]
    if len(shape(x)) != 4 or len(shape(w)) != 4 or values.get("transposed", False):
        return None
    if not (is_constant(w) and is_constant(b)):
        return None
    padding, dilation = values["padding"], _pair(values["dilation"])
    if padding == "valid":
        sides = [0, 0, 0, 0]
    elif padding == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, shape(w)[2:], strict=True)]
        sides = [side for span in spans for side in (span // 2, span - span // 2)]
    else:
        sides = [p for p in _pair(padding) for _ in range(2)]
    conv = build(
        CONV2D,
        {
            "inputs": [call(PERMUTE, x, TO_LAST)],
            "weight": w,
            "bias": b,
            "stride": _pair(values["stride"]),
            "padding": sides,
            "dilation": dilation,
            "groups": values["groups"],
        },
        node,
        size=tuple(shape(node)[d] for d in TO_LAST),
    )
    return call(PERMUTE, conv, TO_FIRST)


@rule("group_norm(x) => permute(zoomc.group_norm(permute(x)))", aten.group_norm.default)
def _lower_group_norm(node: fx.Node) -> Answer:
    values = arguments(node)
    x, weight, bias = values["input"], values["weight"], values["bias"]
    rank = len(shape(x))
    if len({dtype(n) for n in (x, weight, bias) if n is not None}) != 1:
        return None
    last = [0, *range(2, rank), 1]
    norm = build(
        GROUP_NORM,
        {
            "x": call(PERMUTE, x, last),
            "groups": values["num_groups"],
            "weight": weight,
            "bias": bias,
            "eps": values["eps"],
        },
        node,
        size=tuple(shape(x)[d] for d in last),
    )
    return call(PERMUTE, norm, inverse(last))


def _is_pointwise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or node.target is TO


def _first(permutes: list[fx.Node]) -> fx.Node | None:
    """The permute to push: one to channels first, if there is one."""
    return next((x for x in permutes if list(x.args[1]) == TO_FIRST), next(iter(permutes), None))


def _sinks(dims: list[int], gone: int, new: int) -> bool:
    """Whether a permute should move below its user, which removes ``gone`` and adds ``new``.

    Only permutes to channels first sink at any price, and permutes to channels last never do:
    so no two rules undo each other, and permutes gather at the graph's edges.
    """
    if len(dims) >= 4 and dims[0] == 0:
        last = [0, *range(2, len(dims)), 1]
        if dims in (last, inverse(last)):
            return dims != last
    return gone > new


@rule("f(permute(x), y) => permute(f(x, permute(y))) for pointwise f")
def _sink_pointwise(node: fx.Node) -> Answer:
    if not _is_pointwise(node) or not is_tensor(node):
        return None
    size = shape(node)
    inputs = node.all_input_nodes
    permuted = [x for x in inputs if is_call(x, PERMUTE) and shape(x) == size]
    lead = _first(permuted)
    if lead is None:
        return None
    dims = list(lead.args[1])
    back = inverse(dims)
    gone = [x for x in inputs if is_call(x, PERMUTE) and list(x.args[1]) == dims]
    new = [x for x in inputs if x not in gone and shape(x) == size]
    if not _sinks(dims, len(gone), len(new)):
        return None

    def unpermuted(x: fx.Node) -> Any:
        if x in gone:
            return x.args[0]
        if not shape(x):
            return x
        ones = (1,) * (len(size) - len(shape(x)))
        return call(PERMUTE, reshaped(x, (*ones, *shape(x))), back)

    # One call for each operand, however often it is used.
    operands = {x: unpermuted(x) for x in inputs}

    def place(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return type(x)(place(y) for y in x)
        return operands[x] if isinstance(x, fx.Node) else x

    args = tuple(place(x) for x in node.args)
    kwargs = {name: place(x) for name, x in node.kwargs.items() if name != "memory_format"}
    return call(PERMUTE, call(node.target, *args, **kwargs), dims)


@rule("cat([permute(x), permute(y)]) => permute(cat([x, y]))", CAT)
def _sink_cat(node: fx.Node) -> Answer:
    values = arguments(node)
    tensors, dim = values["tensors"], values["dim"]
    lead = _first([x for x in tensors if is_call(x, PERMUTE)])
    if lead is None or any(len(shape(x)) != len(shape(node)) for x in tensors):
        return None
    dims = list(lead.args[1])
    same = [is_call(x, PERMUTE) and list(x.args[1]) == dims for x in tensors]
    if not _sinks(dims, sum(same), len(same) - sum(same)):
        return None
    back = inverse(dims)
    sources = [
        x.args[0] if match else call(PERMUTE, x, back)
        for x, match in zip(tensors, same, strict=True)
    ]
    return call(PERMUTE, call(CAT, sources, dims[dim]), dims)


def _moved_padding(pad: list[int], order: list[int]) -> list[int]:
    """Padding pairs, from the last axis to the first, for axes taken in ``order``."""
    rank = len(order)
    pad = pad + [0] * (2 * rank - len(pad))
    pairs = [pad[2 * (rank - 1 - axis) :][:2] for axis in range(rank)]
    return [side for axis in reversed(order) for side in pairs[axis]]


@rule("pad(permute(x)) => permute(pad(x))", PAD)
def _sink_pad(node: fx.Node) -> Answer:
    values = arguments(node)
    x = values["self"]
    if not is_call(x, PERMUTE) or not _sinks(list(x.args[1]), 1, 0):
        return None
    source, dims = x.args
    moved = _moved_padding(list(values["pad"]), inverse(dims))
    return call(PERMUTE, call(PAD, source, moved, values["value"]), list(dims))


@rule("slice(permute(x)) => permute(slice(x))", SLICE)
def _sink_slice(node: fx.Node) -> Answer:
    x = node.args[0]
    if not is_call(x, PERMUTE) or not _sinks(list(x.args[1]), 1, 0):
        return None
    dim, start, end, step = slice_range(node)
    source, dims = x.args
    return call(PERMUTE, sliced(source, dims[dim], start, end, step), list(dims))


def _all_to_last(x: fx.Node) -> bool:
    """Whether every user of ``x`` takes it channels last; equal copies are shared later."""
    return all(is_call(user, PERMUTE) and list(user.args[1]) == TO_LAST for user in x.users)


@rule("permute(f(x)) => f(permute(x)) to channels last, for unary f", PERMUTE)
def _hoist(node: fx.Node) -> Answer:
    x, dims = node.args
    if list(dims) != TO_LAST or not _all_to_last(x):
        return None
    if x.op != "call_function" or not _is_pointwise(x) or len(x.all_input_nodes) != 1:
        return None
    (source,) = x.all_input_nodes
    if shape(source) != shape(x) or x.args[0] is not source or source in x.args[1:]:
        return None
    moved = call(PERMUTE, source, list(dims))
    kwargs = {name: y for name, y in x.kwargs.items() if name != "memory_format"}
    return Call(x.target, (moved, *x.args[1:]), kwargs, x)


@rule("permute(pad(x)) => pad(permute(x)) to channels last", PERMUTE)
def _hoist_pad(node: fx.Node) -> Answer:
    x, dims = node.args
    if list(dims) != TO_LAST or not is_call(x, PAD) or not _all_to_last(x):
        return None
    values = arguments(x)
    moved = _moved_padding(list(values["pad"]), list(dims))
    return call(PAD, call(PERMUTE, values["self"], list(dims)), moved, values["value"])


@rule("permute(cat([x, y])) => cat([permute(x), permute(y)]) to channels last", PERMUTE)
def _hoist_cat(node: fx.Node) -> Answer:
    x, dims = node.args
    if list(dims) != TO_LAST or not is_call(x, CAT) or not _all_to_last(x):
        return None
    values = arguments(x)
    if any(len(shape(y)) != 4 for y in values["tensors"]):
        return None
    moved = [call(PERMUTE, y, list(dims)) for y in values["tensors"]]
    return call(CAT, moved, list(dims).index(values["dim"] % 4))


CHANNELS_LAST_RULES: tuple[Rule, ...] = (
    _lower_conv2d,
    _lower_group_norm,
    *VIEW_RULES,
    _sink_cat,
    _sink_pad,
    _sink_slice,
    _sink_pointwise,
    _hoist,
    _hoist_pad,
    _hoist_cat,
)
