"""One spelling for each thing, and nothing that does nothing."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from .ops import ADD, CAT, EXPAND, MUL, PAD, PERMUTE, RESHAPE, SLICE, TO, aten
from .rewrite import Answer, Call, Rule, arguments, call, dtype, is_call, is_tensor, rule, shape
from .views import VIEW_RULES

_SPLITS = (
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
)


def _keeps(node: fx.Node, x: fx.Node) -> bool:
    return is_tensor(x) and shape(x) == shape(node) and dtype(x) == dtype(node)


@rule(
    "clone(x) => x",
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
)
def _copies(node: fx.Node) -> Answer:
    return node.args[0]


@rule("dropout(x) => x at inference", aten.dropout.default, aten.native_dropout.default)
def _dropout(node: fx.Node) -> Answer:
    values = arguments(node)
    if node.target is not aten.dropout.default or (values["train"] and values["p"] > 0):
        return None
    return node.args[0]


_CONVERSIONS = (aten.to.dtype, aten.to.dtype_layout, aten.to.device)


@rule("to(x, dtype of x) => x", TO, *_CONVERSIONS)
def _same_dtype(node: fx.Node) -> Answer:
    x = node.args[0]
    same_device = x.meta["val"].device == node.meta["val"].device
    return x if _keeps(node, x) and same_device else None


@rule("to(x, dtype) => _to_copy(x, dtype)", *_CONVERSIONS)
def _conversions(node: fx.Node) -> Answer:
    x, device = node.args[0], node.meta["val"].device
    moved = {} if x.meta["val"].device == device else {"device": device}
    return call(TO, x, dtype=dtype(node), **moved)


@rule("x * 1, x / 1 => x", MUL, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
def _times_one(node: fx.Node) -> Answer:
    x, y = node.args[:2]
    if isinstance(x, (int, float)) and "mul" in str(node.target):
        x, y = y, x
    return x if isinstance(y, (int, float)) and y == 1 and _keeps(node, x) else None


@rule("x + 0, x - 0 => x", ADD, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
def _plus_zero(node: fx.Node) -> Answer:
    # -0.0 + 0 is 0.0: the sign of a zero is not kept.
    x, y = node.args[:2]
    return x if isinstance(y, (int, float)) and y == 0 and _keeps(node, x) else None


@rule("expand(x, shape of x) => x", EXPAND, aten.repeat.default)
def _same_size(node: fx.Node) -> Answer:
    return node.args[0] if shape(node.args[0]) == shape(node) else None


@rule("pad(x, 0) => x", PAD)
def _no_padding(node: fx.Node) -> Answer:
    return node.args[0] if not any(node.args[1]) else None


@rule("pad(x) with a constant => constant_pad_nd(x)", aten.pad.default)
def _constant_padding(node: fx.Node) -> Answer:
    values = arguments(node)
    if values["mode"] != "constant":
        return None
    fill = 0.0 if values["value"] is None else values["value"]
    return call(PAD, values["self"], list(values["pad"]), fill)


@rule("concat([x, y]) => cat([x, y])", aten.concat.default, aten.concatenate.default)
def _concats(node: fx.Node) -> Answer:
    return Call(CAT, node.args, node.kwargs, node)


@rule("cat([x]) => x", CAT)
def _single_cat(node: fx.Node) -> Answer:
    tensors = node.args[0]
    return tensors[0] if len(tensors) == 1 and _keeps(node, tensors[0]) else None


@rule(
    "view, unsqueeze, squeeze, flatten(x) => reshape(x)",
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.unflatten.int,
    RESHAPE,
)
def _reshapes(node: fx.Node) -> Answer:
    if node.target is RESHAPE and list(node.args[1]) == list(shape(node)):
        return None
    return call(RESHAPE, node.args[0], list(shape(node)))


@rule(
    "transpose(x) => permute(x)",
    aten.transpose.int,
    aten.t.default,
    aten.numpy_T.default,
    aten.mT.default,
    PERMUTE,
)
def _permutes(node: fx.Node) -> Answer:
    x = node.args[0]
    rank = len(shape(x))
    dims = list(range(rank))
    if node.target is aten.transpose.int:
        a, b = node.args[1:]
        if rank:
            dims[a], dims[b] = dims[b], dims[a]
    elif node.target is PERMUTE:
        dims = [d % rank for d in node.args[1]]
        if dims == list(node.args[1]):
            return None
    elif node.target is aten.mT.default:
        dims[-2:] = dims[:-3:-1]
    else:
        dims.reverse()
    return call(PERMUTE, x, dims)


def sliced(x: fx.Node, dim: int, start: int, end: int, step: int = 1) -> Answer:
    """``x`` from ``start`` to ``end`` along ``dim``."""
    values = (x, dim, start, end) if step == 1 else (x, dim, start, end, step)
    return call(SLICE, *values)


def slice_range(node: fx.Node) -> tuple[int, int, int, int]:
    """Axis, start, end and step of a slice, counted from the front."""
    values = arguments(node)
    dim = values["dim"] % len(shape(values["self"]))
    start, end, step = slice(values["start"], values["end"], values["step"]).indices(
        shape(values["self"])[dim]
    )
    return dim, start, max(end, start), step


@rule("slice(x) of everything => x", SLICE)
def _whole(node: fx.Node) -> Answer:
    return node.args[0] if shape(node.args[0]) == shape(node) else None


@rule("slice(x, -a, -b) => slice(x, c, d)", SLICE)
def _slices(node: fx.Node) -> Answer:
    dim, start, end, step = slice_range(node)
    wanted = (dim, start, end) if step == 1 else (dim, start, end, step)
    return None if node.args[1:] == wanted else sliced(node.args[0], dim, start, end, step)


@rule("select(x) => reshape(slice(x))", aten.select.int)
def _selects(node: fx.Node) -> Answer:
    x, dim, index = node.args
    dim %= len(shape(x))
    index %= shape(x)[dim]
    return call(RESHAPE, sliced(x, dim, index, index + 1), list(shape(node)))


@rule("split, chunk, unbind(x)[i] => slice(x)")
def _splits(node: fx.Node) -> Answer:
    if node.target is not operator.getitem or not is_call(node.args[0], *_SPLITS):
        return None
    source, index = node.args
    values = arguments(source)
    x = values["self"]
    dim = values["dim"] % len(shape(x))
    parts: Sequence[torch.Tensor] = source.meta["val"]
    unbound = source.target is aten.unbind.int
    sizes = [1 if unbound else part.shape[dim] for part in parts]
    index %= len(sizes)
    part = sliced(x, dim, sum(sizes[:index]), sum(sizes[: index + 1]))
    return call(RESHAPE, part, list(shape(node))) if unbound else part


CANONICAL_RULES: tuple[Rule, ...] = (
    _copies,
    _dropout,
    _same_dtype,
    _conversions,
    _times_one,
    _plus_zero,
    _same_size,
    _no_padding,
    _constant_padding,
    _concats,
    _single_cat,
    _reshapes,
    _permutes,
    _whole,
    _slices,
    _selects,
    _splits,
    *VIEW_RULES,
)
