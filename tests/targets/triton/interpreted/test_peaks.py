"""Quantisation in the load by what the producer gathered, in whole graphs."""

from __future__ import annotations

import pytest
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


class SelfAttention(nn.Module):
    """Attention between the projections around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(48, 144), nn.Linear(48, 48)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (3, 16)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2)) + x


@pytest.mark.parametrize("attention", ["keep", "int8"])
def test_what_attention_gives_is_quantised_as_it_is_read(attention, monkeypatch):
    model, x = SelfAttention(), torch.randn(2, 21, 48)
    options = {"weights": "int8", "activations": "int8", "attention": attention}
    actual, record = run(model, x, validate=True, **options)
    assert passes(record).count("prepare_rows") == 1  # of the model's input
    rows = [row for row in record.validation if row["kernel"].endswith("_peaks")]
    assert [row["kernel"].startswith("attention") for row in rows] == [True]
    assert all(row["error"] < 1e-2 for row in record.validation)
    monkeypatch.setattr(peaks, "gather_peaks", lambda plan, gpu: None)
    alone, record = run(model, x, **options)
    assert passes(record).count("prepare_rows") == 2
    assert torch.equal(actual, alone)
