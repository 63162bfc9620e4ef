"""Which values depend on weights alone, so that a target may compute them once."""

from __future__ import annotations

import torch
from torch import fx


def is_constant(node: fx.Node | None) -> bool:
    """Whether the value depends on no graph input (None does not either)."""
    seen: set[fx.Node] = set()
    stack = [node] if node is not None else []
    while stack:
        node = stack.pop()
        if node.op == "placeholder":
            return False
        if node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
    return True


def constant_nodes(gm: fx.GraphModule) -> set[fx.Node]:
    """Attributes, and calls whose every input is constant; random calls are not."""
    constant: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            constant.add(node)
        elif node.op == "call_function":
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if not random and all(n in constant for n in node.all_input_nodes):
                constant.add(node)
    return constant


def mark_constants(gm: fx.GraphModule) -> None:
    """Set ``meta["constant"]`` on every call and attribute.

    Nothing is evaluated: weights are large, and they may change, so the target evaluates what
    it packs when it packs it.
    """
    constant = constant_nodes(gm)
    for node in gm.graph.nodes:
        node.meta["constant"] = node in constant


def constant_inputs(node: fx.Node) -> set[fx.Node]:
    """Which of a node's inputs depend on weights alone."""
    return {n for n in node.all_input_nodes if is_constant(n)}
