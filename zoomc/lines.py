"""A report in words: the lines of each part, from a graph's figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .record import Record
from .targets.power import Energy
from .zoom.settings import ZoomSettings

#: A telephone's battery, for a figure of hours.
BATTERY_WH = 15.0


def energy_lines(energy: Energy | None, why: str = "") -> list[str]:
    """Energy a step, a frame and a zoom second, as a zoom with default settings spends it."""
    if energy is None:
        return [f"energy: not known, {why}"] if why else []
    zoom = ZoomSettings()
    steps, frames, fps = zoom.steps, zoom.frames_per_keyframe, zoom.fps
    tops = f", {energy.tops_per_watt:.3g} TOPS/W" if energy.operations else ""
    return [
        f"energy ({energy.source}): {energy.joules * 1e3:.4g} mJ a step, {energy.watts:.3g} W,"
        f" {energy.per_second_per_watt:.4g} steps/s/W{tops}",
        f"    with {steps} steps a keyframe of {frames} frames, at {fps:g} a second:"
        f" {energy.per_frame(steps, frames) * 1e3:.4g} mJ a frame,"
        f" {energy.per_zoom_second(steps, frames, fps) * 1e3:.4g} mJ a zoom second;"
        f" {energy.battery_hours(BATTERY_WH):.3g} h on {BATTERY_WH:g} Wh",
    ]


def summary(graph: Mapping[str, Any]) -> list[str]:
    """Target, kernels, arithmetic, bytes, time by stage, fusions and fallbacks."""
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in graph["seconds"].items())
    lines = [
        f"  target       {graph['target']} ({graph['isa']}, {graph['threads']} threads)",
        f"  kernels      {len(graph['kernels'])} calls of {graph['distinct_kernels']} kernels",
        f"  arithmetic   {graph['flops'] / 1e9:.1f} GFLOP",
        f"  weights      {graph['weight_bytes'] / 1e6:.1f} MB packed",
        f"  activations  {graph['activation_bytes'] / 1e6:.1f} MB read and written",
        f"  seconds      {sum(graph['seconds'].values()):.2f} ({seconds})",
        "  fusions",
    ]
    lines += [f"    {count:5d}  {rule}" for rule, count in graph["fusions"].items()] or ["    none"]
    lines.append(f"  fallbacks    {len(graph['fallbacks']) or 'none'}")
    lines += [f"    {f['node']} ({f['operator']}): {f['reason']}" for f in graph["fallbacks"]]
    for part in (_tuning_lines, _encoding_lines, _attention_lines, _npu_lines):
        lines += part(graph)
    return lines


def _tuning_lines(graph: Mapping[str, Any]) -> list[str]:
    """Kernels whose tiles a tuning run found, and entries that could not be used."""
    tuning = graph["tuning"]
    if not tuning or not (tuning["used"] or tuning["ignored"]):
        return []
    count = len(graph["kernels"])
    lines = [f"  tuning       {tuning['used']} of {count} calls by {tuning['file']}"]
    return lines + [f"    {n:5d}  ignored: {why}" for why, n in tuning["ignored"].items()]


def _npu_lines(graph: Mapping[str, Any]) -> list[str]:
    """What runs on the NPU, what it moved beside the prediction, and what stays on the CPU."""
    npu = graph["npu"]
    if npu is None:
        return []
    layers = npu["layers"]
    lines = [
        f"  npu          {npu['machine']}: {len(layers)} layers,"
        f" {sum(layer['bytes'] for layer in layers) / 1e6:.3f} MB predicted,"
        f" {sum(layer['bound_bytes'] for layer in layers) / 1e6:.3f} MB the least possible"
    ]
    counted = [layer["counted"] for layer in layers if "counted" in layer]
    if counted:
        joules = sum(sum(c["nanojoules"].values()) for c in counted)
        lines.append(
            f"    simulated  {sum(c['bytes'] for c in counted) / 1e6:.3f} MB moved,"
            f" {sum(c['nanoseconds'] for c in counted) / 1e6:.3f} ms, {joules / 1e6:.3f} mJ"
        )
    if layers:
        lines.append("           on the CPU: norm, activation and quantisation before each layer")
    reasons = Counter(row["reason"] for row in npu["on_cpu"])
    lines += [f"    {count:5d}  on the CPU: {reason}" for reason, count in reasons.most_common()]
    return lines


def _encoding_lines(graph: Mapping[str, Any]) -> list[str]:
    """Layers by encoding, and by the reasons for what is not as asked for."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for layer in graph["layers"]:
        reasons = "; ".join(filter(None, (layer["reason"], layer["weight_only"])))
        groups.setdefault((layer["encoding"], reasons), []).append(layer)
    if not groups:
        return []
    total = sum(layer["bits"] for layer in graph["layers"]) / 8e6
    error = graph["encoding_error"]
    measured = "" if error is None else f", causing an error of {error:.2e} (relative, 2-norm)"
    lines = [f"  encodings    {total:.1f} MB in {len(graph['layers'])} layers{measured}"]
    for (encoding, reason), group in sorted(groups.items()):
        megabytes = sum(layer["bits"] for layer in group) / 8e6
        why = f"  {reason}" if reason else ""
        lines.append(f"    {len(group):5d}  {encoding:10s} {megabytes:8.2f} MB{why}")
    return lines + _smoothing_lines(graph) + _scale_lines(graph)


