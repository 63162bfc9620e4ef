"""The NPU target: coded convolutions and linears on the machine, everything else on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ....kernels.tir.kernel import Unsupported
from ...errors import CapacityError, LayerError
from ..cpu import CpuTarget
from ..executable import EagerStep
from ..plan import Plan, arguments, op_name
from . import host
from .clock import at_level, check_limit, levels
from .machine import load
from .program import Job, Program, generate
from .simulator import Counts
from .tensors import Shapes, job_of, renamed, result, tensors, weight_bytes

#: Operators that the machine knows; of other nodes nothing is said.
OPERATORS = frozenset({"zoomc::conv2d", "zoomc::linear"})

#: Arguments that must be known when a program is written.
_CONSTANT = ("weight", "table", "group_scale", "channel_scale")


class NpuTarget(CpuTarget):
    """Compile for a simulated NPU, with this machine's CPU as its host.

    What comes before a product (norm, activation, quantisation) runs on the host in torch, as the
    operator's reference does it.

    Raises:
        MachineError: the machine's description is wrong, or there is none of that name.
        PowerLimitError: the limit is below what the machine takes while it does nothing.
    """

    name = "npu"

    def __init__(self, options: Any) -> None:
        """``options`` is the compiler's options dataclass (npu, and those of the CPU target)."""
        self.machine = load(options.npu)
        self.limit_mw = options.power_limit
        if self.limit_mw is not None:
            check_limit(self.machine, self.limit_mw)
        super().__init__(options)

    def refuses(self, node: fx.Node, constant: set[fx.Node]) -> str | None:
        """As on the CPU; and linears stay apart, since the machine takes them one by one."""
        if op_name(node.target) == "zoomc::mlp":
            return "the machine takes its linears one by one"
        return super().refuses(node, constant)

    def offload(self, gm: fx.GraphModule, plan: Plan) -> dict[str, Any]:
        """Give the machine every layer it can run."""
        programs: dict[Job, Program] = {}
        kept: dict[str, str] = {}
        steps: list[NpuStep] = []
        for node in gm.graph.nodes:
            if node.op != "call_function" or node in plan.constant:
                continue
            op = op_name(node.target)
            if op not in OPERATORS:
                continue
            try:
                program = self._program(node, op, plan, programs)
            except (Unsupported, CapacityError, LayerError) as reason:
                kept[node.name] = str(reason)
                continue
            plan.kernels.pop(node, None)
            plan.fallbacks.pop(node, None)
            row = {"node": node.name, **program.plan.to_dict(), "layer": node.name}
            row["ops"] = 2 * program.job.layer.macs
            row["mhz"] = self.machine.mhz[-1]
            step = plan.elsewhere[node] = NpuStep(node, program, op, row)
            steps.append(step)
        if self.limit_mw is not None:
            self._keep(self.limit_mw, list(programs.values()), steps)
        for step in steps:
            step.report["commands"] = len(step.program.commands)
        return {
            "npu": {
                "machine": self.machine.name,
                "gops": self.machine.gops,
                "gbytes": self.machine.gbytes,
                "mhz": list(self.machine.mhz),
                "static_mw": self.machine.static_mw,
                "limit_mw": self.limit_mw,
                "layers": [step.report for step in steps],
                "on_cpu": [{"node": name, "reason": reason} for name, reason in kept.items()],
            }
        }

    def _keep(self, limit_mw: float, programs: list[Program], steps: list[NpuStep]) -> None:
        """Put a set-frequency command in front of every layer."""
        chosen = {}
        for program, level in zip(programs, levels(programs, self.machine, limit_mw), strict=True):
            chosen[program.job] = at_level(program, level), self.machine.mhz[level]
        for step in steps:
            step.program, step.report["mhz"] = chosen[step.program.job]

    def _program(self, node: fx.Node, op: str, plan: Plan, programs: dict[Job, Program]) -> Program:
        values = arguments(node)
        for name in _CONSTANT:
            value = values.get(name)
            if isinstance(value, fx.Node) and value not in plan.constant:
                raise Unsupported(f"its {name} is computed, not a constant")
        shapes = Shapes(op, fx.map_arg(values, lambda n: n.meta["val"]), node.meta["val"])
        job = renamed(job_of(node.name, shapes), "")
        if job not in programs:
            programs[job] = generate(job, self.machine)
        return programs[job]


@dataclass
class NpuStep(EagerStep):
    """A layer on the machine: host work, then its program.

    Attributes:
        program: what runs.
        op: the operator's name.
        report: the layer's row in the report; what a run counted is written there.
    """

    program: Program
    op: str
    report: dict[str, Any]
    _packed: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, repr=False)

    def run(self, args: Any, kwargs: Any) -> torch.Tensor:
        """Quantise, write to far memory, run, read the result."""
        values = self._bound(args, kwargs)
        weight = values["weight"]
        if self._packed is None or self._packed[0] is not weight:
            self._packed = (weight, weight_bytes(self.program, values))
        # What moves, and when, is the same in every run: it is followed in the first alone.
        first = "counted" not in self.report
        inputs = tensors(self.program, self.op, values, self._packed[1])
        data, counts = host.run(self.program, inputs, first)
        assert data is not None
        if first:
            self.report["counted"] = self._counted(counts)
        return result(self.program, data, self.node.meta["val"].shape)

    def _counted(self, counts: Counts) -> dict[str, Any]:
        """A run's counts as plain values."""
        return {
            "bytes": counts.bytes,
            "nanoseconds": counts.nanoseconds,
            "nanojoules": dict(counts.energy),
            "row_hits": counts.hits,
            "rows_opened": counts.misses + counts.conflicts,
            "bank_conflicts": counts.bank_conflicts,
            "macs": counts.macs,
        }

    def _bound(self, args: Any, kwargs: Any) -> Mapping[str, Any]:
        """Arguments by schema name, defaults filled in."""
        schema = self.node.target._schema.arguments  # type: ignore[union-attr]
        bound = {a.name: a.default_value for a in schema if a.has_default_value()}
        return bound | dict(zip((a.name for a in schema), args, strict=False)) | dict(kwargs)
