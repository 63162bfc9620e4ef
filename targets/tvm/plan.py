"""Decide for every node how it runs: at load time, as a view, in a kernel, or in eager."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx

from ...kernels.tir.kernel import STORAGE, Call, Kernel, TensorSpec, Unsupported, Value
from ..constants import constant_nodes

#: Operators that only reinterpret a dense tensor: no kernel, no copy.
VIEWS = frozenset(
    {
        "aten::view",
        "aten::_unsafe_view",
        "aten::reshape",
        "aten::unsqueeze",
        "aten::squeeze.dim",
        "aten::squeeze.dims",
        "aten::squeeze",
        "aten::flatten.using_ints",
        "aten::unflatten.int",
        "aten::alias",
        "aten::detach",
        "aten::clone",
        "aten::contiguous",
        "aten::lift_fresh_copy",
    }
)


@dataclass
class Plan:
    """What becomes of each node of a graph.

    Attributes:
        constant: nodes computed from weights alone, evaluated when packed.
        kernels: node → its kernel.
        views: node → the node whose memory it shares.
        fallbacks: node → why the target cannot lower it.
    elsewhere: node → the step that runs it on another machine.
    """

    constant: set[fx.Node]
    kernels: dict[fx.Node, Kernel] = field(default_factory=dict)
    views: dict[fx.Node, fx.Node] = field(default_factory=dict)
    fallbacks: dict[fx.Node, str] = field(default_factory=dict)
    elsewhere: dict[fx.Node, Any] = field(default_factory=dict)


def make_plan(gm: fx.GraphModule, lowering: Callable[[Call], Kernel]) -> Plan:
    """Plan every node of ``gm``; ``lowering`` gives the kernel of a call."""
    plan = Plan(constant_nodes(gm))
    for node in gm.graph.nodes:
        if node.op != "call_function" or node in plan.constant:
            continue
        try:
            if is_view(node):
                plan.views[node] = cast("fx.Node", node.args[0])
            else:
                plan.kernels[node] = lowering(as_call(node, plan.constant))
        except Unsupported as reason:
            plan.fallbacks[node] = str(reason)
        except Exception as error:  # a bug in one kernel must not take the model down
            plan.fallbacks[node] = f"its lowering failed: {type(error).__name__}: {error}"
    return plan


def graph_outputs(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes a graph returns, in order."""
    return list(cast("tuple[fx.Node, ...]", gm.graph.output_node().args[0]))


def is_view(node: fx.Node) -> bool:
    """Whether a node only reinterprets its first argument, both dense."""
    if op_name(node.target) not in VIEWS:
        return False
    spec_of(node)
    source = node.args[0]
    return isinstance(source, fx.Node) and spec_of(source).dtype == spec_of(node).dtype


def op_name(target: Any) -> str:
    """``aten::add.Tensor`` for ``torch.ops.aten.add.Tensor``; the default overload is unnamed."""
    if isinstance(target, torch._ops.OpOverload):
        overload = "" if target._overloadname == "default" else f".{target._overloadname}"
        return target._schema.name + overload
    return getattr(target, "__name__", str(target))


def spec_of(node: fx.Node) -> TensorSpec:
    """Shape and dtype of a node's value.

    Raises:
        Unsupported: the value is not one dense tensor that TIR can store.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        if node.target is operator.getitem or value is not None:
            raise Unsupported("its value is not one tensor")
        raise Unsupported("its shape is not known")
    if value.dtype not in STORAGE:
        raise Unsupported(f"no kernels for {str(value.dtype).removeprefix('torch.')}")
    if value.layout is not torch.strided:
        raise Unsupported(f"layout {value.layout}")
    shape = tuple(value.shape)
    if not all(isinstance(size, int) for size in shape):
        raise Unsupported("its shape depends on data")
    if 0 in shape:
        raise Unsupported("a tensor without elements")
    return TensorSpec(shape, value.dtype)


def as_call(node: fx.Node, constant: set[fx.Node]) -> Call:
    """The node as a call with arguments by schema name.

    Raises:
        Unsupported: it is no operator call, or one of its tensors cannot be stored in TIR.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        raise Unsupported("it is a call to Python")

    def convert(x: Any) -> Any:
        if isinstance(x, fx.Node):
            return Value(spec_of(x), x in constant, x)
        if isinstance(x, (list, tuple)):
            return [convert(y) for y in x]
        return x

    out = spec_of(node)
    args: Mapping[str, Any] = {k: convert(v) for k, v in arguments(node).items()}
    return Call(op_name(node.target), args, out)


def arguments(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by schema name, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    bound = {a.name: a.default_value for a in schema if a.has_default_value()}
    bound |= dict(zip((a.name for a in schema), node.args, strict=False))
    return bound | dict(node.kwargs)
