"""The GPU target: fused operators as Triton kernels, the rest through Inductor, one CUDA graph."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import fx

from ..constants import Constants
from ..errors import FallbackError, MissingDependencyError, UnsupportedGpuError
from ..stopwatch import Stopwatch
from ..tuning import open_store


class TritonTarget:
    """Compile for the GPU at hand through Triton.

    With ``TRITON_INTERPRET=1`` kernels run on CPU tensors in Triton's interpreter, slowly and
    without a GPU: for tests.

    Raises:
        MissingDependencyError: Triton is not installed or does not load.
        UnsupportedGpuError: no GPU or driver is there, or the GPU is too old.
    """

    name = "triton"

    def __init__(self, options: Any) -> None:
        """``options`` is the compiler's options dataclass (cuda_graph, tune, tuning, fallback)."""
        try:
            import triton
        except Exception as error:
            raise MissingDependencyError(
                f"the GPU target needs Triton, which does not load ({error}): pip install triton"
            ) from error
        from ...kernels.triton.gpu import GPUS, detect

        self.options = options
        self.interpreted = bool(triton.knobs.runtime.interpret)
        self.device = "cpu" if self.interpreted else "cuda"
        if self.interpreted:
            self.gpu = dataclasses.replace(GPUS["sm_90"], permutes=False)
            return
        if not torch.cuda.is_available():
            built = torch.version.cuda or torch.version.hip
            raise UnsupportedGpuError(
                "the GPU target needs a GPU and its driver: "
                + (
                    "torch finds none (does nvidia-smi or rocm-smi list one?)"
                    if built
                    else "this build of torch has no GPU support, install one that has"
                )
                + '; options={"target": "cpu"} compiles for the CPU'
            )
        try:
            self.gpu = detect()
        except ValueError as error:
            raise UnsupportedGpuError(f"the GPU target needs tensor cores: {error}") from error

    def compute_dtype(self, asked: torch.dtype | None, gm: fx.GraphModule) -> torch.dtype | None:
        """GPUs compute in every dtype a user may ask for."""
        return asked

    def refuses(self, node: fx.Node, constant: set[fx.Node]) -> str | None:
        """Why a node cannot be lowered, given which of its inputs are constant; None if it can."""
        from .plan import choices

        found = choices(node, constant, self.gpu)
        return found if isinstance(found, str) else None

    def weight_only(self, node: fx.Node, constant: set[fx.Node]) -> str | None:
        """Why what a layer with coded weights reads had better not be quantised, by the roofline.

        None where integers are faster, or asked for. What the kernels that write its inputs can
        gather of them is not charged to it.
        """
        from ...kernels.triton.kernel import Unsupported, weight_only
        from .neighbours import as_planned

        if self.options.activations == "int8":
            return None
        try:
            return weight_only(as_planned(node, constant, self.gpu), self.gpu)
        except Unsupported:
            return None

    def cost(self, node: fx.Node, constant: set[fx.Node]) -> float:
        """Seconds a node is expected to take; infinity if refused."""
        from .plan import choices

        found = choices(node, constant, self.gpu)
        return math.inf if isinstance(found, str) else found[0].seconds

    def compile(self, gm: fx.GraphModule, constants: Constants) -> Any:
        """Plan, generate, build and bind ``gm``.

        Args:
            gm: a graph of zoomc and ATen operators with ``meta["val"]`` on every node.
            constants: where packed weights live.

        Returns:
            a :class:`~zoomc.targets.triton.executable.GpuExecutable`.

        Raises:
            FallbackError: some node can be compiled by nobody and ``fallback="error"``.
        """
        from .build import compile_kernels
        from .executable import GpuExecutable
        from .leftovers import Leftovers
        from .plan import make_plan, schedule
        from .tune import recall, tune

        clock = Stopwatch()
        plan = make_plan(gm, self.gpu)
        store = open_store(self.options.tuning)
        recalled = recall(plan, self.gpu, store)
        steps = schedule(gm, plan)
        clock.lap("plan")
        if not self.interpreted:
            compile_kernels(plan, self.gpu)
        clock.lap("kernels")
        for step in steps:
            if not isinstance(step, Leftovers):
                continue
            step.compile(inductor=not self.interpreted)
            if step.reason and self.options.fallback == "error":
                node = step.nodes[0]
                raise FallbackError(
                    f"{node.name} ({node.target}) cannot run on {self.name}: {step.reason};"
                    ' options={"fallback": "eager"} lets it run in eager'
                )
        clock.lap("leftovers")
        executable = GpuExecutable(
            gm,
            plan,
            steps,
            constants,
            self.gpu,
            graph=self.options.cuda_graph and not self.interpreted,
            interpreted=self.interpreted,
        )
        executable.bind()
        clock.lap("weights")
        if self.options.tune and not self.interpreted:
            recalled += tune(plan, self.gpu, store)
            clock.lap("tuning")
        executable.describe()
        path = None if store.path is None else str(store.path)
        executable.report["tuning"] = {"file": path, "used": recalled, "ignored": {}}
        executable.report["seconds"] = clock.laps
        executable.report["weight_bytes"] = constants.nbytes()
        return executable
