"""explain: what it counts, what it prints, what it converts to."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from zoomc.kernels.tir.isa import isa

import zoomc
from tests.models import MODELS


def test_report_of_a_small_unet():
    model, inputs = MODELS["sd2_unet"]()
    report = zoomc.explain(model, *inputs)
    figures = report.to_dict()
    json.dumps(figures)
    (graph,) = figures["graphs"]
    assert figures["error"] < 1e-5
    assert graph["fallbacks"] == []
    assert graph["flops"] > 1e8
    assert graph["weight_bytes"] >= sum(p.nbytes for p in model.parameters() if p.ndim > 1)
    assert graph["activation_bytes"] > 0
    assert graph["distinct_kernels"] < len(graph["kernels"])
    assert all(seconds >= 0 for seconds in graph["seconds"].values())
    assert {"capture", "passes", "target.kernels"} <= set(graph["seconds"])
    assert any("=>" in rule for rule in graph["fusions"])
    text = str(report)
    assert "fallbacks    none" in text and "GFLOP" in text and "error against eager" in text


@pytest.mark.parametrize(
    ("options", "nbytes"),
    [
        ({"dtype": "fp32"}, 4 * 96 * 256),
        ({"dtype": "bf16"}, 2 * 96 * 256),
        ({"dtype": "bf16", "weights": "keep+blocks50%"}, 96 * 256),
    ],
)
def test_weights_are_counted_as_they_are_held(options, nbytes):
    model = nn.Linear(256, 96).eval().requires_grad_(False)
    report = zoomc.explain(model, torch.randn(16, 256), options={"weights": "keep"} | options)
    # Beside the matrix a bias, and of a pruned one a list of what is left.
    assert nbytes <= report.to_dict()["graphs"][0]["weight_bytes"] < nbytes + 600


def test_fallbacks_are_named_with_reasons():
    report = zoomc.explain(Sorts(), torch.randn(4, 4))
    (fallback,) = report.to_dict()["graphs"][0]["fallbacks"][:1]
    assert "sort" in fallback["operator"] and fallback["reason"]
    assert fallback["reason"] in str(report)


def test_the_model_is_left_as_it_was():
    model, inputs = MODELS["clip_text"]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    zoomc.explain(model, *inputs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_wrong_options_are_refused_before_any_work():
    with pytest.raises(zoomc.ZoomcError, match="did you mean 'dtype'"):
        zoomc.explain(nn.Identity(), torch.ones(1), options={"dtpye": "bf16"})


class Sorts(nn.Module):
    """Something no kernel computes."""

    def forward(self, x):
        return torch.sort(x * 2)[0]


class Normed(nn.Module):
    """A convolution and a linear, each behind its norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, 64), nn.Conv2d(64, 64, 3, padding=1)
        self.rows, self.linear = nn.LayerNorm(64), nn.Linear(64, 96)

    def forward(self, x):
        x = self.conv(nn.functional.silu(self.norm(x)))
        return self.linear(self.rows(x.flatten(2).transpose(1, 2)))


@pytest.mark.parametrize(
    ("weights", "conv", "linear"),
    [
        ("int8", ["norm", "quantise", "product"], ["norm", "product"]),
        ("keep", ["norm", "prepare", "product"], ["norm", "product"]),
    ],
)
def test_a_profile_tells_the_stages_of_a_kernel(weights, conv, linear):
    model = Normed().eval().requires_grad_(False)
    x = torch.randn(2, 64, 24, 24)
    report = zoomc.explain(model, x, options={"weights": weights}, profile=True)
    (graph,) = report.to_dict()["graphs"]
    counts = isa().lanes >= 8
    found = {symbol.split("_")[0]: parts for symbol, parts in graph["stage_seconds"].items()}
    assert {name: list(parts) for name, parts in found.items()} == (
        {"conv2d": conv, "linear": linear} if counts else {}
    )
    for parts in found.values():
        assert all(seconds > 0 for seconds in parts.values())
    for kernel in graph["kernels"]:
        reads = kernel["stages"]
        parts = found.get(kernel["name"].split("_")[0], {})
        assert list(reads) == list(parts)
        if len(parts) > 1:
            *before, product = reads.values()
            assert product == 0 and set(before) == {2 * 64 * 24 * 24 * 4}
    assert ("(norm " in report.text(2)) == counts


def test_without_a_profile_nothing_is_timed():
    model = Normed().eval().requires_grad_(False)
    report = zoomc.explain(model, torch.randn(1, 64, 8, 8))
    (graph,) = report.to_dict()["graphs"]
    assert graph["stage_seconds"] == graph["kernel_seconds"] == {}
    assert "(norm " not in report.text(2)
