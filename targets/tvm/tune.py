"""Measure the plans around the planner's choice and keep the fastest that computes the same."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...kernels.operator import OPERATORS
from ...kernels.tir.kernel import Call, Kernel, TensorSpec, Value, lower
from ..constants import Constants
from ..tuning import Entry, Problem, Store, problem, version
from .measure import Candidate, Device, build
from .plan import Plan, as_call, make_plan

#: Plans measured of each problem.
CANDIDATES = 16

#: A plan must be faster than the planner's by this much to replace it.
WORTH = 0.02

#: Calls in a race: at least, at most, and the seconds that all of one candidate's may take.
_CALLS, _MOST, _SECONDS = 5, 40, 0.1


@dataclass(frozen=True)
class Task:
    """One problem: a call, how often the model makes it, and the planner's kernel for it."""

    problem: Problem
    call: Call
    kernel: Kernel
    count: int


class Reporter:
    """What a tuning run tells about itself; this one keeps silent."""

    def begin(self, total: int, done: int) -> None:
        """``total`` problems, of which the store knows ``done``."""

    def candidate(self, task: Task, tried: int) -> None:
        """``tried`` plans of a problem are measured."""

    def end(self, task: Task, entry: Entry) -> None:
        """A problem is done."""

    def failed(self, task: Task, reason: str) -> None:
        """A problem is left as it was."""


def tasks(plan: Plan, device: Device) -> list[Task]:
    """The problems of a graph that have a choice, those with most arithmetic first."""
    found: dict[str, Task] = {}
    for node, kernel in plan.kernels.items():
        if kernel.plan is None:
            continue
        call = as_call(node, plan.constant)
        this = Task(problem(call, device.machine), call, lower(call, device.isa), 1)
        known = found.get(this.problem.key)
        found[this.problem.key] = (
            dataclasses.replace(known, count=known.count + 1) if known else this
        )
    return sorted(found.values(), key=lambda task: -task.count * task.kernel.flops)


def _tensors_of(constants: Constants) -> Callable[[Value], torch.Tensor]:
    """A model's own constants, and random numbers for whatever is computed at run time."""

    def tensor(value: Value) -> torch.Tensor:
        if value.constant and isinstance(value.source, fx.Node):
            return constants.evaluate(value.source)
        return random(value.spec)

    return tensor


def random(spec: TensorSpec) -> torch.Tensor:
    """A tensor of normal numbers, or of zeros and ones where they are whole."""
    generator = torch.Generator().manual_seed(spec.numel)
    if spec.dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(spec.dtype)
    return torch.randint(0, 2, spec.shape, generator=generator).to(spec.dtype)


def tune(gm: fx.GraphModule, tuner: Tuner, constants: Constants) -> list[Task]:
    """Tune the kernels of a graph; returns the problems the store now knows."""
    plan = make_plan(gm, lambda call: lower(call, tuner.device.isa))
    return tuner.run(tasks(plan, tuner.device), _tensors_of(constants))


