"""Quantisation in the load by what the producer gathered, in whole graphs."""

from __future__ import annotations

import torch
from torch import nn
from zoomc.targets.triton import peaks

from .test_moments import passes, run


class FeedForward(nn.Module):
    """A gated feed-forward layer between the projections around a transformer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.enter = nn.GroupNorm(8, 64), nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.gate, self.out = nn.Linear(64, 256), nn.Linear(128, 64)
        self.project = nn.Linear(64, 64)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(self.first(x).permute(0, 2, 3, 1).flatten(1, 2))
        value, gate = self.gate(self.norm(x)).chunk(2, -1)
        return self.project(self.out(value * nn.functional.gelu(gate)) + x)


def test_rows_are_quantised_by_what_their_producer_gathered(monkeypatch):
    model, x = FeedForward(), torch.randn(2, 64, 7, 3)
    options = {"weights": "int8", "activations": "int8"}
    actual, record = run(model, x, validate=True, **options)
    # A layer norm needs whole rows.
    assert passes(record).count("prepare_rows") == 1
    kernels = record.executable.report["kernels"]
    assert len([k for k in kernels if "scales" in k["notes"]]) == 3
    rows = [row for row in record.validation if row["kernel"].endswith("_peaks")]
    assert len(rows) == 3 and all(row["error"] < 1e-2 for row in record.validation)
    moved = record.executable.report["activation_bytes"]
    monkeypatch.setattr(peaks, "gather_peaks", lambda plan, gpu: None)
    alone, record = run(model, x, **options)
    assert passes(record).count("prepare_rows") == 4
    assert torch.equal(actual, alone)
    assert moved < record.executable.report["activation_bytes"]
