"""The rewriting machine: a rule looks at one node and says what should stand there instead."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from .context import Context, PassRecord
from .ops import PERMUTE, RESHAPE

Op = torch._ops.OpOverload

#: Where a node came from in the user's model; new nodes inherit it for reports.
_PROVENANCE = ("stack_trace", "nn_module_stack", "source_fn_stack")


@dataclass(frozen=True, eq=False)
class Call:
    """An operator call that does not stand in the graph yet; arguments may hold calls too.

    ``origin`` is the node whose place in the user's model the call inherits. ``size`` is the
    result's shape where the rule knows it of an operator whose results are dense and of its first
    input's type: that saves running the reference to find out.
    """

    op: Op
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    origin: fx.Node | None = None
    size: tuple[int, ...] | None = None


Value: TypeAlias = Call | fx.Node
#: What a rule answers: nothing, the matched node's replacement, or several nodes' replacements.
Answer: TypeAlias = Value | dict[fx.Node, Value] | None


@dataclass(frozen=True)
class Rule:
    """A rewrite: its name spells it out; ``match`` is tried on calls of ``ops`` (all, if empty)."""

    name: str
    ops: tuple[Op, ...]
    match: Callable[[fx.Node], Answer]


def rule(name: str, *ops: Op) -> Callable[[Callable[[fx.Node], Answer]], Rule]:
    """Declare the decorated function as the rule ``name``."""
    return lambda match: Rule(name, ops, match)


def call(op: Op, *args: Any, **kwargs: Any) -> Call:
    """A call of ``op``."""
    return Call(op, args, kwargs)


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of a call by schema name, defaults filled in."""
    found = dict(node.kwargs)
    for i, parameter in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            found[parameter.name] = node.args[i]
        elif parameter.name not in found:
            found[parameter.name] = parameter.default_value
    return found


def build(
    op: Op,
    values: Mapping[str, Any],
    origin: fx.Node | None = None,
    size: tuple[int, ...] | None = None,
) -> Call:
    """A call of ``op`` from arguments by schema name, leaving out what equals its default."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter in op._schema.arguments:
        if parameter.name not in values:
            continue
        value = values[parameter.name]
        if parameter.has_default_value() and _same(value, parameter.default_value):
            continue
        if parameter.kwarg_only or len(args) != _position(op, parameter.name):
            kwargs[parameter.name] = value
        else:
            args.append(value)
    return Call(op, tuple(args), kwargs, origin, size)


def change(node: fx.Node, **changes: Any) -> Call:
    """The call at ``node`` with some arguments replaced."""
    return build(node.target, {**arguments(node), **changes}, node)


def _position(op: Op, name: str) -> int:
    return [parameter.name for parameter in op._schema.arguments].index(name)


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, (fx.Node, Call)) or isinstance(default, torch.Tensor):
        return False
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return list(value) == list(default)
    return type(value) is type(default) and value == default


def is_call(node: Any, *ops: Op) -> TypeGuard[fx.Node]:
    """Whether ``node`` is a call of one of ``ops``."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in ops


def only_user(node: fx.Node) -> bool:
    """Whether exactly one node uses this value (a graph output counts as a user)."""
    return len(node.users) == 1


def shape(node: fx.Node) -> tuple[int, ...]:
    """The value's shape."""
    return tuple(node.meta["val"].shape)


def dtype(node: fx.Node) -> torch.dtype:
    """The value's type."""
    return node.meta["val"].dtype


def is_tensor(node: Any) -> TypeGuard[fx.Node]:
    """Whether ``node`` holds one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def fake_mode(gm: fx.GraphModule) -> contextlib.AbstractContextManager[Any]:
    """The mode under which the graph's ``meta["val"]`` were made."""
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return contextlib.nullcontext()


