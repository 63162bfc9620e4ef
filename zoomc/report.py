"""What was fused, generated and left to eager, what it costs and how far it is from eager."""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .errors import ReportFileError
from .options import Options
from .record import Record, collect


class Report:
    """What the compiler made of a model: prints well, converts to a dict.

    Attributes:
        records: one per compiled graph.
        error: relative error of the outputs against eager (2-norm), None if not measured.
    """

    def __init__(self, records: Sequence[Record], error: float | None = None) -> None:
        self.records = list(records)
        self.error = error

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {"graphs": [_graph(record) for record in self.records], "error": self.error}

    def __str__(self) -> str:
        return self.text()

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report with its charts as one HTML file that opens offline.

        Roofline, and where the target is an NPU, each layer's traffic against its lower bound,
        energy by component, clock and power over time.

        Raises:
            ReportFileError: the file cannot be written.
        """
        save([("", self)], html=path)

    def save_png(self, path: str | os.PathLike[str]) -> None:
        """Write the same charts as one PNG.

        Raises:
            ReportFileError: the file cannot be written.
        """
        save([("", self)], png=path)

    def text(self, level: int = 2) -> str:
        """The report for people, by the levels of ``debug``."""
        lines = [f"zoomc: {len(self.records)} graph(s) compiled"]
        if self.error is not None:
            lines.append(f"error against eager: {self.error:.2e} (relative, 2-norm)")
        for index, graph in enumerate(self.to_dict()["graphs"]):
            record = self.records[index]
            lines += ["", f"graph {index}", *_summary(graph), *_validation_lines(record.validation)]
            if level >= 2:
                lines += _kernel_lines(graph, notes=level >= 3)
            if level >= 3:
                lines += _layer_lines(graph)
                lines += _pass_lines(record)
            if level >= 4 and record.executable:
                lines += [f"; {symbol}\n{text}" for symbol, text in record.executable.source()]
            if level >= 5 and record.graph is not None:
                lines.append(record.graph.print_readable(print_output=False))
        return "\n".join(lines)


def save(
    sections: Sequence[tuple[str, Report]],
    html: str | os.PathLike[str] | None = None,
    png: str | os.PathLike[str] | None = None,
) -> None:
    """Write reports, each with its title, as one page and as one picture.

    Raises:
        ReportFileError: a file cannot be written.
    """
    from . import figures

    try:
        if html is not None:
            Path(html).write_text(figures.html(sections), encoding="utf-8")
        if png is not None:
            figures.png(sections).save(png, format="PNG")
    except OSError as error:
        raise ReportFileError(f"the report cannot be written: {error}") from error


def explain(
    model: torch.nn.Module,
    *inputs: Any,
    options: Mapping[str, Any] | None = None,
    profile: bool = False,
    **kwargs: Any,
) -> Report:
    """Compile a model for some inputs, run it beside eager, and report.

    Args:
        model: any module, in eval mode; it is left as it was.
        *inputs: example inputs, positional.
        options: as for ``torch.compile(..., backend="zoomc", options=...)``.
        profile: time the generated kernels, too, in six more runs.
        **kwargs: example inputs by name.

    Returns:
        a :class:`Report`: fusions by rule and count, fallbacks with reasons, kernels, flops,
        bytes of weights and activations, seconds by stage, error against eager.
    """
    from .backend import zoomc

    def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        return zoomc(gm, example_inputs, options=options)

    Options.resolve(options=options)  # a wrong option is reported before any work
    with torch.no_grad():
        expected = model(*copy.deepcopy(inputs), **copy.deepcopy(kwargs))
        with collect(profile) as records:
            actual = torch.compile(model, backend=backend)(*inputs, **kwargs)
    return Report(records, relative_error(actual, expected))


def relative_error(actual: Any, expected: Any) -> float:
    """Relative 2-norm of the difference over all floating outputs, computed in fp64."""
    leaves = torch.utils._pytree.tree_leaves
    difference = norm = 0.0
    for a, e in zip(leaves(_plain(actual)), leaves(_plain(expected)), strict=True):
        if isinstance(e, torch.Tensor):
            difference += float((a.double() - e.double()).square().sum())
            norm += float(e.double().square().sum())
    return (difference / norm) ** 0.5 if norm else difference**0.5


def _plain(outputs: Any) -> Any:
    """Model outputs as plain containers (diffusers' and transformers' classes are mappings)."""
    return dict(outputs) if isinstance(outputs, Mapping) else outputs


def _graph(record: Record) -> dict[str, Any]:
    report = record.executable.report if record.executable else {}
    stages = {k: v for k, v in record.seconds.items() if k != "target"}
    stages |= {f"target.{k}": v for k, v in report.get("seconds", {}).items()}
    rules: Counter[str] = Counter()
    passes = record.trace.passes if record.trace else []
    for done in passes:
        rules.update(done.hits)
    kernels = report.get("kernels", [])
    layers = [asdict(layer) for done in passes for layer in done.layers]
    measured = next((done.measured for done in passes if done.measured is not None), None)
    return {
        "target": report.get("target"),
        "isa": report.get("isa"),
        "threads": report.get("threads"),
        "fusions": dict(rules.most_common()),
        "fallbacks": record.fallbacks,
        "kernels": kernels,
        "distinct_kernels": len({k["symbol"] for k in kernels}),
        "kernel_seconds": record.kernel_seconds,
        "validation": record.validation,
        "flops": sum(k["flops"] for k in kernels),
        "weight_bytes": report.get("weight_bytes", 0),
        "layers": layers,
        "encoding_error": measured,
        "activation_bytes": report.get("activation_bytes", 0),
        "npu": report.get("npu"),
        "seconds": stages,
    }


def _summary(graph: Mapping[str, Any]) -> list[str]:
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
    return lines + _encoding_lines(graph) + _npu_lines(graph)


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
    reasons = Counter(row["reason"] for row in npu["on_cpu"])
    lines += [f"    {count:5d}  on the CPU: {reason}" for reason, count in reasons.most_common()]
    return lines


def _encoding_lines(graph: Mapping[str, Any]) -> list[str]:
    """Layers by encoding, and by the reason where it is not the one asked for."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for layer in graph["layers"]:
        groups.setdefault((layer["encoding"], layer["reason"]), []).append(layer)
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
    return lines


