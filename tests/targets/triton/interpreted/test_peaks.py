"""Quantisation in the load by what the producer gathered, in whole graphs."""

from __future__ import annotations

import torch
from torch import nn
from zoomc.targets.triton import peaks

from .test_moments import passes, run


class FeedForward(nn.Module):
    """A gated feed-forward layer and the projection that follows a transformer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(64)
        self.gate, self.out = nn.Linear(64, 256), nn.Linear(128, 64)
        self.project = nn.Linear(64, 64)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.gate(self.norm(x)).chunk(2, -1)
        return self.project(self.out(value * nn.functional.gelu(gate)) + x)


def test_rows_are_quantised_by_what_their_producer_gathered(monkeypatch):
    model, x = FeedForward(), torch.randn(2, 21, 64)
    options = {"weights": "int8", "activations": "int8"}
    actual, record = run(model, x, validate=True, **options)
    # The first layer's norm is a pass of its own.
    assert passes(record).count("prepare_rows") == 1
    kernels = record.executable.report["kernels"]
    assert len([k for k in kernels if "scales" in k["notes"]]) == 2
    rows = [row for row in record.validation if row["kernel"].endswith("_peaks")]
    assert len(rows) == 2 and all(row["error"] < 1e-2 for row in record.validation)
    moved = record.executable.report["activation_bytes"]
    monkeypatch.setattr(peaks, "gather_peaks", lambda plan, gpu: None)
    alone, record = run(model, x, **options)
    assert passes(record).count("prepare_rows") == 3
    assert torch.equal(actual, alone)
    assert moved < record.executable.report["activation_bytes"]
