"""Statistics of maps, gathered by the kernels that write them and not by a pass of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from ...kernels.triton.gpu import Gpu
from ...kernels.triton.kernel import Kernel, TensorSpec, Value, gathering, given
from ...kernels.triton.product import pass_seconds
from .plan import KEPT, ExtraOf, Plan, lowered


@dataclass(frozen=True)
class _Reading:
    """A node that needs the moments of one of its inputs, the ``index``-th it measures."""

    node: fx.Node
    index: int
    spec: TensorSpec

    @property
    def rows(self) -> int:
        """Rows of an image."""
        return math.prod(self.spec.shape[1:-1])


def gather_moments(plan: Plan, gpu: Gpu) -> None:
    """Let kernels gather the moments that others need of their results, where that saves time.

    How many rows a block of them has is settled here: choices of both kernels that are left, for
    tuning too, agree on it.
    """
    readers: dict[fx.Node, list[_Reading]] = {}
    for node, kernels in plan.kernels.items():
        for source, reading in _readings(node, kernels[0], plan):
            readers.setdefault(source, []).append(reading)
    given_to: dict[fx.Node, dict[int, fx.Node]] = {}
    for node in plan.kernels:
        if node in given_to:
            _take(node, given_to[node], plan, gpu)
        asked = readers.get(node, [])
        if asked and _gather(node, asked, plan, gpu):
            for reading in asked:
                given_to.setdefault(reading.node, {})[reading.index] = node
    for node, sources in given_to.items():
        told = "from " + ", ".join(source.name for source in dict.fromkeys(sources.values()))
        plan.kernels[node] = [
            dataclasses.replace(kernel, notes={**kernel.notes, "statistics": told})
            for kernel in plan.kernels[node]
        ]


def _readings(node: fx.Node, kernel: Kernel, plan: Plan) -> Iterator[tuple[fx.Node, _Reading]]:
    """What a kernel measures that another kernel writes, in rows of the same channels."""
    for index, name in enumerate(kernel.measured):
        (value,) = kernel.operands[name].values
        source = plan.writer(value)
        if source is not None:
            yield source, _Reading(node, index, value.spec)


def _gather(node: fx.Node, readings: list[_Reading], plan: Plan, gpu: Gpu) -> bool:
    """Let a node's kernels gather moments for its readers; whether they do."""
    call = gathering(plan.call(node), math.gcd(*(reading.rows for reading in readings)))
    found = lowered(call, gpu)
    if isinstance(found, str):
        return False
    found = [kernel for kernel in found if "moments" in kernel.extras]
    if not found:
        return False
    saved = sum(pass_seconds(reading.spec.nbytes, gpu) for reading in readings)
    if found[0].seconds - plan.kernels[node][0].seconds >= saved:
        return False
    blocks = found[0].extras["moments"].spec
    plan.calls[node] = call
    plan.kernels[node] = [k for k in found if k.extras["moments"].spec == blocks][:KEPT]
    return True


def _take(node: fx.Node, sources: dict[int, fx.Node], plan: Plan, gpu: Gpu) -> None:
    """Give a node's kernels the moments that others gather."""

    def value(source: fx.Node) -> Value:
        extra = plan.kernels[source][0].extras["moments"]
        return Value(extra.spec, source=ExtraOf(source, "moments"))

    measured = range(len(plan.kernels[node][0].measured))
    values = [value(sources[i]) if i in sources else None for i in measured]
    call = given(plan.call(node), values)
    found = lowered(call, gpu)
    if isinstance(found, str):
        return  # its kernels gather their own
    plan.calls[node] = call
    plan.kernels[node] = found[:KEPT]
