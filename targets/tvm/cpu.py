"""The CPU target: every operator a generated kernel, the whole graph one Relax module."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ...kernels.tir import amx
from ...kernels.tir import isa as paths
from ...kernels.tir.kernel import Kernel, Unsupported, lower
from ..constants import Constants
from ..errors import FallbackError, MissingDependencyError, UnsupportedCpuError
from ..stopwatch import Stopwatch
from ..tuning import open_store

if TYPE_CHECKING:
    from .plan import Plan


class CpuTarget:
    """Compile for this machine's CPU through TVM.

    Raises:
        MissingDependencyError: TVM is not installed or does not load.
        UnsupportedCpuError: the CPU lacks what the asked-for path needs.
    """

    name = "cpu"
    device = "cpu"

    def __init__(self, options: Any) -> None:
        """``options`` is the compiler's options dataclass (isa, threads, tune, tuning, ...)."""
        threads = options.threads or torch.get_num_threads()
        # TVM counts hyperthreads by halving the cores it sees, and reads this when a pool starts.
        os.environ["TVM_NUM_THREADS"] = str(threads)
        try:
            import tvm  # noqa: F401 - fails early, with a message that says what to do
        except Exception as error:
            raise MissingDependencyError(
                f"the CPU target needs TVM, which does not load ({error}): pip install apache-tvm"
            ) from error
        try:
            self.isa = paths.isa(options.isa, threads)
        except ValueError as error:
            choices = ", ".join(paths.supported()) or "none"
            raise UnsupportedCpuError(f"{error}; paths this CPU can run: {choices}") from error
        if self.isa.amx and not amx.enable():
            if options.isa == "amx":
                raise UnsupportedCpuError(
                    "the operating system does not grant the AMX tile registers: choose another"
                    " isa, or leave it on auto"
                )
            self.isa = paths.isa("avx512_bf16", threads)
        self._options = options

    def compute_dtype(self, asked: torch.dtype | None, gm: fx.GraphModule) -> torch.dtype | None:
        """fp16 is a storage format on CPUs: it is computed in fp32, which is never less exact."""
        if asked is None and any(
            isinstance(n.meta.get("val"), torch.Tensor) and n.meta["val"].dtype is torch.float16
            for n in gm.graph.nodes
        ):
            asked = torch.float16
        return torch.float32 if asked is torch.float16 else asked

    def _lowered(self, node: fx.Node, constant: set[fx.Node]) -> Kernel | str:
        """The kernel of a node, or why there is none."""
        from .plan import as_call

        try:
            return lower(as_call(node, constant), self.isa)
        except Unsupported as reason:
            return str(reason)
        except Exception as error:  # a bug in one kernel must not take the model down
            return f"its lowering failed: {type(error).__name__}: {error}"

    def refuses(self, node: fx.Node, constant: set[fx.Node]) -> str | None:
        """Why a node cannot be lowered, given which of its inputs are constant; None if it can."""
        kernel = self._lowered(node, constant)
        return kernel if isinstance(kernel, str) else None

    def cost(self, node: fx.Node, constant: set[fx.Node]) -> float:
        """What a node is expected to take, in units of its operator's; infinity if refused."""
        kernel = self._lowered(node, constant)
        return math.inf if isinstance(kernel, str) else kernel.cost

    def weight_only(self, node: fx.Node, constant: set[fx.Node]) -> str | None:
        """Products of coded weights are products of integers here, always."""
        return None

    def offload(self, gm: fx.GraphModule, plan: Plan) -> dict[str, Any]:
        """Move nodes of a plan to another machine; returns what to report of it. None here."""
        return {}

    def compile(self, gm: fx.GraphModule, constants: Constants) -> Any:
        """Plan, generate, build and bind ``gm``.

        Args:
            gm: a graph of zoomc and ATen operators with ``meta["val"]`` on every node.
            constants: where packed weights live.

        Returns:
            a :class:`~zoomc.targets.tvm.executable.GraphExecutable`.

        Raises:
            FallbackError: some node cannot be lowered and ``fallback="error"``.
        """
        from .executable import GraphExecutable
        from .library import compile_kernels
        from .partition import partition
        from .plan import make_plan
        from .relax import Segment, build
        from .reuse import own_work
        from .tuned import Tuned

        clock = Stopwatch()
        store = open_store(self._options.tuning)
        if self._options.tune:
            from .measure import Device
            from .tune import Tuner, tune

            tune(gm, Tuner(Device(self.isa), store), constants)
            clock.lap("tuning")
        tuned = Tuned(store, self.isa)
        plan = make_plan(gm, tuned.lower)
        extra = self.offload(gm, plan)
        if plan.fallbacks and self._options.fallback == "error":
            node, reason = next(iter(plan.fallbacks.items()))
            raise FallbackError(
                f"{node.name} ({node.target}) cannot run on {self.name}: {reason};"
                ' options={"fallback": "eager"} lets it run in eager'
            )
        own = own_work(gm, plan) if self._options.reuse else {}
        steps = partition(gm, plan, own)
        clock.lap("plan")
        compiled = compile_kernels(plan.kernels.values(), self.isa)
        clock.lap("kernels")

        def symbol(kernel: Kernel) -> str:
            return compiled[kernel.key].symbol

        import tvm

        segments = [step for step in steps if isinstance(step, Segment)]
        code = None
        if segments:
            libraries = {id(c.library): c.library for c in compiled.values()}
            code = build(
                segments, plan, symbol, list(libraries.values()), tvm.target.Target(self.isa.target)
            )
        clock.lap("graph")
        report = {
            "target": self.name,
            "isa": self.isa.name,
            "threads": self.isa.threads,
            "kernels": [
                {
                    "name": kernel.name,
                    "symbol": symbol(kernel),
                    "node": node.name,
                    "flops": kernel.flops,
                    "bytes": kernel.nbytes,
                    "activation_bytes": kernel.activation_nbytes,
                    "stages": dict(kernel.stages),
                    "notes": dict(kernel.notes),
                }
                for node, kernel in plan.kernels.items()
            ],
            "fallbacks": [
                {"node": node.name, "operator": str(node.target), "reason": reason}
                for node, reason in plan.fallbacks.items()
            ],
            "segments": len(segments),
            "reused": {
                source.name: sum(plan.kernels[n].flops for n in nodes if n in plan.kernels)
                for source, nodes in own.items()
            },
            "tuning": tuned.report(),
            "activation_bytes": sum(k.activation_nbytes for k in plan.kernels.values()),
            **extra,
        }
        executable = GraphExecutable(gm, plan, steps, compiled, code, constants, report)
        executable.bind()
        clock.lap("weights")
        report["seconds"] = clock.laps
        report["weight_bytes"] = constants.nbytes()
        return executable
