"""What a report shows: its figures in numbers, and the charts of one compiled graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..targets.power import Energy
from . import charts
from .canvas import Canvas
from .charts import Point

#: Operator families in the legends' order, with their colours.
FAMILIES = {
    "convolution": "blue",
    "linear": "orange",
    "attention": "green",
    "norm": "violet",
    "other": "grey",
}
_FAMILY_OF = {
    "conv2d": "convolution",
    "linear": "linear",
    "mlp": "linear",
    "attention": "attention",
    "group": "norm",
    "layer": "norm",
}
OPERANDS = {"input": "blue", "weight": "orange", "output": "green"}
COMPONENTS = {"dram": "blue", "scratchpad": "green", "mac": "orange", "static": "grey"}

#: A kernel counts for the roof if it takes at least this share of the time: the figures of those
#: that take microseconds are mostly noise.
_COUNTS = 0.01


@dataclass(frozen=True)
class Figure:
    """A chart with what it shows and how to read it."""

    title: str
    note: str
    canvas: Canvas


def facts(graph: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The headline figures: name and value."""
    stored = sum(layer["bits"] for layer in graph["layers"]) / 8
    found = [
        ("target", str(graph["target"])),
        ("kernels", f"{len(graph['kernels'])} calls of {graph['distinct_kernels']}"),
        ("in eager", f"{len(graph['fallbacks'])} nodes"),
        ("weights", f"{max(graph['weight_bytes'], stored) / 1e6:.1f} MB"),
    ]
    if graph["flops"] and not graph["npu"]:
        found.append(("arithmetic", f"{graph['flops'] / 1e9:.2f} GFLOP"))
    timed = sum(group.seconds for group in _groups(graph))
    if timed:
        found.append(("in kernels", f"{timed * 1e3:.2f} ms a step"))
    npu = graph["npu"]
    if npu:
        layers = npu["layers"]
        found[0] = ("target", f"npu, {npu['machine']}")
        found.append(("layers on the NPU", f"{len(layers)}"))
        found.append(("predicted", f"{sum(r['bytes'] for r in layers) / 1e6:.2f} MB"))
    counted = _counted(graph)
    if counted:
        moved = sum(row["counted"]["bytes"] for row in counted)
        found.append(("moved", f"{moved / 1e6:.2f} MB"))
    return found


def energy_facts(energy: Energy) -> list[tuple[str, str]]:
    """The figures of a report's energy."""
    found = [
        ("energy a step", f"{energy.joules * 1e3:.3g} mJ"),
        ("time a step", f"{energy.seconds * 1e3:.3g} ms"),
        ("mean power", f"{energy.watts:.3g} W"),
    ]
    if energy.operations:
        found.append(("efficiency", f"{energy.tops_per_watt:.3g} TOPS/W"))
    return [*found, ("energy is", energy.source.split(",")[0])]


def figures(graph: Mapping[str, Any]) -> list[Figure]:
    """The charts that a graph has numbers for."""
    found = [_npu_roofline(graph), _traffic(graph), _energy(graph), *_over_time(graph)]
    found += [_kernel_roofline(graph), _kernel_bytes(graph), _kernel_time(graph)]
    return [figure for figure in found if figure is not None]


# The NPU: what the simulator counted


