"""Rows quantised as they are loaded, by magnitudes that the kernels which write them gather."""

from __future__ import annotations

import dataclasses

from torch import fx

from ...kernels.triton.gpu import Gpu
from ...kernels.triton.kernel import Call, Kernel, Value, gathering_peaks, given_peaks
from .plan import KEPT, ExtraOf, Plan, lowered


def gather_peaks(plan: Plan, gpu: Gpu) -> None:
    """Let kernels gather the magnitudes that others quantise their rows by, where it saves time.

    A pass that quantises reads all rows, writes their codes and is a launch; instead the product
    reads the rows themselves. How wide the blocks are is settled here.
    """
    for node, kernels in plan.kernels.items():
        if kernels[0].scaled:
            source = plan.writer(kernels[0].operands[kernels[0].scaled].values[0])
            if source is not None:
                _pair(source, node, plan, gpu)


def _pair(source: fx.Node, node: fx.Node, plan: Plan, gpu: Gpu) -> None:
    """Let a node quantise by what the one that writes its rows gathers, if that is faster."""
    asked, writers = plan.call(source), plan.kernels[source]
    if "peaks" not in writers[0].extras:
        asked = gathering_peaks(asked)
        writers = _settled(asked, writers[0], gpu)
        if not writers or "peaks" not in writers[0].extras:
            return
        blocks = writers[0].extras["peaks"].spec
        writers = [k for k in writers if k.extras["peaks"].spec == blocks][:KEPT]
    value = Value(writers[0].extras["peaks"].spec, source=ExtraOf(source, "peaks"))
    given = given_peaks(plan.call(node), value)
    readers = _settled(given, plan.kernels[node][0], gpu)
    if not readers or "read_peaks" not in readers[0].operands:
        return
    before = plan.kernels[source][0].seconds + plan.kernels[node][0].seconds
    if writers[0].seconds + readers[0].seconds >= before:
        return
    plan.calls |= {source: asked, node: given}
    plan.kernels[source] = writers
    plan.kernels[node] = readers[:KEPT]


def _settled(call: Call, old: Kernel, gpu: Gpu) -> list[Kernel]:
    """A call's kernels that gather what an older choice does, in blocks of the same size."""
    found = lowered(call, gpu)
    if isinstance(found, str):
        return []
    told = {n: old.notes[n] for n in ("statistics",) if n in old.notes}
    if call.args.get("peaks") is not None:
        told["scales"] = f"from {call['peaks'].source.node.name}"
    return [
        dataclasses.replace(k, notes={**k.notes, **told})
        for k in found
        if all(n in k.extras and k.extras[n].spec == e.spec for n, e in old.extras.items())
    ]