def _layer_lines(graph: Mapping[str, Any]) -> list[str]:
    """How each layer's weight is stored."""
    if not graph["layers"]:
        return []
    lines = ["  encoding      bits a weight        kB     error  weight"]
    for layer in graph["layers"]:
        count = math.prod(layer["shape"])
        error = "        -" if layer["error"] is None else f"{layer['error']:9.2e}"
        lines.append(
            f"  {layer['encoding']:14s} {layer['bits'] / count:12.2f} {layer['bits'] / 8e3:9.1f}"
            f" {error}  {layer['weight']} {tuple(layer['shape'])}"
        )
    return lines


def _kernel_lines(graph: Mapping[str, Any], notes: bool) -> list[str]:
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
        if notes:
            line += "".join(f" {k}={v}" for k, v in group[0]["notes"].items())
        lines.append(line)
    return lines


def _validation_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every kernel's error against its reference, worst first."""
    if not rows:
        return []
    lines = ["  kernels against their references (relative error, 2-norm)"]
    for row in sorted(rows, key=lambda r: (r["finite"], -r["error"])):
        odd = "" if row["finite"] else "  NOT FINITE where the reference is, or the reverse"
        lines.append(f"    {row['error']:9.2e}  {row['node']} ({row['kernel']}){odd}")
    return lines


def _pass_lines(record: Record) -> list[str]:
    return ["", str(record.trace)] if record.trace else []
