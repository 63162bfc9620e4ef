"""Run a compiled graph: bind weights, call the virtual machine, survive threads and forks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...kernels.tir.kernel import Kernel
from ...kernels.tir.run import as_storage
from ..constants import Constants
from ..profile import Profile
from ..tensors import dense, unaliased
from .library import Compiled
from .plan import Plan, graph_outputs
from .relax import Segment
from .reuse import Recent, Watch, tiny

#: In a forked child TVM's worker threads are gone, and waiting for them would never end. TVM keeps
#: one pool per calling thread, so a fresh thread in the child gets a pool that lives.
_child: ThreadPoolExecutor | None = None


def _after_fork() -> None:
    global _child  # noqa: PLW0603 - one per process by nature
    _child = ThreadPoolExecutor(1)


os.register_at_fork(after_in_child=_after_fork)


@dataclass
class EagerStep:
    """A node that runs by itself: in eager, unless a subclass knows better."""

    node: fx.Node

    def run(self, args: Any, kwargs: Any) -> Any:
        """The node's value for its arguments' values."""
        return self.node.target(*args, **kwargs)  # type: ignore[operator]


class GraphExecutable:
    """Segments and eager steps of one graph, in order.

    Safe to call from several threads: calls take turns, since the virtual machine and its memory
    are shared.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        plan: Plan,
        steps: Sequence[Segment | EagerStep],
        compiled: Mapping[Hashable, Compiled],
        code: Any,
        constants: Constants,
        report: dict[str, Any],
    ) -> None:
        """``code`` is the Relax executable of the segments among ``steps``, None without any."""
        self.report = report
        self._gm = gm
        self._plan = plan
        self._placeholders = gm.graph.find_nodes(op="placeholder")
        self._outputs = graph_outputs(gm)
        self._steps = steps
        self._compiled = compiled
        self._code = code
        self._machine = self._functions(code)
        self._constants = constants
        #: Other graphs find packed weights while somebody holds the tensors themselves: what
        #: kernels are bound to may be views.
        self._packed: dict[str, list[torch.Tensor]] = {}
        self._bound: dict[str, list[torch.Tensor]] = {}
        self._evaluated: dict[fx.Node, torch.Tensor] = {}
        self._lock = threading.Lock()
        self._last_use = _last_uses(steps, self._outputs)
        #: Results of the segments that depend on one input alone, while that stays the same.
        self._kept: dict[str, list[torch.Tensor]] = {}
        alone = any(isinstance(step, Segment) and step.alone is not None for step in steps)
        self._watch = Watch() if alone else None
        #: The same for many values of a tiny input.
        self._recent: dict[str, Recent] = {}

    def _functions(self, code: Any) -> dict[str, Callable[..., Any]]:
        """A virtual machine's function for each segment, by name."""
        if code is None:
            return {}
        import tvm

        machine = tvm.relax.VirtualMachine(code, tvm.cpu(), memory_cfg="pooled")
        return {step.name: machine[step.name] for step in self._steps if isinstance(step, Segment)}

    def validate(self, *inputs: torch.Tensor) -> list[dict[str, Any]]:
        """Every kernel beside its reference, see :func:`zoomc.targets.tvm.inspect.validate`."""
        from .inspect import validate

        def function(kernel: Kernel) -> Callable[..., None]:
            return self._compiled[kernel.key].function

        return validate(self._gm, self._plan, function, self._constants, inputs)

    def source(self) -> list[tuple[str, str]]:
        """Each kernel's symbol and LLVM IR."""
        return [
            (c.symbol, str(c.library.mod.inspect_source("ll"))) for c in self._compiled.values()
        ]

    def profile(self, *inputs: torch.Tensor, rounds: int = 5) -> Profile:
        """Median seconds a step spends in each kernel, and in each of its stages."""
        from .inspect import profile

        def run(machine: Any) -> None:
            self._run(
                inputs, {s.name: machine[s.name] for s in self._steps if isinstance(s, Segment)}
            )

        kernels = {self._compiled[k.key].symbol: k for k in self._plan.kernels.values()}
        with self._lock:
            return profile(self._code, run, rounds, kernels) if self._code else Profile()

    def bind(self) -> None:
        """Pack the weights as they are now; called again after they changed."""
        self._evaluated.clear()
        self._kept.clear()
        self._recent.clear()
        for step in self._steps:
            if isinstance(step, Segment):
                self._packed[step.name] = self._bound[step.name] = []
                packed = [self._constants.packed(operand) for operand in step.constants]
                self._packed[step.name] = packed
                self._bound[step.name] = list(map(as_storage, packed))
        self._constants.settle()

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run the graph on tensors for its placeholders."""
        with self._lock:
            if _child is not None and threading.current_thread() not in _child._threads:
                return _child.submit(self._run, inputs, self._machine).result()
            return self._run(inputs, self._machine)

    def _run(
        self, inputs: Sequence[torch.Tensor], machine: Mapping[str, Callable[..., Any]]
    ) -> list[torch.Tensor]:
        values: dict[fx.Node, Any] = {
            node: dense(x) for node, x in zip(self._placeholders, inputs, strict=True)
        }

        steady = self._watch.steady(list(values.values())) if self._watch else set()
        staying = {self._placeholders[position] for position in steady}
        same = {self._placeholders[p] for p in self._watch.same} if self._watch else set()
        lent: list[torch.Tensor] = []

        def value(node: fx.Node) -> Any:
            if node not in self._plan.constant:
                return values[node]
            if node not in self._evaluated:
                self._evaluated[node] = self._constants.evaluate(node)
            return self._evaluated[node]

        for index, step in enumerate(self._steps):
            if isinstance(step, Segment):
                if step.alone not in staying:
                    self._kept.pop(step.name, None)
                results, recent = self._kept.get(step.name), None
                if step.alone is not None and tiny(step.alone):
                    recent = self._recent.setdefault(step.name, Recent())
                    if results is None and step.alone not in same:
                        results = recent.find(values[step.alone])
                if results is None:
                    arguments = [as_storage(dense(values[node])) for node in step.inputs]
                    results = list(machine[step.name](*arguments, *self._bound[step.name]))
                    if step.alone in staying:
                        self._kept[step.name] = results
                    if recent is not None:
                        recent.keep(values[step.alone], results)
                if recent is not None:
                    lent += results
                for node, result in zip(step.outputs, results, strict=True):
                    values[node] = as_dtype(result, node.meta["val"].dtype)
            else:
                args, kwargs = fx.map_arg((step.node.args, step.node.kwargs), value)
                with torch.no_grad():
                    values[step.node] = step.run(args, kwargs)
            for node in self._last_use[index]:
                values.pop(node, None)
        kept = [tensor for results in self._kept.values() for tensor in results]
        return unaliased([value(node) for node in self._outputs], [*inputs, *kept, *lent])


def as_dtype(result: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A result in its torch dtype: the inverse of ``as_storage``."""
    return result if result.dtype is dtype else result.view(dtype)


def _last_uses(
    steps: Sequence[Segment | EagerStep], outputs: Sequence[fx.Node]
) -> list[list[fx.Node]]:
    """For each step, the values nobody reads after it."""
    last: dict[fx.Node, int] = {}
    for index, step in enumerate(steps):
        reads = step.inputs if isinstance(step, Segment) else step.node.all_input_nodes
        writes = step.outputs if isinstance(step, Segment) else [step.node]
        last |= dict.fromkeys([*reads, *writes], index)
    freed: list[list[fx.Node]] = [[] for _ in steps]
    for node, index in last.items():
        if node not in outputs:
            freed[index].append(node)
    return freed
