"""Common subexpressions: one node for each distinct value."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .context import Context, PassRecord


def _key(x: Any) -> Any:
    """A hashable stand-in for an argument; 1, 1.0 and True differ."""
    if isinstance(x, (list, tuple)):
        return tuple(_key(y) for y in x)
    if isinstance(x, dict):
        return tuple(sorted((name, _key(y)) for name, y in x.items()))
    return x if isinstance(x, fx.Node) else (type(x), str(x))


def _repeatable(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags


def merge_equal(gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
    """Let equal calls (same operator, same arguments) share one node."""
    seen: dict[Any, fx.Node] = {}
    for node in list(gm.graph.nodes):
        if node.op == "get_attr":
            key: Any = ("get_attr", node.target)
        elif node.op == "call_function" and _repeatable(node):
            key = (node.target, _key(node.args), _key(node.kwargs))
        else:
            continue
        first = seen.setdefault(key, node)
        if first is node:
            continue
        if not context.spend():
            return
        node.replace_all_uses_with(first)
        gm.graph.erase_node(node)
        record.hit("f(x), f(x) => f(x)")
