"""Patterns that more than one pass looks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import fx

from .ops import ADD, MUL, aten
from .rewrite import arguments, is_call, is_tensor


class Activation(NamedTuple):
    """An activation found in the graph: its name, its input, and the nodes that spell it."""

    name: str
    x: fx.Node
    nodes: tuple[fx.Node, ...]


def activation(node: Any) -> Activation | None:
    """The activation that ends in ``node``, by its name in ``kernels.activation``."""
    if is_call(node, aten.silu.default):
        return Activation("silu", node.args[0], (node,))
    if is_call(node, aten.relu.default):
        return Activation("relu", node.args[0], (node,))
    if is_call(node, aten.gelu.default):
        name = {"none": "gelu", "tanh": "gelu_tanh"}[arguments(node)["approximate"]]
        return Activation(name, node.args[0], (node,))
    return _quick_gelu(node)


#: The calls in which an activation can end.
ACTIVATION_OPS = (aten.silu.default, aten.relu.default, aten.gelu.default, MUL)


def _quick_gelu(node: Any) -> Activation | None:
    """``x * sigmoid(1.702 * x)``."""
    if not is_call(node, MUL):
        return None
    for x, gate in (node.args, node.args[::-1]):
        if not is_call(gate, aten.sigmoid.default) or not is_call(gate.args[0], MUL):
            continue
        scaled = gate.args[0]
        factors = [y for y in scaled.args if isinstance(y, (int, float))]
        inner = used_only_by(gate, [node]) and used_only_by(scaled, [gate])
        if factors == [1.702] and x in scaled.args and inner:
            return Activation("quick_gelu", x, (scaled, gate, node))
    return None


def used_only_by(node: fx.Node, users: Sequence[fx.Node]) -> bool:
    """Whether no other node uses this value."""
    return all(user in users for user in node.users)


def sum_of(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Both orders of the operands, if ``node`` adds two different tensors."""
    if not is_call(node, ADD) or arguments(node)["alpha"] != 1:
        return []
    a, b = node.args[:2]
    if not is_tensor(a) or not is_tensor(b) or a is b:
        return []
    return [(a, b), (b, a)]
