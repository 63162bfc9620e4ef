"""What was fused, generated and left to eager, what it costs and how far it is from eager."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import lines
from .errors import ReportFileError
from .options import Options
from .record import Record, collect
from .targets.counters import counter as find_counter
from .targets.counters import measure
from .targets.errors import CounterError, PowerLimitError
from .targets.power import Energy


class Report:
    """What the compiler made of a model: prints well, converts to a dict.

    Attributes:
        records: one per compiled graph.
        error: relative error of the outputs against eager (2-norm), None if not measured.
        measured: energy of a call by the machine's own counter; why not, where there is none;
            None where nobody asked.
    """

    def __init__(
        self,
        records: Sequence[Record],
        error: float | None = None,
        measured: Energy | str | None = None,
    ) -> None:
        self.records = list(records)
        self.error = error
        self.measured = measured

    @property
    def energy(self) -> Energy | None:
        """Energy of a call: measured, or modelled on an NPU without its host; None if neither."""
        if isinstance(self.measured, Energy):
            return self.measured
        return modelled_energy([_graph(record) for record in self.records])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        energy = self.energy
        return {
            "graphs": [_graph(record) for record in self.records],
            "error": self.error,
            "energy": energy.to_dict() if energy else None,
        }

    def __str__(self) -> str:
        return self.text()

    def text(self, level: int = 2) -> str:
        """The report for people, by the levels of ``debug``."""
        text = [f"zoomc: {len(self.records)} graph(s) compiled"]
        if self.error is not None:
            text.append(f"error against eager: {self.error:.2e} (relative, 2-norm)")
        why = self.measured if isinstance(self.measured, str) else ""
        text += lines.energy_lines(self.energy, why)
        for index, graph in enumerate(self.to_dict()["graphs"]):
            record = self.records[index]
            text += ["", f"graph {index}", *lines.summary(graph)]
            text += lines.validation_lines(record.validation)
            # Whoever states an error wants to see who pays for it.
            if level >= 3 or graph["encoding_error"] is not None:
                text += lines.layer_lines(graph) + lines.attention_lines(graph)
            if level >= 2:
                text += lines.kernel_lines(graph, notes=level >= 3)
            if level >= 3:
                text += lines.pass_lines(record)
            if level >= 4 and record.executable:
                text += [f"; {symbol}\n{source}" for symbol, source in record.executable.source()]
            if level >= 5 and record.graph is not None:
                text.append(record.graph.print_readable(print_output=False))
        return "\n".join(text)

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
        profile: time the generated kernels, too, in six more runs, and measure energy for two
            seconds where the machine counts it.
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
            compiled = torch.compile(model, backend=backend)
            actual = compiled(*inputs, **kwargs)
        error = relative_error(actual, expected)
        if not profile:
            return Report(records, error)
        return Report(records, error, _measured(lambda: compiled(*inputs, **kwargs), records))


def _measured(run: Callable[[], object], records: Sequence[Record]) -> Energy | str:
    """Energy of a call by the machine's counter; why not, where it has none."""
    graphs = [_graph(record) for record in records]
    target = next((graph["target"] for graph in graphs if graph["target"]), "cpu")

    def whole() -> None:
        run()
        if target == "triton":
            torch.cuda.synchronize()

    try:
        counter = find_counter("cuda" if target == "triton" else "cpu")
        return measure(whole, counter, sum(graph["flops"] for graph in graphs))
    except (CounterError, PowerLimitError) as error:
        return str(error)


def modelled_energy(graphs: Sequence[Mapping[str, Any]]) -> Energy | None:
    """What the simulated NPUs of some graphs took, their hosts left out; None without any."""
    rows = [row for graph in graphs for row in (graph["npu"] or {"layers": []})["layers"]]
    counted = [(row["ops"], row["counted"]) for row in rows if "counted" in row]
    if not counted:
        return None
    return Energy(
        sum(sum(c["nanojoules"].values()) for _, c in counted) / 1e9,
        sum(c["nanoseconds"] for _, c in counted) / 1e9,
        sum(operations for operations, _ in counted),
        "modelled, the NPU without its host",
    )


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
    attentions = [asdict(attention) for done in passes for attention in done.attentions]
    measured = next((done.measured for done in passes if done.measured is not None), None)
    return {
        "target": report.get("target"),
        "isa": report.get("isa"),
        "threads": report.get("threads"),
        "fusions": dict(rules.most_common()),
        "fallbacks": record.fallbacks,
        "kernels": kernels,
        "distinct_kernels": len({k["symbol"] for k in kernels}),
        "kernel_seconds": record.profile.kernels,
        "stage_seconds": record.profile.stages,
        "validation": record.validation,
        "flops": sum(k["flops"] for k in kernels),
        "weight_bytes": report.get("weight_bytes", 0),
        "layers": layers,
        "attentions": attentions,
        "encoding_error": measured,
        "activation_bytes": report.get("activation_bytes", 0),
        "npu": report.get("npu"),
        "tuning": report.get("tuning"),
        "seconds": stages,
    }
