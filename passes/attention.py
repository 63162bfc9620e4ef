"""Attention with its heads in place: no transposed copies of queries, keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .match import sum_of
from .ops import ATTENTION, MATMUL, MUL, PERMUTE, RESHAPE, TO, aten
from .rewrite import (
    Answer,
    Call,
    Rule,
    arguments,
    build,
    call,
    dtype,
    is_call,
    only_user,
    rule,
    shape,
)
from .views import VIEW_RULES

_SWAP = [0, 2, 1, 3]


def _rows(x: fx.Node) -> Any:
    """``(B, heads, S, D)`` as ``(B, S, heads · D)``; cancels against how it was split."""
    batch, heads, length, size = shape(x)
    return call(RESHAPE, call(PERMUTE, x, _SWAP), [batch, length, heads * size])


def attend(
    q: fx.Node,
    k: fx.Node,
    v: fx.Node,
    *,
    mask: fx.Node | None,
    causal: bool,
    scale: float | None,
    origin: fx.Node,
) -> Call | None:
    """``zoomc.attention`` for operands ``(B, heads, S, D)`` or ``(B, S, D)``, or None."""
    sizes = shape(q), shape(k), shape(v)
    rank = len(sizes[0])
    if rank not in (3, 4) or any(len(size) != rank for size in sizes):
        return None
    if sizes[1] != sizes[2] or sizes[0][:-2] != sizes[1][:-2] or sizes[0][-1] != sizes[1][-1]:
        return None
    if mask is not None and rank == 3 and len(shape(mask)) == 3:
        batch, rows, columns = shape(mask)
        mask = call(RESHAPE, mask, [batch, 1, rows, columns])
    size = sizes[0][-1]
    heads = sizes[0][1] if rank == 4 else 1
    operands = [_rows(x) if rank == 4 else x for x in (q, k, v)]
    values = {
        **dict(zip("qkv", operands, strict=True)),
        "heads": heads,
        "head_dim": size,
        "scale": size**-0.5 if scale is None else float(scale),
        "mask": mask,
        "causal": causal,
    }
    batch, length = sizes[0][0], sizes[0][-2]
    y = build(ATTENTION, values, origin, size=(batch, length, heads * size))
    if rank == 3:
        return y
    return call(PERMUTE, call(RESHAPE, y, [batch, length, heads, size]), _SWAP)


@rule(
    "scaled_dot_product_attention(split heads) => zoomc.attention",
    aten.scaled_dot_product_attention.default,
)
def _lower_attention(node: fx.Node) -> Answer:
    values = arguments(node)
    q, k, v, mask = (values[name] for name in ("query", "key", "value", "attn_mask"))
    if values["dropout_p"] or values["enable_gqa"]:
        return None
    if mask is not None and dtype(mask) not in (torch.bool, dtype(q)):
        return None
    return attend(
        q, k, v, mask=mask, causal=values["is_causal"], scale=values["scale"], origin=node
    )


def _uncast(x: fx.Node) -> fx.Node:
    """``x`` before casts: a softmax computes in fp32 whatever the graph says around it."""
    while is_call(x, TO) and only_user(x) and x.args[0].meta["val"].is_floating_point():
        x = x.args[0]
    return x


def _scores(x: fx.Node) -> tuple[fx.Node, float] | None:
    """``(matmul(q, k.T), scale)`` if ``x`` is that product times or over a number."""
    scale = 1.0
    if is_call(x, MUL, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        factor = x.args[1]
        if not isinstance(factor, (int, float)) or not only_user(x):
            return None
        scale = float(factor) if "mul" in str(x.target) else 1.0 / float(factor)
        x = x.args[0]
    if not is_call(x, MATMUL) or not only_user(x) or not arguments(x)["transpose_b"]:
        return None
    return x, scale


def _unfolded(x: fx.Node) -> fx.Node:
    """``(B, heads, S, D)`` if ``x`` is that with its first two axes merged, else ``x``."""
    if not is_call(x, RESHAPE):
        return x
    source = x.args[0]
    split = len(shape(source)) == 4 and shape(source)[2:] == shape(x)[1:]
    return source if split and len(shape(x)) == 3 else x


@rule("matmul(softmax(matmul(q, k.T) * s + mask), v) => zoomc.attention", MATMUL)
def _attention_from_parts(node: fx.Node) -> Answer:
    values = arguments(node)
    softmax, v = _uncast(values["a"]), values["b"]
    if values["transpose_b"] or not is_call(softmax, aten._softmax.default, aten.softmax.int):
        return None
    if softmax.args[1] not in (-1, len(shape(softmax)) - 1) or not only_user(softmax):
        return None
    x, mask = _uncast(softmax.args[0]), None
    found = _scores(x)
    for scores, other in sum_of(x):
        if found is None and only_user(x):
            found, mask = _scores(_uncast(scores)), other
    if found is None:
        return None
    product, scale = found
    operands = [product.args[0], product.args[1], v]
    if len({dtype(y) for y in (*operands, node)}) != 1:
        return None
    if mask is not None and dtype(mask) != dtype(node):
        return None
    split = [_unfolded(y) for y in operands]
    if all(len(shape(y)) == 4 for y in split) and mask is None:
        operands = split
    y = attend(*operands, mask=mask, causal=False, scale=scale, origin=node)
    if y is None or len(shape(operands[0])) == len(shape(node)):
        return y
    return call(RESHAPE, y, list(shape(node)))


ATTENTION_RULES: tuple[Rule, ...] = (_lower_attention, *VIEW_RULES)
PARTS_RULES: tuple[Rule, ...] = (_attention_from_parts, *VIEW_RULES)
