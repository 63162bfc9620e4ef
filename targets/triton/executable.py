"""A compiled graph on a GPU: kernels and leftovers in order, or their recording."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ...kernels.errors import first_line
from ...kernels.triton.gpu import Gpu
from ...kernels.triton.kernel import Kernel
from ...kernels.triton.run import compile_for, execute, symbol
from ..constants import Constants
from ..profile import Profile
from ..tensors import dense, on_device, recording, unaliased
from ..tvm.plan import graph_outputs
from .leftovers import Leftovers
from .plan import ExtraOf, Plan, Run, Step, View
from .replay import Replay

#: Cycles, about a millisecond, in which a call's launches are asked for before they are timed.
_AHEAD = 2_000_000


class GpuExecutable:
    """The steps of one graph.

    Safe to call from several threads: calls take turns, since the recording's memory is shared.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        plan: Plan,
        steps: Sequence[Step],
        constants: Constants,
        gpu: Gpu,
        *,
        graph: bool,
        interpreted: bool,
    ) -> None:
        """``graph`` records the step as a CUDA graph at its first call."""
        self.report: dict[str, Any] = {"target": "triton", "isa": gpu.name, "threads": None}
        self._gm = gm
        self._plan = plan
        self._steps = steps
        self._constants = constants
        self._gpu = gpu
        self._graph = graph
        self._interpreted = interpreted
        self._placeholders = gm.graph.find_nodes(op="placeholder")
        self._outputs = graph_outputs(gm)
        self._bound: dict[fx.Node, dict[str, torch.Tensor]] = {}
        self._evaluated: dict[fx.Node, Any] = {}
        self._replay: Replay | None = None
        self._lock = threading.Lock()
        self._last_use = _last_uses(steps, plan, self._outputs)

    def describe(self) -> None:
        """Write down what was decided."""
        kernels = {node: choices[0] for node, choices in self._plan.kernels.items()}
        groups = [step for step in self._steps if isinstance(step, Leftovers)]
        self.report |= {
            "kernels": [
                {
                    "name": kernel.name,
                    "symbol": self._symbol(kernel),
                    "node": node.name,
                    "flops": kernel.flops,
                    "bytes": kernel.nbytes,
                    "activation_bytes": kernel.activation_nbytes,
                    "notes": dict(kernel.notes),
                }
                for node, kernel in kernels.items()
            ],
            "fallbacks": [
                {
                    "node": node.name,
                    "operator": str(node.target),
                    "reason": f"{why}; {group.how}",
                }
                for group in groups
                for node, why in zip(group.nodes, group.reasons, strict=True)
                if why
            ],
            "segments": 1 + len(groups),
            "activation_bytes": sum(kernel.activation_nbytes for kernel in kernels.values()),
            "cuda_graph": self._graph,
        }

    def _symbol(self, kernel: Kernel) -> str:
        """The code of a kernel's last launch, which does its work."""
        if self._interpreted:
            return kernel.name
        return symbol(kernel.launches[-1], kernel.specs)

    def bind(self) -> None:
        """Take the weights as they are now; a recording of others is dropped, with its memory."""
        if self._replay is not None:
            self._replay.wait()
        self._replay = None
        self._evaluated.clear()
        self._bound.clear()
        for node, choices in self._plan.kernels.items():
            self._bound[node] = {
                name: self._constants.packed(operand)
                for name, operand in choices[0].operands.items()
                if all(value.constant for value in operand.values)
            }
        self._constants.settle()

    def __call__(self, *inputs: torch.Tensor) -> list[Any]:
        """Run the graph on tensors for its placeholders."""
        with self._lock, torch.no_grad(), on_device(inputs):
            # A caller's own recording takes the launches up: in it there can be no other.
            if self._graph and not recording():
                if self._replay is None:
                    self._record(inputs)
                if self._replay is not None:
                    return self._replay(inputs)
            # Results, too, must be the caller's alone: neither an input's memory nor a constant's.
            results = self._run(inputs)
            return unaliased(results, [*inputs, *self._evaluated.values()])

    def _record(self, inputs: Sequence[torch.Tensor]) -> None:
        """Record the step; where that cannot be, say why and run it launch by launch."""
        try:
            self._replay = Replay(self._run, inputs)
        except RuntimeError as error:
            torch.cuda.synchronize()
            self._graph = False
            self.report["cuda_graph"] = f"not recorded: {first_line(error)}"

    def _run(
        self,
        inputs: Sequence[torch.Tensor],
        around: Callable[[fx.Node, Kernel, Callable[[], None]], None] | None = None,
    ) -> list[Any]:
        values: dict[fx.Node | ExtraOf, Any] = {
            node: dense(x) for node, x in zip(self._placeholders, inputs, strict=True)
        }
        for index, step in enumerate(self._steps):
            if isinstance(step, Run):
                kernel = self._plan.kernels[step.node][0]
                tensors = self._tensors(step.node, kernel, values)

                def go(kernel: Kernel = kernel, tensors: Any = tensors) -> None:
                    execute(kernel, tensors)

                if around:
                    around(step.node, kernel, go)
                else:
                    go()
                values[step.node] = tensors["out"]
                values |= {
                    extra: tensors[extra.name] for extra in self._plan.extras_made(step.node)
                }
            elif isinstance(step, View):
                source = self._value(self._plan.views[step.node], values)
                values[step.node] = source.reshape(step.node.meta["val"].shape)
            else:
                results = step.call(*(self._value(node, values) for node in step.inputs))
                values |= dict(zip(step.outputs, map(dense, results), strict=True))
            for read in self._last_use[index]:
                values.pop(read, None)
        return [self._value(node, values) for node in self._outputs]

    def _value(self, node: fx.Node, values: dict[fx.Node | ExtraOf, Any]) -> Any:
        if node not in self._plan.constant:
            return values[node]
        if node not in self._evaluated:
            self._evaluated[node] = dense(self._constants.evaluate(node))
        return self._evaluated[node]

    def _tensors(
        self, node: fx.Node, kernel: Kernel, values: dict[fx.Node | ExtraOf, Any]
    ) -> dict[str, torch.Tensor]:
        """A kernel's tensors by slot: constants, values, a new result, workspace."""
        tensors = dict(self._bound[node])
        for name, operand in kernel.operands.items():
            if name not in tensors:
                tensors[name] = values[operand.values[0].source]
        device = node.meta["val"].device
        for name, spec in kernel.made.items():
            tensors[name] = torch.empty(spec.shape, dtype=spec.dtype, device=device)
        return tensors

    def validate(self, *inputs: torch.Tensor) -> list[dict[str, Any]]:
        """Every kernel on the reference's inputs, beside the reference."""
        from ..tvm.inspect import compare

        values: dict[fx.Node | ExtraOf, Any] = dict(zip(self._placeholders, inputs, strict=True))
        rows = []
        with self._lock, torch.no_grad(), on_device(inputs):
            for node in self._gm.graph.nodes:
                if node.op not in {"call_function", "get_attr"}:
                    continue
                if node in self._plan.constant:
                    values[node] = self._value(node, values)
                    continue
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
                if node in self._plan.kernels:
                    kernel = self._plan.kernels[node][0]
                    tensors = self._tensors(node, kernel, {n: dense(v) for n, v in values.items()})
                    execute(kernel, tensors)
                    difference = compare(tensors["out"], values[node])
                    rows.append({"node": node.name, "kernel": kernel.name, **difference})
                    for name, extra in kernel.extras.items():
                        values[ExtraOf(node, name)] = extra.of(values[node])
                        difference = compare(tensors[name], values[ExtraOf(node, name)])
                        rows.append(
                            {"node": node.name, "kernel": f"{kernel.name}_{name}", **difference}
                        )
        return rows

    def profile(self, *inputs: torch.Tensor, rounds: int = 5) -> Profile:
        """Median seconds a step spends in each kernel, by symbol, launch by launch."""
        rows: list[dict[str, float]] = []

        def timed(node: fx.Node, kernel: Kernel, go: Callable[[], None]) -> None:
            name = self._symbol(kernel)
            rows[-1][name] = rows[-1].get(name, 0.0) + elapsed(go, self._interpreted)

        with self._lock, torch.no_grad(), on_device(inputs):
            for _ in range(rounds):
                rows.append({})
                self._run(inputs, timed)
        return Profile({name: sorted(row[name] for row in rows)[rounds // 2] for name in rows[0]})

    def source(self) -> list[tuple[str, str]]:
        """Each launch's symbol and assembly."""
        if self._interpreted:
            return []
        found: dict[str, str] = {}
        for kernel in (choices[0] for choices in self._plan.kernels.values()):
            for launch in kernel.launches:
                name = symbol(launch, kernel.specs)
                if name not in found:
                    asm = compile_for(self._gpu, launch, kernel.specs).asm
                    found[name] = str(asm["ptx" if self._gpu.kind == "cuda" else "amdgcn"])
        return list(found.items())


def elapsed(go: Callable[[], None], interpreted: bool) -> float:
    """Seconds of one call, by the GPU's own clock."""
    if interpreted:
        start = time.perf_counter()
        go()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # While the GPU idles the CPU asks for all of it: to ask takes longer than a short kernel does.
    torch.cuda._sleep(_AHEAD)
    begin.record()
    go()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _last_uses(
    steps: Sequence[Step], plan: Plan, outputs: Sequence[fx.Node]
) -> list[list[fx.Node | ExtraOf]]:
    """For each step, the values nobody reads after it."""
    last: dict[fx.Node | ExtraOf, int] = {}
    for index, step in enumerate(steps):
        touched: list[fx.Node | ExtraOf]
        if isinstance(step, Leftovers):
            touched = [*step.inputs, *step.outputs]
        else:
            touched = [*step.node.all_input_nodes, step.node]
        if isinstance(step, Run):
            touched += [*plan.extras_read(step.node), *plan.extras_made(step.node)]
        last |= dict.fromkeys(touched, index)
    freed: list[list[fx.Node | ExtraOf]] = [[] for _ in steps]
    for node, index in last.items():
        if node not in outputs:
            freed[index].append(node)
    return freed
