"""Linears on coded weights that read a linear: which become one, and that no number changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoomc.passes import PIPELINE, Context, run
from zoomc.passes.ops import MLP

from tests.passes.util import assert_meta_is_true, captured, counts, model, outputs

RULE = "linear(linear(x, v), w) => mlp(x, v, w)"
APART = tuple(p for p in PIPELINE if p.name != "fuse linears")


class FeedForward(nn.Module):
    """Norm, GEGLU and the way back; what stands between may have another reader."""

    def __init__(self, seen=False):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(48), nn.Linear(48, 192), nn.Linear(96, 48)
        self.seen = seen

    def forward(self, x):
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        hidden = value * nn.functional.gelu(gate)
        y = self.down(hidden) + x
        return (y, hidden) if self.seen else y


def both(name_or_module, inputs=None, **settings):
    """A graph through all passes, its trace, and its outputs with and without the last pass."""
    results = []
    for pipeline in (APART, PIPELINE):
        torch.manual_seed(0)
        made = name_or_module if isinstance(name_or_module, str) else name_or_module()
        gm, given = model(made) if inputs is None else captured(made.eval(), inputs)
        trace = run(gm, Context(inputs=given, **{"weights": "int4"} | settings), pipeline)
        gm.graph.lint()
        results.append((gm, trace, outputs(gm, given)))
    (_, _, want), (gm, trace, got) = results
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    return gm, trace


@pytest.mark.parametrize(("name", "found"), [("sd2_unet", 4), ("clip_text", 2), ("vae_decoder", 0)])
def test_what_a_model_has_of_them(name, found):
    gm, trace = both(name)
    assert trace.hits(RULE) == counts(gm)["zoomc.mlp.default"] == found
    assert_meta_is_true(gm)


@pytest.mark.parametrize("weights", ["int4", "int8", "shared", "int4+blocks50%"])
def test_a_feed_forward_becomes_one(weights):
    gm, trace = both(FeedForward, (torch.randn(2, 7, 48),), weights=weights)
    assert trace.hits(RULE) == 1
    assert counts(gm)["zoomc.linear.default"] == 0
    (node,) = gm.graph.find_nodes(op="call_function", target=MLP)
    assert node.kwargs["norm"] and node.kwargs["activation"] == "geglu"
    assert node.kwargs["residual"] is not None


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: FeedForward(seen=True), {}),
        (FeedForward, {"weights": "keep"}),
        (FeedForward, {"ranges": {}}),
        (FeedForward, {"refuses": lambda n, _: "no" if n.target is MLP else None}),
        (FeedForward, {"weight_only": lambda *_: "memory is the limit"}),
        (lambda: nn.Sequential(nn.Linear(48, 64), nn.LayerNorm(64), nn.Linear(64, 48)), {}),
    ],
    ids=["another reader", "kept weights", "static scales", "refused", "not quantised", "a norm"],
)
def test_what_stays_apart(make, settings):
    gm, trace = both(make, (torch.randn(2, 7, 48),), **settings)
    assert trace.hits(RULE) == counts(gm)["zoomc.mlp.default"] == 0
    assert counts(gm)["zoomc.linear.default"] == 2


def test_fuel_stops_it():
    gm, inputs = captured(FeedForward().eval(), (torch.randn(2, 7, 48),))
    trace = run(gm, Context(weights="int4", inputs=inputs))
    short, _ = captured(FeedForward().eval(), (torch.randn(2, 7, 48),))
    run(short, Context(weights="int4", inputs=inputs, fuel=trace.rewrites - 1))
    assert counts(gm)["zoomc.mlp.default"] == 1 and counts(short)["zoomc.mlp.default"] == 0