def fake_like(
    x: FakeTensor,
    size: Sequence[int],
    stride: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> FakeTensor:
    """A fake tensor of this shape (dense, unless ``stride`` is given), else like ``x``."""
    dtype = dtype or x.dtype
    if stride is None:
        meta = torch.empty(size, dtype=dtype, device="meta")
    else:
        meta = torch.empty_strided(size, stride, dtype=dtype, device="meta")
    return FakeTensor(x.fake_mode, meta, x.device)


def _view(node: fx.Node) -> FakeTensor | None:
    """The value of a reshape or permute, ten times faster than the dispatcher finds it."""
    if not is_call(node, PERMUTE, RESHAPE):
        return None
    x, numbers = node.args
    value = x.meta["val"]
    if not isinstance(value, FakeTensor):
        return None
    if node.target is PERMUTE:
        stride = value.stride()
        return fake_like(value, [value.shape[d] for d in numbers], [stride[d] for d in numbers])
    plain = value.is_contiguous() and min(numbers, default=0) >= 0
    return fake_like(value, numbers) if plain else None


def infer(node: fx.Node, mode: contextlib.AbstractContextManager[Any]) -> None:
    """Set the node's ``meta["val"]`` by running it on its arguments' fake values."""
    value = _view(node)
    if value is None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        with mode, torch.no_grad():
            value = node.target(*args, **kwargs)
    node.meta["val"] = value


class Editor:
    """Puts calls into a graph and keeps values, users and order right."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.graph = gm.graph
        self.mode = fake_mode(gm)

    def insert(
        self, value: Value, before: fx.Node, memo: dict[Call, fx.Node] | None = None
    ) -> fx.Node:
        """Write a call, and the calls inside its arguments, before a node."""
        memo = {} if memo is None else memo
        if isinstance(value, fx.Node):
            return value
        if value in memo:
            return memo[value]

        def place(x: Any) -> Any:
            if isinstance(x, Call):
                return self.insert(x, before, memo)
            if isinstance(x, (list, tuple)):
                return type(x)(place(y) for y in x)
            return x

        args = tuple(place(x) for x in value.args)
        kwargs = {key: place(x) for key, x in value.kwargs.items()}
        with self.graph.inserting_before(before):
            node = self.graph.call_function(value.op, args, kwargs)
        origin = value.origin or before
        node.meta = {key: origin.meta[key] for key in _PROVENANCE if key in origin.meta}
        lead = node.all_input_nodes[0].meta["val"] if node.all_input_nodes else None
        if value.size is not None and isinstance(lead, FakeTensor):
            node.meta["val"] = fake_like(lead, value.size)
        else:
            infer(node, self.mode)
        memo[value] = node
        return node

    def replace(self, replacements: Mapping[fx.Node, Value]) -> None:
        """Let each value stand where its node stood, and erase what nothing uses any more."""
        memo: dict[Call, fx.Node] = {}
        for node, value in replacements.items():
            if isinstance(value, Call) and value.op.namespace == "zoomc":
                value = dataclasses.replace(value, size=shape(node))
            node.replace_all_uses_with(self.insert(value, node, memo))
        for node in replacements:
            self.erase_dead(node)

    def erase_dead(self, node: fx.Node) -> None:
        """Erase the node if nothing uses it, then likewise its arguments."""
        stack = [node]
        while stack:
            node = stack.pop()
            if node._erased or node.users or node.op in ("placeholder", "output"):
                continue
            stack += node.all_input_nodes
            self.graph.erase_node(node)


def apply_rules(
    gm: fx.GraphModule, rules: Sequence[Rule], context: Context, record: PassRecord
) -> None:
    """Apply rules, in order of preference at each node, until none matches or the fuel is out."""
    by_op: dict[Any, list[Rule]] = defaultdict(list)
    everywhere: list[Rule] = [r for r in rules if not r.ops]
    for r in rules:
        for op in r.ops:
            by_op[op].append(r)
    editor = Editor(gm)
    changed = True
    limit = sweeps = len(gm.graph.nodes) + 100
    while changed:
        changed = False
        if not sweeps:
            raise RuntimeError(
                f"rules undo each other: still rewriting after {limit} sweeps; hits: {record.hits}"
            )
        sweeps -= 1
        for node in list(gm.graph.nodes):
            if node._erased or node.op != "call_function":
                continue
            for r in (*by_op.get(node.target, ()), *everywhere):
                answer = r.match(node)
                if answer is None:
                    continue
                if not context.spend():
                    return
                if isinstance(answer, dict):
                    editor.replace(answer)
                    in_order(gm)  # later nodes' arguments may stand behind the first one now
                else:
                    editor.replace({node: answer})
                record.hit(r.name)
                changed = True
                break


def erase_dead_nodes(gm: fx.GraphModule) -> int:
    """Erase every call and attribute that nothing uses; returns how many."""
    dead = [n for n in reversed(gm.graph.nodes) if n.op in ("call_function", "get_attr")]
    count = 0
    for node in dead:
        if not node.users:
            gm.graph.erase_node(node)
            count += 1
    return count


def in_order(gm: fx.GraphModule) -> None:
    """Move values before their first user where a rewrite left them behind it."""
    placed: set[fx.Node] = set()

    def place(node: fx.Node, before: fx.Node) -> None:
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [n for n in top.all_input_nodes if n not in placed]
            if missing:
                stack += missing
                continue
            stack.pop()
            if top not in placed:
                if top is not before:
                    before.prepend(top)
                placed.add(top)

    for node in list(gm.graph.nodes):
        if node not in placed:
            place(node, node)
