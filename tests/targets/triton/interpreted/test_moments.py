"""Statistics gathered by the kernels that write a map, in whole graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoomc.kernels.triton.gpu import GPUS
from zoomc.targets.triton import moments
from zoomc.targets.triton.replay import Replay
from zoomc.targets.triton.tune import tune
from zoomc.targets.tuning import Store

from zoomc.record import collect

from ..test_replay import cuda, step  # noqa: F401


class Block(nn.Module):
    """A residual block whose result is read three times: with a skip, by a norm, after a linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.norm2, self.linear = nn.GroupNorm(4, 16), nn.Linear(16, 16)
        self.norm3, self.conv3 = nn.GroupNorm(4, 32), nn.Conv2d(32, 8, 1)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = x + self.conv1(nn.functional.silu(self.norm1(x)))
        rows = self.norm2(y).permute(0, 2, 3, 1).flatten(1, 2)
        rows = self.linear(rows).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        y = torch.cat([y + rows, x], 1)
        return self.conv3(nn.functional.silu(self.norm3(y)))


def run(model, x, **options):
    torch._dynamo.reset()
    with torch.no_grad(), collect() as records:
        options = {"target": "triton", **options}
        actual = torch.compile(model, backend="zoomc", options=options)(x)
    return actual, records[0]


def passes(record) -> list[str]:
    """Functions that a step launches."""
    plan = record.executable._plan
    return [x.function.__name__ for kernels in plan.kernels.values() for x in kernels[0].launches]


def ungathered(monkeypatch) -> None:
    monkeypatch.setattr(moments, "gather_moments", lambda plan, gpu: None)


@pytest.mark.parametrize("weights", ["keep", "int8"])
def test_a_block_reads_no_map_for_its_statistics(weights, monkeypatch):
    model, x = Block(), torch.randn(2, 4, 8, 8)
    options = {"weights": weights, "activations": "int8"} if weights == "int8" else {}
    actual, record = run(model, x, **options)
    report = record.executable.report
    assert passes(record).count("map_affine") == 3 and "map_moments" not in passes(record)
    told = [k["notes"]["statistics"] for k in report["kernels"] if "statistics" in k["notes"]]
    assert len(told) == 3 and sum(note.count(",") for note in told) == 1
    ungathered(monkeypatch)
    alone, record = run(model, x, **options)
    assert passes(record).count("map_moments") == 4
    assert report["activation_bytes"] < record.executable.report["activation_bytes"]
    assert (actual - alone).norm() <= (1e-5 if weights == "keep" else 5e-3) * alone.norm()
    assert weights != "keep" or torch.allclose(actual, model(x), rtol=1e-4, atol=1e-4)


def test_images_that_share_blocks_of_rows_keep_the_pass():
    model, x = Block(), torch.randn(2, 4, 5, 3)
    actual, record = run(model, x)
    assert passes(record).count("map_moments") == 4
    torch.testing.assert_close(actual, model(x), rtol=1e-4, atol=1e-4)


def test_validated_and_replayed():
    model, x = Block(), torch.randn(2, 4, 8, 8)
    _, record = run(model, x, validate=True)
    rows = [row for row in record.validation if row["kernel"].endswith("_moments")]
    assert len(rows) == 3 and all(row["error"] < 1e-5 for row in record.validation)
    executable = record.executable
    replay = Replay(step(executable._run), [x])
    for _ in range(2):
        x = torch.randn_like(x)
        torch.testing.assert_close(replay([x])[0], executable(x)[0])


def test_tuning_keeps_to_the_blocks_that_were_settled(monkeypatch):
    model, x = Block(), torch.randn(2, 4, 8, 8)
    _, record = run(model, x)
    plan = record.executable._plan
    writers = [k for k in plan.kernels.values() if k[0].extras]
    assert writers
    for kernels in writers:
        assert len({kernel.extras["moments"].spec for kernel in kernels}) == 1
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    seconds = iter(range(10**6, 0, -1))  # whatever is timed last is the fastest
    tune(plan, GPUS["sm_90"], Store(), clock=lambda go: float(next(seconds)))
    again = record.executable(x)[0]
    torch.testing.assert_close(again, model(x), rtol=1e-4, atol=1e-4)
