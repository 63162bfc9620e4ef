"""Weights that a model already stores in codes: found through what passes did to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from zoomc.kernels.weights import Encoding
from zoomc.kernels.weights.op import DECODE, UNPACK
from zoomc.kernels.weights.tables import UNIFORM

from .ops import CAT, TO, aten
from .rewrite import Value, call, is_call


@dataclass(frozen=True)
class Stored:
    """A coded weight as values of the graph, in the order a coded layer takes them.

    ``table`` and ``group_scale`` are None for int8.
    """

    encoding: Encoding
    codes: Value
    table: Value | None
    group_scale: Value | None
    channel_scale: Value


def stored(weight: Any) -> Stored | None:
    """The codes that a constant weight decodes from, if it does.

    Casts between floating types only concern the decoded numbers. Weights joined along their
    output channels are joined codes, where the tables agree.
    """
    while is_call(weight, TO):
        weight = weight.args[0]
    if is_call(weight, DECODE):
        return _decoded(weight)
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
        joined("codes"),
        first.table,
        None if first.group_scale is None else joined("group_scale"),
        joined("channel_scale"),
    )


def _decoded(node: fx.Node) -> Stored:
    packed, table, group_scale, channel_scale, shape = node.args
    codes = call(UNPACK, packed, table, shape)
    scale = call(aten.view.dtype, channel_scale, torch.float32)
    values = _tensor(table)
    if not values.numel():
        return Stored(Encoding("int8"), codes, None, None, scale)
    uniform = any(torch.equal(values, table) for table in UNIFORM)
    encoding = Encoding("int4") if uniform else Encoding("shared", values.numel())
    return Stored(encoding, codes, table, group_scale, scale)  # type: ignore[arg-type]


def _tensor(node: Any) -> torch.Tensor:
    """The tensor of an attribute."""
    module = node.graph.owning_module
    return getattr(module, str(node.target))  # type: ignore[no-any-return]