class Tuner:
    """Tunes problems one after the other, and keeps what it finds in a store.

    Args:
        device: what to measure on.
        store: what it finds goes there, problem by problem; what is there is not measured again.
        candidates: plans measured of each problem at most, the planner's among them.
        seconds: no problem of a run is begun after so long; None for no limit.
        reporter: is told of progress.
    """

    def __init__(
        self,
        device: Device,
        store: Store,
        candidates: int | None = None,
        seconds: float | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.device = device
        self.store = store
        self._candidates = candidates or CANDIDATES
        self._seconds = math.inf if seconds is None else seconds
        self._reporter = reporter or Reporter()

    def run(self, todo: Sequence[Task], tensor: Callable[[Value], torch.Tensor]) -> list[Task]:
        """Tune.

        Args:
            todo: as of :func:`tasks`.
            tensor: gives a value's tensor to measure on.

        Returns:
            the tasks the store now knows.
        """
        end = time.monotonic() + self._seconds
        known = [task for task in todo if self._known(task)]
        self._reporter.begin(len(todo), len(known))
        for task in todo:
            if self._known(task) or time.monotonic() >= end:
                continue
            try:
                entry = self._tune(task, tensor)
            except WrongResultError as error:
                self._reporter.failed(task, str(error))
                continue
            self.store.add(entry)
            self._reporter.end(task, entry)
            known.append(task)
        return known

    def _known(self, task: Task) -> bool:
        entry = self.store.find(task.problem)
        return entry is not None and entry.kernels == version()

    def _tune(self, task: Task, tensor: Callable[[Value], torch.Tensor]) -> Entry:
        """Climb from the planner's choice to the fastest plan nearby, until none is faster."""
        # One tensor a value: a call may name a value twice.
        made: dict[int, torch.Tensor] = {}

        def value(v: Value) -> torch.Tensor:
            if id(v) not in made:
                made[id(v)] = tensor(v)
            return made[id(v)]

        def plain(x: Any) -> Any:
            if isinstance(x, (list, tuple)):
                return [plain(y) for y in x]
            return value(x) if isinstance(x, Value) else x

        arguments = {name: plain(x) for name, x in task.call.args.items()}
        with torch.no_grad():
            expected = OPERATORS[task.call.op].reference(**arguments)
        device, packed = self.device, []
        for operand in task.kernel.operands:
            values = [value(v) for v in operand.values]
            packed.append(device.put(operand.tensor(values)))
        made.clear()

        planned = device.candidate(task.kernel, build(task.kernel, device.isa), packed)
        limit = _limit(planned.result(), expected)
        tried = {task.kernel.plan}
        best = planned
        while len(tried) < self._candidates:
            plans = [p for p in dict.fromkeys(best.kernel.nearby()) if p not in tried]
            plans = plans[: self._candidates - len(tried)]
            if not plans:
                break
            tried.update(plans)
            kernels = [_kernel(task.call, plan, device) for plan in plans]
            with ThreadPoolExecutor(device.isa.threads) as pool:
                modules = list(pool.map(lambda k: build(k, device.isa), kernels))
            pairs = zip(kernels, modules, strict=True)
            others = [device.candidate(kernel, module, packed) for kernel, module in pairs]
            right = [c for c in others if limit.holds(c.result(), expected)]
            self._reporter.candidate(task, len(tried))
            times = race([best, *right])
            first = min(range(len(times)), key=times.__getitem__)
            if not first:
                break
            best = right[first - 1]
        if best is planned:
            (seconds,) = race([planned])
            return Entry(task.problem, version(), None, seconds, seconds, len(tried))
        # Measured again: the fastest of many was also the luckiest.
        untuned, seconds = race([planned, best], 2)
        if seconds > (1 - WORTH) * untuned:
            return Entry(task.problem, version(), None, untuned, untuned, len(tried))
        fields = dataclasses.asdict(best.kernel.plan)
        return Entry(task.problem, version(), fields, seconds, untuned, len(tried))


def _kernel(call: Call, plan: Any, device: Device) -> Kernel:
    return lower(dataclasses.replace(call, plan=dataclasses.asdict(plan)), device.isa)


def race(candidates: Sequence[Candidate], times: int = 1) -> list[float]:
    """Seconds of each candidate: the median of calls made in turn, so that all see the same noise.

    Of every candidate the slower half of calls is left out: what slows a call down is others.
    """
    first = min(candidate.seconds() for candidate in candidates)
    calls = times * min(max(int(_SECONDS / first), _CALLS), _MOST)
    taken = [[candidate.seconds() for candidate in candidates] for _ in range(calls)]
    halves = (sorted(column)[: (calls + 1) // 2] for column in zip(*taken, strict=True))
    return [statistics.median(half) for half in halves]


class WrongResultError(Exception):
    """The planner's own kernel disagrees with the reference: nothing to compare others with."""


@dataclass(frozen=True)
class _Limit:
    """How far from the reference a result may be: no further than the planner's kernel's."""

    norm: float
    largest: float

    def holds(self, actual: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether a result is as near."""
        finite, norm, largest = _distance(actual, expected)
        return finite and norm <= self.norm and largest <= self.largest


def _distance(actual: torch.Tensor, expected: torch.Tensor) -> tuple[bool, float, float]:
    """Whether both are finite in the same places; 2-norm and largest difference, both relative."""
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return False, math.inf, math.inf
    a, e = actual[finite].float(), expected[finite].float()
    scale = float(e.norm()) or 1.0
    largest = float(e.abs().max()) if e.numel() else 1.0
    return True, float((a - e).norm()) / scale, float((a - e).abs().max()) / (largest or 1.0)


def _limit(actual: torch.Tensor, expected: torch.Tensor) -> _Limit:
    """From the planner's own result.

    Sums in another order differ in the last places, and a value near the middle of two may be
    rounded the other way: to the norm that adds little, to the largest difference a step of the
    result's dtype.

    Raises:
        WrongResultError: it is far from the reference.
    """
    finite, norm, largest = _distance(actual, expected)
    if not finite or norm > 0.05 or largest > 0.1:
        raise WrongResultError(
            f"the planner's own result is {norm:.1e} from the reference, {largest:.1e} at most"
        )
    step = float(torch.finfo(expected.dtype).eps) if expected.is_floating_point() else 0.0
    return _Limit(1.25 * norm + 1e-6, 1.5 * largest + 2 * step)