def _counted(graph: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The NPU's layers that ran."""
    npu = graph["npu"]
    return [row for row in npu["layers"] if "counted" in row] if npu else []


def _names(graph: Mapping[str, Any]) -> dict[str, str]:
    """Each layer's name in the model, by its node."""
    return {layer["node"]: layer["weight"].removesuffix(".weight") for layer in graph["layers"]}


def _npu_roofline(graph: Mapping[str, Any]) -> Figure | None:
    rows = _counted(graph)
    if not rows:
        return None
    names = _names(graph)
    whole = sum(row["counted"]["nanoseconds"] for row in rows)
    points = []
    for row in rows:
        counted, family = row["counted"], _family(row["node"])
        time = counted["nanoseconds"]
        tip = (
            f"{names.get(row['node'], row['node'])}: {row['ops'] / 1e6:,.1f} MOP,"
            f" {counted['bytes'] / 1e3:,.1f} kB, {time / 1e3:,.1f} µs,"
            f" {row['ops'] / time:,.0f} GOP/s"
        )
        intensity = row["ops"] / counted["bytes"]
        points.append(Point(intensity, row["ops"] / time, family, time / whole, tip))
    npu = graph["npu"]
    name = f"{_spoken(npu['gops'])} GOP/s at {npu['mhz'][-1]} MHz, {npu['gbytes']:.3g} GB/s"
    return Figure(
        "Roofline of the NPU",
        "A dot is a layer, as large as its share of the time. Under the slope memory is the limit,"
        " under the flat roof the MAC array. Simulated.",
        charts.roofline(points, FAMILIES, "GOP/s", (npu["gops"], npu["gbytes"], name)),
    )


def _traffic(graph: Mapping[str, Any]) -> Figure | None:
    if not graph["npu"] or not graph["npu"]["layers"]:
        return None
    names = _names(graph)
    rows = [
        (
            names.get(row["node"], row["node"]),
            [row["operands"][operand] / 1e6 for operand in OPERANDS],
            row["bound_bytes"] / 1e6,
        )
        for row in graph["npu"]["layers"]
    ]
    moved, bound = (sum(r[k] for r in graph["npu"]["layers"]) for k in ("bytes", "bound_bytes"))
    counted = _counted(graph)
    same = all(row["counted"]["bytes"] == row["bytes"] for row in counted)
    check = "; the simulator counted the same, layer by layer" if counted and same else ""
    return Figure(
        "Off-chip traffic of each layer against its lower bound",
        f"{moved / 1e6:.2f} MB planned in all{check}. {moved / max(1, bound):.3f} × the bound that"
        " no schedule of single layers can go below.",
        charts.columns(rows, OPERANDS, "MB", "layers in the order they run", "lower bound"),
    )


def _energy(graph: Mapping[str, Any]) -> Figure | None:
    totals: dict[str, float] = {}
    for row in _counted(graph):
        for name, value in row["counted"]["nanojoules"].items():
            totals[name] = totals.get(name, 0.0) + value
    whole = sum(totals.values())
    if not whole:
        return None
    return Figure(
        "Energy of a step by component",
        f"{whole / 1e6:.3f} mJ on the NPU and its memory, the host left out. Modelled from"
        " published energies a bit and an operation, not measured.",
        charts.bars(
            [
                (name, value, f"{value / 1e6:.3f} mJ, {value / whole:.0%}", COMPONENTS[name])
                for name, value in totals.items()
            ]
        ),
    )


def _over_time(graph: Mapping[str, Any]) -> list[Figure]:
    rows = _counted(graph)
    if not rows:
        return []
    names, npu = _names(graph), graph["npu"]
    clocks, powers = [], []
    for row in rows:
        name = names.get(row["node"], row["node"])
        time = row["counted"]["nanoseconds"]
        clocks.append((name, time / 1e6, float(row["mhz"])))
        power = sum(row["counted"]["nanojoules"].values()) / time * 1e3
        powers.append((name, time / 1e6, power))
    limit = npu.get("limit_mw")
    x = "ms of NPU time, the host left out"
    why = (
        "The highest clock of each layer that keeps the limit and that it can use."
        if limit
        else "No power limit was given: every layer runs at the highest clock."
    )
    line = None if not limit else (float(limit), f"limit {limit:g} mW")
    return [
        Figure(
            "Clock over a step",
            why,
            charts.steps(clocks, "blue", "MHz", x, None, "{}: {:.0f} MHz for {:.4f} ms".format),
        ),
        Figure(
            "Power over a step",
            f"Mean of each layer, {npu['static_mw']:g} mW of it static. Modelled.",
            charts.steps(powers, "green", "mW", x, line, "{}: {:.0f} mW for {:.4f} ms".format),
        ),
    ]


# CPU and GPU: generated kernels, timed or not


@dataclass(frozen=True)
class _Group:
    """All calls of one kernel."""

    name: str
    calls: int
    flops: int
    bytes: int
    activations: int
    seconds: float


def _groups(graph: Mapping[str, Any]) -> list[_Group]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for kernel in graph["kernels"]:
        found.setdefault(kernel["symbol"], []).append(kernel)
    return [
        _Group(
            calls[0]["name"],
            len(calls),
            sum(k["flops"] for k in calls),
            sum(k["bytes"] for k in calls),
            sum(k["activation_bytes"] for k in calls),
            graph["kernel_seconds"].get(symbol, 0.0),
        )
        for symbol, calls in found.items()
    ]


def _family(name: str) -> str:
    return _FAMILY_OF.get(name.split("_", maxsplit=1)[0], "other")


def _kernel_roofline(graph: Mapping[str, Any]) -> Figure | None:
    groups = [g for g in _groups(graph) if g.flops and g.bytes]
    if not groups:
        return None
    where = "Kernels of the host" if graph["npu"] else "Kernels"
    timed = [g for g in groups if g.seconds]
    if not timed and graph["npu"]:
        return None
    if not timed:
        whole = sum(g.flops for g in groups)
        points = [
            Point(g.flops / g.bytes, g.flops / 1e9, _family(g.name), g.flops / whole, _tip(g))
            for g in groups
        ]
        return Figure(
            f"{where}: arithmetic by intensity",
            "A dot is a kernel with all its calls. Kernels were not timed, so there is no roof.",
            charts.roofline(points, FAMILIES, "GFLOP a step"),
        )
    whole_time = sum(g.seconds for g in timed)
    points = [
        Point(
            g.flops / g.bytes,
            g.flops / g.seconds / 1e9,
            _family(g.name),
            g.seconds / whole_time,
            _tip(g),
        )
        for g in timed
    ]
    heavy = [g for g in timed if g.seconds >= _COUNTS * whole_time] or timed
    peak = max(g.flops / g.seconds for g in heavy) / 1e9
    bandwidth = max(g.bytes / g.seconds for g in heavy) / 1e9
    name = f"best reached by a kernel here: {_spoken(peak)} GFLOP/s, {bandwidth:.3g} GB/s"
    return Figure(
        f"{where}: roofline",
        "A dot is a kernel with all its calls, as large as its share of the measured time. Bytes"
        " are its operands', each once; what lies in a cache may pass the slope.",
        charts.roofline(points, FAMILIES, "GFLOP/s", (peak, bandwidth, name)),
    )


def _kernel_bytes(graph: Mapping[str, Any]) -> Figure | None:
    kernels: Sequence[Mapping[str, Any]] = graph["kernels"]
    if not kernels or graph["npu"]:
        return None
    rows = [
        (
            f"{k['name']} ({k['node']})",
            [k["activation_bytes"] / 1e6, (k["bytes"] - k["activation_bytes"]) / 1e6],
            None,
        )
        for k in kernels
    ]
    return Figure(
        "Bytes of each kernel, every operand once: the least it can move",
        f"{sum(k['bytes'] for k in kernels) / 1e6:.1f} MB in {len(kernels)} calls. This target's"
        " traffic is not counted, so there is no excess to show.",
        charts.columns(
            rows,
            {"activations": "blue", "weights": "orange"},
            "MB",
            "kernels in the order they run",
        ),
    )


def _kernel_time(graph: Mapping[str, Any]) -> Figure | None:
    groups = sorted((g for g in _groups(graph) if g.seconds), key=lambda g: -g.seconds)
    if not groups:
        return None
    by_name: dict[str, tuple[int, float]] = {}
    for g in groups:
        calls, seconds = by_name.get(g.name, (0, 0.0))
        by_name[g.name] = (calls + g.calls, seconds + g.seconds)
    whole = sum(g.seconds for g in groups)
    rows = [
        (
            name,
            seconds * 1e3,
            f"{seconds * 1e3:.2f} ms, {seconds / whole:.0%}, {calls} calls",
            FAMILIES[_family(name)],
        )
        for name, (calls, seconds) in sorted(by_name.items(), key=lambda item: -item[1][1])[:12]
    ]
    return Figure(
        "Where the time goes",
        f"{whole * 1e3:.2f} ms measured in kernels a step; the twelve that take longest.",
        charts.bars(rows),
    )


def _tip(group: _Group) -> str:
    timed = ""
    if group.seconds:
        rate = group.flops / group.seconds / 1e9
        timed = f", {group.seconds * 1e3:.3g} ms, {rate:.3g} GFLOP/s"
    return (
        f"{group.name}, {group.calls} calls: {group.flops / 1e9:.3g} GFLOP,"
        f" {group.bytes / 1e6:.3g} MB{timed}"
    )


def _spoken(value: float) -> str:
    """A number as people write it."""
    return f"{value:,.0f}" if value >= 100 or math.isclose(value, round(value)) else f"{value:.3g}"
