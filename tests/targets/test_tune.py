"""Tuning on the CPU: only what is right may win, what is found is used, and runs are resumed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import zoomc.passes.ops
from torch import nn
from zoomc.kernels.tir.isa import isa
from zoomc.kernels.tir.kernel import lower
from zoomc.kernels.tir.run import bind
from zoomc.targets.tuning import Store, problem, version
from zoomc.targets.tvm import tune as tuning
from zoomc.targets.tvm.measure import Device
from zoomc.targets.tvm.tune import Reporter, Task, Tuner

import zoomc

MACHINE = isa("auto", 2)


class Scripted(Device):
    """This machine, but calls take what ``seconds`` says of their plan, and some are wrong."""

    def __init__(self, seconds, wrong=()):
        super().__init__(MACHINE)
        self._seconds, self._wrong = seconds, wrong
        self.plans = []

    def candidate(self, kernel, module, operands):
        made = super().candidate(kernel, module, operands)
        self.plans.append(kernel.plan)
        made.seconds = lambda: self._seconds(kernel.plan)
        if kernel.plan in self._wrong:
            result = made.result()
            result[0, 0] += result.abs().max()
            made.result = lambda: result
        return made


def a_task(machine="m"):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 96, generator=generator).bfloat16() for n in (300, 200))
    call = bind("zoomc::linear", x, w)
    return Task(problem(call, machine), call, lower(call, MACHINE), 3)


def tune(device, store, task=None, **arguments):
    task = task or a_task()
    (found,) = Tuner(device, store, **arguments).run([task], lambda value: value.source)
    return store.find(found.problem)


def test_the_fastest_right_plan_wins_and_climbs():
    task = a_task()
    wrong, right, *_ = near = list(task.kernel.nearby())
    device = Scripted(lambda p: 1e-4 if p == wrong else 1e-3 if p == right else 2e-3, {wrong})
    entry = tune(device, Store(), task, candidates=100)
    assert entry.plan == dataclasses.asdict(right)
    assert (entry.seconds, entry.untuned, entry.kernels) == (1e-3, 2e-3, version())
    assert entry.tried == len(device.plans) == len(set(device.plans))
    call = dataclasses.replace(task.call, plan=dataclasses.asdict(right))
    further = lower(call, MACHINE).nearby()
    assert set(device.plans) == {task.kernel.plan, *near, *further}


def test_the_planner_keeps_what_is_hardly_slower():
    planned = a_task().kernel.plan
    entry = tune(Scripted(lambda plan: 1.0 if plan == planned else 0.99), Store(), candidates=3)
    assert entry.plan is None and entry.seconds == entry.untuned == 1.0 and entry.tried == 3


def test_a_wrong_planners_kernel_is_reported_and_left():
    class Told(Reporter):
        def failed(self, task, reason):
            self.reason = reason

    told = Told()
    device = Scripted(lambda plan: 1.0, {a_task().kernel.plan})
    assert Tuner(device, Store(), reporter=told).run([a_task()], lambda v: v.source) == []
    assert "from the reference" in told.reason


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 64)
        self.requires_grad_(False)

    def forward(self, x):
        return self.second(self.first(x).relu())


def explained(model, x, **options):
    torch._dynamo.reset()
    report = zoomc.explain(model, x, options={"threads": 2} | options)
    return report, report.to_dict()["graphs"][0]["tuning"]


def test_a_run_is_resumed_and_used(tmp_path):
    model, x, path = Small(), torch.randn(40, 64), str(tmp_path / "store.jsonl")
    options = {"tuning": path, "threads": 2}
    nothing = zoomc.tune(model, x, options=options, seconds=0)
    assert not nothing.found and not (tmp_path / "store.jsonl").exists()
    told = []

    class Told(Reporter):
        def begin(self, total, done):
            told.append((total, done))

    first = zoomc.tune(model, x, options=options, candidates=2, reporter=Told())
    second = zoomc.tune(model, x, options=options, candidates=2, reporter=Told())
    assert told == [(2, 0), (2, 2)]
    assert [e for _, e in first.found] == [e for _, e in second.found] and len(first.found) == 2
    assert "of 2 kernels beat the planner's choice" in str(first)
    report, used = explained(model, x, tuning=path)
    assert used == {"file": path, "used": 2, "ignored": {}} and path in str(report)
    assert report.error < 1e-5

    # A plan of other kernels, and one that does not fit, give way to the planner's.
    store = Store(path)
    (_, one), (_, other) = first.found
    store.add(dataclasses.replace(one, kernels="older"))
    store.add(dataclasses.replace(other, plan={"blocks": 3}))
    report, used = explained(model, x, tuning=path)
    assert used["used"] == 0 and len(used["ignored"]) == 2
    assert "tune again" in str(report) and "does not fit" in str(report) and report.error < 1e-5
    assert explained(model, x, tuning="off")[1]["file"] is None


def test_the_option_tunes_before_the_first_use(tmp_path):
    x, path = torch.randn(40, 64), str(tmp_path / "store.jsonl")
    model, options = Small(), {"tuning": path, "tune": True, "threads": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "CANDIDATES", 2)
        report, used = explained(model, x, **options)
    assert used["used"] == 2 and len(Store(path)) == 2 and report.error < 1e-5
