"""Decide for every node how it runs on a GPU, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import fx

from ...kernels.triton.gpu import Gpu
from ...kernels.triton.kernel import Call, Kernel, Unsupported, Value, candidates
from ..constants import constant_nodes
from ..tvm.plan import as_call, is_view
from .leftovers import Leftovers

#: Choices kept of each kernel, best first: what tuning times, and what is left if one fails.
KEPT = 6


@dataclass(frozen=True)
class ExtraOf:
    """Where a value comes from that a node's kernel gathers besides its result."""

    node: fx.Node
    name: str


@dataclass
class Plan:
    """What becomes of each node of a graph.

    Attributes:
        constant: nodes computed from weights alone, evaluated when packed.
        kernels: node → the choices of its kernel, the one that runs first.
        views: node → the node whose memory it shares.
        leftovers: node → why there is no kernel for it.
        calls: node → its call, where that is asked for or given more than the graph says.
    """

    constant: set[fx.Node]
    kernels: dict[fx.Node, list[Kernel]] = field(default_factory=dict)
    views: dict[fx.Node, fx.Node] = field(default_factory=dict)
    leftovers: dict[fx.Node, str] = field(default_factory=dict)
    calls: dict[fx.Node, Call] = field(default_factory=dict)

    def call(self, node: fx.Node) -> Call:
        """The call that a node's kernels compute."""
        return self.calls.get(node) or as_call(node, self.constant)

    def writer(self, value: Value) -> fx.Node | None:
        """The node whose kernel writes a value, in rows of the same length, if there is one."""
        source = value.source
        while source in self.views:
            source = self.views[source]
        kernels = self.kernels.get(source)
        same = kernels and kernels[0].out.shape[-1] == value.spec.shape[-1]
        return cast("fx.Node", source) if same else None

    def extras_read(self, node: fx.Node) -> list[ExtraOf]:
        """What a node's kernel reads of other kernels besides their results."""
        operands = self.kernels[node][0].operands.values()
        sources = (operand.values[0].source for operand in operands)
        return [source for source in sources if isinstance(source, ExtraOf)]

    def extras_made(self, node: fx.Node) -> list[ExtraOf]:
        """What a node's kernel gathers besides its result."""
        return [ExtraOf(node, name) for name in self.kernels[node][0].extras]


@dataclass
class View:
    """A node that only reinterprets another's memory."""

    node: fx.Node


@dataclass
class Run:
    """A node computed by a kernel."""

    node: fx.Node


Step = View | Run | Leftovers


def choices(node: fx.Node, constant: set[fx.Node], gpu: Gpu) -> list[Kernel] | str:
    """The kernels that compute a node, best first, or why there are none."""
    try:
        call = as_call(node, constant)
    except Unsupported as reason:
        return str(reason)
    found = lowered(call, gpu)
    return found if isinstance(found, str) else found[:KEPT]


def lowered(call: Call, gpu: Gpu) -> list[Kernel] | str:
    """All kernels that compute a call, best first, or why there are none."""
    try:
        return candidates(call, gpu)
    except Unsupported as reason:
        return str(reason)
    except Exception as error:  # a bug in one kernel must not take the model down
        return f"its lowering failed: {type(error).__name__}: {error}"


def make_plan(gm: fx.GraphModule, gpu: Gpu) -> Plan:
    """Plan every node of ``gm`` for a GPU."""
    from .moments import gather_moments
    from .peaks import gather_peaks

    plan = Plan(constant_nodes(gm))
    for node in gm.graph.nodes:
        if node.op != "call_function" or node in plan.constant:
            continue
        try:
            view = is_view(node)
        except Unsupported:
            view = False
        if view:
            plan.views[node] = cast("fx.Node", node.args[0])
            continue
        found = choices(node, plan.constant, gpu)
        if isinstance(found, str):
            plan.leftovers[node] = found
        else:
            plan.kernels[node] = found
    gather_moments(plan, gpu)
    gather_peaks(plan, gpu)
    return plan


def schedule(gm: fx.GraphModule, plan: Plan) -> list[Step]:
    """Order the nodes so that leftovers form as few groups as they can.

    A topological order, and greedy: it leaves a group only when nothing more can join it.
    """
    waiting = [
        node
        for node in gm.graph.nodes
        if node.op == "call_function" and node not in plan.constant and node.users
    ]
    done = plan.constant | set(gm.graph.find_nodes(op="placeholder"))
    steps: list[Step] = []
    left = False
    while waiting:
        group = _ready(waiting, done, plan, left)
        if group and left:
            steps.append(Leftovers.of(group, [plan.leftovers.get(n, "") for n in group]))
        elif group:
            steps += [View(n) if n in plan.views else Run(n) for n in group]
        waiting = [node for node in waiting if node not in done]
        left = not left
    return steps


def _ready(waiting: Sequence[fx.Node], done: set[fx.Node], plan: Plan, left: bool) -> list[fx.Node]:
    """All that can run now without a node of the other kind; added to ``done``.

    A view joins whichever group it is met in.
    """
    group = []
    for node in waiting:
        mine = node in plan.views or (node in plan.leftovers) == left
        if mine and all(n in done for n in node.all_input_nodes):
            group.append(node)
            done.add(node)
    return group
