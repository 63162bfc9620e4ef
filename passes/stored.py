"""Weights that a model stores in codes, or pruned: found through what passes did to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from zoomc.kernels.weights import Encoding
from zoomc.kernels.weights.op import DECODE, RESTORE, UNPACK
from zoomc.kernels.weights.pruning import ROWS, kept_steps
from zoomc.kernels.weights.tables import UNIFORM

from .ops import CAT, TO, aten
from .rewrite import Value, call, is_call


@dataclass(frozen=True)
class Stored:
    """A coded weight as values of the graph, in the order a coded layer takes them.

    ``table`` and ``group_scale`` are None for int8. Of a weight that was only pruned ``codes`` is
    the weight, and ``channel_scale`` None too. ``parts`` are the shapes of the weights it is joined
    from.
    """

    encoding: Encoding
    codes: Value
    table: Value | None
    group_scale: Value | None
    channel_scale: Value | None
    parts: tuple[tuple[int, ...], ...]

    def kept_steps(self, gated: bool) -> int:
        """What a layer may know of it, see :func:`zoomc.kernels.weights.pruning.kept_steps`."""
        *before, last = self.parts
        if before and (gated or any(part[0] % ROWS for part in before)):
            return 0
        return kept_steps(last, self.encoding.pruning, gated)


def stored(weight: Any) -> Stored | None:
    """The codes that a constant weight decodes from, or what was left of it, if it does.

    Casts between floating types only concern the decoded numbers. Weights joined along their
    output channels are joined codes, where the tables agree.
    """
    given = weight
    while is_call(weight, TO):
        weight = weight.args[0]
    if is_call(weight, DECODE):
        return _decoded(weight)
    if is_call(weight, RESTORE):
        shape, encoding = weight.args[2:]
        return Stored(Encoding.parse(encoding), given, None, None, None, (tuple(shape),))
    if not is_call(weight, CAT) or (len(weight.args) > 1 and weight.args[1] != 0):
        return None
    parts = [stored(part) for part in weight.args[0]]
    first = parts[0]
    if first is None:
        return None
    for part in parts:
        if part is None or part.encoding != first.encoding:
            return None
        if first.table is not None and not torch.equal(_tensor(part.table), _tensor(first.table)):
            return None

    def joined(name: str) -> Value:
        return call(CAT, [getattr(part, name) for part in parts], 0)

    return Stored(
        first.encoding,
        given if first.channel_scale is None else joined("codes"),
        first.table,
        None if first.group_scale is None else joined("group_scale"),
        None if first.channel_scale is None else joined("channel_scale"),
        tuple(shape for part in parts for shape in part.parts),  # type: ignore[union-attr]
    )


def _decoded(node: fx.Node) -> Stored:
    packed, table, group_scale, channel_scale, shape, *pruned = cast("list[Any]", node.args)
    codes = call(UNPACK, packed, table, shape, *pruned)
    pruning = Encoding.parse(pruned[1]).pruning if pruned else None
    scale = call(aten.view.dtype, channel_scale, torch.float32)
    values, parts = _tensor(table), (tuple(shape),)
    if not values.numel():
        return Stored(Encoding("int8", pruning=pruning), codes, None, None, scale, parts)
    uniform = any(torch.equal(values, table) for table in UNIFORM)
    kind = "int4" if uniform else "shared"
    encoding = Encoding(kind, values.numel(), pruning)
    return Stored(encoding, codes, table, group_scale, scale, parts)


def _tensor(node: Any) -> torch.Tensor:
    """The tensor of an attribute."""
    module = node.graph.owning_module
    return getattr(module, str(node.target))  # type: ignore[no-any-return]
