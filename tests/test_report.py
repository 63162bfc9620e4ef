"""explain: what it counts, what it prints, what it converts to."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

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
