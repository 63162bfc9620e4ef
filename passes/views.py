"""Algebra of the operators that only rename elements: reshape and permute.

After ``canonicalize`` these two stand for view, unsqueeze, squeeze, transpose and their kin, so
layout changes cancel by four short rules instead of one rule per spelling.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import fx

from .ops import PERMUTE, RESHAPE
from .rewrite import Answer, Rule, call, is_call, rule, shape


def inverse(dims: Sequence[int]) -> list[int]:
    """The permutation that undoes ``dims``."""
    return [list(dims).index(i) for i in range(len(dims))]


def reshaped(x: fx.Node, size: Sequence[int]) -> fx.Node:
    """``x`` itself or a reshape of it."""
    return x if shape(x) == tuple(size) else call(RESHAPE, x, list(size))


def dimension_groups(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]] | None:
    """Split a reshape into independent merges and splits of neighbouring axes.

    Returns:
        pairs (axes before, axes after) of equal size, in order; None if the tensor is empty.
    """
    if 0 in before:
        return None
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(left), j + len(right)
        a = math.prod(before[d] for d in left)
        b = math.prod(after[d] for d in right)
        while a != b:
            if a < b:
                left.append(i)
                a *= before[i]
                i += 1
            else:
                right.append(j)
                b *= after[j]
                j += 1
        if not left or not right:  # trailing ones on one side join the last group
            if not groups:
                return [(left, right)]
            groups[-1][0].extend(left)
            groups[-1][1].extend(right)
        else:
            groups.append((left, right))
    return groups


@rule("reshape(x, shape of x) => x", RESHAPE)
def _same_shape(node: fx.Node) -> Answer:
    return node.args[0] if shape(node.args[0]) == shape(node) else None


@rule("reshape(reshape(x)) => reshape(x)", RESHAPE)
def _reshape_twice(node: fx.Node) -> Answer:
    x = node.args[0]
    return call(RESHAPE, x.args[0], node.args[1]) if is_call(x, RESHAPE) else None


@rule("permute(x, in order) => x", PERMUTE)
def _same_order(node: fx.Node) -> Answer:
    x, dims = node.args
    return x if list(dims) == sorted(dims) else None


@rule("permute(permute(x)) => permute(x)", PERMUTE)
def _permute_twice(node: fx.Node) -> Answer:
    x, outer = node.args
    if not is_call(x, PERMUTE):
        return None
    return call(PERMUTE, x.args[0], [x.args[1][d] for d in outer])


@rule("permute(x) that moves only axes of size 1 => reshape(x)", PERMUTE)
def _permute_of_ones(node: fx.Node) -> Answer:
    x, dims = node.args
    moved = [d for d in dims if shape(x)[d] != 1]
    return call(RESHAPE, x, list(shape(node))) if moved == sorted(moved) else None


@rule("reshape(permute(x)) => permute(reshape(x))", RESHAPE)
def _reshape_permuted(node: fx.Node) -> Answer:
    x = node.args[0]
    if not is_call(x, PERMUTE):
        return None
    source, dims = x.args
    groups = dimension_groups(shape(x), shape(node))
    if not groups or any(not left or not right for left, right in groups):
        return None
    # Merged axes must be neighbours, in this order, before the permute as well.
    for left, _ in groups:
        if any(dims[b] != dims[a] + 1 for a, b in itertools.pairwise(left)):
            return None
    order = sorted(range(len(groups)), key=lambda g: dims[groups[g][0][0]])
    axes = [axis for g in order for axis in groups[g][1]]
    size = [shape(node)[axis] for axis in axes]
    return call(PERMUTE, call(RESHAPE, source, size), inverse(axes))


VIEW_RULES: tuple[Rule, ...] = (
    _same_shape,
    _reshape_twice,
    _same_order,
    _permute_twice,
    _permute_of_ones,
    _reshape_permuted,
)