def _smoothing_lines(graph: Mapping[str, Any]) -> list[str]:
    """Layers that share the sizes of their input channels with the norm before."""
    smoothed = [layer["smoothed"] for layer in graph["layers"] if layer["smoothed"]]
    if not smoothed:
        return []
    return [f"  smoothing    {len(smoothed)} layers, in {sum(smoothed)} channels of norms before"]


def _scale_lines(graph: Mapping[str, Any]) -> list[str]:
    """Layers whose scales the first call fixed, and why others' are not, where that was asked."""
    fixed = sum(layer["bounds"] is not None for layer in graph["layers"])
    reasons = Counter(layer["dynamic"] for layer in graph["layers"] if layer["dynamic"])
    if not fixed and not reasons:
        return []
    lines = [f"  scales       static in {fixed} layers, by what the first call read"]
    return lines + [f"    {count:5d}  dynamic: {why}" for why, count in reasons.most_common()]


def _attention_lines(graph: Mapping[str, Any]) -> list[str]:
    """What attentions multiply, and why where it is not what was asked for."""
    calls = Counter((a["arithmetic"], a["reason"]) for a in graph["attentions"])
    if not calls:
        return []
    lines = [f"  attention    {len(graph['attentions'])} calls, by what is multiplied"]
    for (arithmetic, reason), count in sorted(calls.items()):
        lines.append(f"    {count:5d}  {arithmetic:10s}{'  ' if reason else ''}{reason}".rstrip())
    return lines


def attention_lines(graph: Mapping[str, Any]) -> list[str]:
    """What each attention loses by itself, where that was measured."""
    rows = [a for a in graph["attentions"] if a["error"] is not None]
    if not rows:
        return []
    lines = ["  multiplied  own error  attention (batch, heads, queries, keys, size of a head)"]
    for row in rows:
        shape = tuple(row["shape"])
        lines.append(f"  {row['arithmetic']:10s}  {row['error']:9.2e}  {row['node']} {shape}")
    return lines


def layer_lines(graph: Mapping[str, Any]) -> list[str]:
    """How each layer's weight is stored, and what it alone loses with each encoding tried."""
    if not graph["layers"]:
        return []
    tried = dict.fromkeys(name for layer in graph["layers"] for name in layer["errors"])
    names = [name for name in tried if name != "keep"]
    alone = [f"{name:>9}" for name in names]
    lines = []
    if names:
        lines.append("  the error of each layer's own output, by encoding (relative, 2-norm)")
    lines.append(" ".join(["  taken         bits a weight        kB", *alone, " weight"]))
    for layer in graph["layers"]:
        bits = layer["bits"] / math.prod(layer["shape"])
        errors = [
            f"{layer['errors'][name]:9.2e}" if name in layer["errors"] else f"{'-':>9}"
            for name in names
        ]
        stored = f"  {layer['encoding']:14s} {bits:12.2f} {layer['bits'] / 8e3:9.1f}"
        lines.append(" ".join([stored, *errors, f" {layer['weight']} {tuple(layer['shape'])}"]))
    return lines


def kernel_lines(graph: Mapping[str, Any], notes: bool) -> list[str]:
    """One line per distinct kernel, slowest first where timed, else heaviest first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for kernel in graph["kernels"]:
        groups.setdefault(kernel["symbol"], []).append(kernel)
    seconds = graph["kernel_seconds"]

    def weight(group: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
        return seconds.get(group[0]["symbol"], 0.0), sum(k["flops"] for k in group)

    lines = ["  calls    GFLOP       MB       ms  GFLOP/s    GB/s  kernel"]
    for group in sorted(groups.values(), key=weight, reverse=True):
        spent, flops = weight(group)
        moved = sum(k["bytes"] for k in group)
        timed = (
            f"{spent * 1e3:8.2f} {flops / spent / 1e9:8.0f} {moved / spent / 1e9:7.1f}"
            if spent
            else f"{'-':>8} {'-':>8} {'-':>7}"
        )
        line = (
            f"  {len(group):5d} {flops / 1e9:8.2f} {moved / 1e6:8.1f} {timed}  {group[0]['name']}"
        )
        parts = graph["stage_seconds"].get(group[0]["symbol"], {})
        if len(parts) > 1:
            whole = sum(parts.values())
            line += f" ({', '.join(f'{name} {part / whole:.0%}' for name, part in parts.items())})"
        if notes:
            line += "".join(f" {k}={v}" for k, v in group[0]["notes"].items())
        lines.append(line)
    return lines


def validation_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every kernel's error against its reference, worst first."""
    if not rows:
        return []
    lines = ["  kernels against their references (relative error, 2-norm)"]
    for row in sorted(rows, key=lambda r: (r["finite"], -r["error"])):
        odd = "" if row["finite"] else "  NOT FINITE where the reference is, or the reverse"
        lines.append(f"    {row['error']:9.2e}  {row['node']} ({row['kernel']}){odd}")
    return lines


def pass_lines(record: Record) -> list[str]:
    """What each pass did."""
    return ["", str(record.trace)] if record.trace else []
