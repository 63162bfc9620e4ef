"""Cut a planned graph into as few compiled segments as its eager nodes allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import fx

from ...kernels.tir.kernel import Operand
from .executable import EagerStep
from .plan import Plan, graph_outputs
from .relax import Segment


def partition(
    gm: fx.GraphModule, plan: Plan, own: Mapping[fx.Node, set[fx.Node]] | None = None
) -> list[Segment | EagerStep]:
    """Order the nodes so that everything compiled which can run now does, then eager nodes.

    The order is a topological one, and greedy: it leaves a segment only when nothing more can
    run in it. A graph without fallbacks becomes one segment.

    Args:
        gm: the graph.
        plan: how each of its nodes runs.
        own: nodes by the placeholder that they alone depend on, which get segments of their own.
    """
    waiting = [
        node
        for node in gm.graph.nodes
        if node.op == "call_function" and node not in plan.constant and used(node)
    ]
    done = plan.constant | set(gm.graph.find_nodes(op="placeholder"))
    first: list[Segment | EagerStep] = []
    for i, (source, nodes) in enumerate((own or {}).items()):
        group = [node for node in waiting if node in nodes]
        first.append(replace(_segment(f"own{i}", group, plan, gm), alone=source))
        done |= nodes
    waiting = [node for node in waiting if node not in done]
    groups: list[list[fx.Node] | fx.Node] = []
    while waiting:
        compiled: list[fx.Node] = []
        eager: list[fx.Node] = []
        rest: list[fx.Node] = []
        for node in waiting:
            if not all(n in done for n in node.all_input_nodes):
                rest.append(node)
            elif node in plan.fallbacks or node in plan.elsewhere:
                eager.append(node)
            else:
                compiled.append(node)
                done.add(node)
        if compiled:
            groups.append(compiled)
            rest = [node for node in waiting if node not in done]
        else:
            groups.extend(eager)
            done |= set(eager)
        waiting = rest
    return first + [
        plan.elsewhere.get(group) or EagerStep(group)
        if isinstance(group, fx.Node)
        else _segment(f"segment{i}", group, plan, gm)
        for i, group in enumerate(groups)
    ]


def used(node: fx.Node) -> bool:
    """Whether anything reads the node, the graph's output included."""
    return bool(node.users)


def _segment(name: str, nodes: list[fx.Node], plan: Plan, gm: fx.GraphModule) -> Segment:
    inside = set(nodes)
    inputs: dict[fx.Node, None] = {}
    constants: dict[int, Operand] = {}
    for node in nodes:
        for source in reads(node, plan):
            if isinstance(source, Operand):
                constants[id(source)] = source
            elif source not in inside:
                inputs[source] = None
    results = set(graph_outputs(gm))
    outputs = [n for n in nodes if n in results or any(u not in inside for u in n.users)]
    return Segment(name, nodes, list(inputs), outputs, list(constants.values()))


def reads(node: fx.Node, plan: Plan) -> Sequence[fx.Node | Operand]:
    """What a compiled node reads: activations as nodes, constants as operands."""
    if node in plan.views:
        return [plan.views[node]]
    return [
        operand if all(v.constant for v in operand.values) else operand.values[0].source
        for operand in plan.kernels[node].operands
    ]
