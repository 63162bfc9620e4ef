"""Values that depend on one input alone: computed once while it stays, again when it changes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from zoomc.targets.tvm import reuse

from zoomc.record import collect


class Cross(nn.Module):
    """Queries of one input, keys of another, and the keys themselves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.queries = nn.Sequential(nn.Linear(48, 64), nn.SiLU(), nn.Linear(64, 32))
        self.keys = nn.Linear(24, 32)

    def forward(self, x, prompt):
        keys = self.keys(prompt)
        return self.queries(x) @ keys.mT, keys


@pytest.fixture
def cross(monkeypatch):
    """The model, a check that it runs right on inputs, and how often keys were computed."""
    monkeypatch.setattr(reuse, "WORTH", 1)
    return build()


def build(make=Cross, **options):
    model = make().eval().requires_grad_(False)
    fast = torch.compile(
        model, backend="zoomc", options={"weights": "keep", "fallback": "error", **options}
    )
    runs: list[int] = []

    def check(x, prompt):
        if runs:
            return right(fast(x, prompt), model(x, prompt))
        with collect() as records:
            result = right(fast(x, prompt), model(x, prompt))
        runs.append(1)
        executable = records[0].executable
        for name, function in list(executable._machine.items()):
            if name.startswith("own"):
                executable._machine[name] = counted(function, runs)
        check.executable = executable
        return result

    return model, check, runs


def counted(function, runs):
    def call(*args):
        runs[0] += 1
        return function(*args)

    return call


def right(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)
    return got


def inputs(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, generator=generator) for n in ((2, 40, 48), (2, 5, 24)))


def test_computed_once_while_the_prompt_stays(cross):
    _, check, runs = cross
    x, prompt = inputs(0)
    check(x, prompt)
    for step in range(1, 5):
        check(x + step, prompt.clone() if step == 3 else prompt)
    assert runs == [2]  # first, and when it had come back beside another x


def test_computed_again_when_it_changes(cross):
    model, check, runs = cross
    x, prompt = inputs(0)
    for step in range(3):
        check(x + step, prompt)
    assert runs == [2]
    prompt[0, 1, 2] += 1
    check(x, prompt)
    check(x + 1, prompt)
    assert runs == [4]
    prompt.data[1, 1, 1] = float("nan")
    check(x + 2, prompt)
    _, other = inputs(1)
    check(x + 3, other)
    check(x + 4, other)
    check(x + 5, other)
    assert runs == [7]
    model.keys.weight.mul_(2)
    check(x + 6, other)
    check(x + 7, other)
    assert runs == [8]


def test_a_call_repeated_as_a_whole_runs_as_a_whole(cross):
    _, check, runs = cross
    x, prompt = inputs(0)
    for _ in range(4):
        check(x, prompt)
    assert runs == [4]


def test_callers_may_write_into_results(cross):
    _, check, runs = cross
    x, prompt = inputs(0)
    for step in range(5):
        _, keys = check(x + step, prompt)
        keys.zero_()
    assert runs == [2]


def test_from_two_threads_with_two_prompts(cross):
    _, check, _ = cross
    check(*inputs(0))
    sets = [tuple(inputs(seed)) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(lambda k: check(sets[k % 2][0] + k, sets[k % 2][1]), k) for k in range(40)
        ]
    for future in futures:
        future.result()


def test_off(monkeypatch):
    monkeypatch.setattr(reuse, "WORTH", 1)
    _, check, _ = build(reuse=False)
    x, prompt = inputs(0)
    check(x, prompt)
    assert check.executable.report["reused"] == {}


def test_what_is_kept_is_neither_little_nor_most_of_the_work():
    _, check, _ = build()
    check(*inputs(0))
    assert check.executable.report["reused"] == {}


class Timed(nn.Module):
    """What a timestep projects to, added to a product of something else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.keys = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 32))
        self.body = nn.Sequential(nn.Linear(48, 64), nn.SiLU(), nn.Linear(64, 32))

    def forward(self, x, t):
        angles = t.float() * torch.arange(1, 9) / 8
        shift = self.keys(angles.sin()[None])
        return self.body(x) + shift, shift


@pytest.fixture
def timed(monkeypatch):
    monkeypatch.setattr(reuse, "WORTH_TINY", 1)
    return build(make=Timed)


def test_timesteps_that_come_back_are_not_projected_again(timed):
    _, check, runs = timed
    x, _ = inputs(0)
    steps = [torch.tensor(t) for t in (981, 961, 941)]
    for picture in range(3):
        for step, t in enumerate(steps):
            check(x + 10 * picture + step, t.clone())
    assert runs == [3]


def test_a_repeated_call_projects_its_timestep_again(timed):
    _, check, runs = timed
    x, _ = inputs(0)
    for _ in range(3):
        check(x, torch.tensor(981))
    assert runs == [3]


def test_projections_follow_the_weights_and_are_not_the_callers_to_write(timed):
    model, check, runs = timed
    x, _ = inputs(0)
    for _ in range(2):
        for t in (7, 5):
            for result in check(x + t, torch.tensor(t)):
                result.zero_()
    assert runs == [2]
    model.keys[0].weight.mul_(2)
    for _ in range(2):
        for t in (7, 5):
            check(x + t, torch.tensor(t))
    assert runs == [4]


def test_only_so_many_values_are_kept(timed, monkeypatch):
    monkeypatch.setattr(reuse, "VALUES", 2)
    _, check, runs = timed
    x, _ = inputs(0)
    for t in (1, 2, 3, 1, 3, 1):
        check(x + t, torch.tensor(t))
    assert runs == [4]  # 1 was dropped when 3 came
    monkeypatch.setattr(reuse, "HELD", 0)
    for t in (4, 5, 4, 5):
        check(x + t, torch.tensor(t))
    assert runs == [8]
