"""Tune the kernels a model needs: measure tiles on a machine and keep the fastest for later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from . import targets
from .backend import CompiledGraph, Variant
from .options import Options
from .targets.tuning import Entry, Store, open_store
from .targets.tvm.cpu import CpuTarget

if TYPE_CHECKING:
    from .targets.constants import Constants
    from .targets.tvm.measure import Device
    from .targets.tvm.tune import Reporter, Task, Tuner


@dataclass(frozen=True)
class Tuning:
    """What a run found: every problem of a model that the store knows now, with its entry.

    Attributes:
        store: where it is kept.
        found: problems and entries, those with most arithmetic first.
    """

    store: Store
    found: Sequence[tuple[Task, Entry]]

    def __str__(self) -> str:
        lines = ["  calls   untuned     tuned    gain  kernel"]
        changed = [(task, entry) for task, entry in self.found if entry.plan is not None]
        for task, entry in sorted(changed, key=_saved, reverse=True):
            shape = "x".join(map(str, task.kernel.out.shape))
            lines.append(
                f"  {task.count:5d} {entry.untuned * 1e3:7.3f}ms {entry.seconds * 1e3:7.3f}ms"
                f" {1 - entry.seconds / entry.untuned:6.1%}  {task.kernel.name} to {shape}"
            )
        before = sum(task.count * entry.untuned for task, entry in self.found)
        after = sum(task.count * entry.seconds for task, entry in self.found)
        gain = 1 - after / before if before else 0.0
        lines.append(
            f"{len(changed)} of {len(self.found)} kernels beat the planner's choice: all calls take"
            f" {before * 1e3:.2f} ms untuned, {after * 1e3:.2f} ms tuned, {gain:.1%} less"
        )
        return "\n".join(lines)


def _saved(pair: tuple[Task, Entry]) -> float:
    task, entry = pair
    return task.count * (entry.untuned - entry.seconds)


def tune(
    model: torch.nn.Module,
    *inputs: Any,
    options: Mapping[str, Any] | None = None,
    device: Device | None = None,
    candidates: int | None = None,
    seconds: float | None = None,
    reporter: Reporter | None = None,
    **kwargs: Any,
) -> Tuning:
    """Measure, for every CPU kernel a model needs, the tiles around the planner's choice.

    What is found goes to the file of the option ``tuning``, problem by problem, so that an
    interrupted run goes on where it was; compilation uses it from then on.

    Args:
        model: any module, in eval mode; it is left as it was.
        *inputs: example inputs, positional.
        options: as for ``torch.compile(..., backend="zoomc", options=...)``.
        device: what to measure on; this machine by default.
        candidates: plans measured of each problem at most.
        seconds: no problem is begun after so long.
        reporter: is told of progress.
        **kwargs: example inputs by name.

    Raises:
        TuningError: a tuning file that cannot be used.
    """
    from .targets.tvm.measure import Device
    from .targets.tvm.tune import Tuner

    settings = Options.resolve(options=options)
    target = _Target(settings)
    device = device or Device(target.isa)
    store = open_store(settings.tuning)
    target.tuner = Tuner(device, store, candidates, seconds, reporter)
    target.isa = device.isa

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        return _Graph(gm, example_inputs, settings, target)

    with torch.no_grad():
        torch.compile(model, backend=backend)(*inputs, **kwargs)
    pairs = ((task, store.find(task.problem)) for task in target.found)
    return Tuning(store, [(task, entry) for task, entry in pairs if entry is not None])


class _Target(CpuTarget):
    """The CPU target, but where it would generate kernels it tunes them."""

    tuner: Tuner

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.found: list[Task] = []

    def compile(self, gm: fx.GraphModule, constants: Constants) -> Any:
        from .targets.tvm.tune import tune

        self.found += tune(gm, self.tuner, constants)
        return targets.Eager(gm.forward, {"fallbacks": []})


class _Graph(CompiledGraph):
    """A graph that is captured and rewritten for a target of ours, and runs in eager."""

    def __init__(
        self, gm: fx.GraphModule, inputs: Sequence[Any], options: Options, target: _Target
    ) -> None:
        super().__init__(gm, inputs, options)
        self._tuned_for = target

    def _target(self, args: Sequence[Any]) -> Any:
        return self._tuned_for

    def _compile(self, args: Sequence[Any]) -> Variant:
        super()._compile(args)
        return Variant(None, [], lambda values: values, targets.Eager(self._gm.forward, {}))
