"""Outlier channels move from norms into the coded weights behind them, where that helps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoomc.kernels.weights.smoothing import multiplied
from zoomc.passes import Context, run
from zoomc.passes.ops import CONV2D, LINEAR
from zoomc.passes.rewrite import arguments
from zoomc.passes.smooth import divided, foldable

from tests.passes.util import assert_meta_is_true, captured, model, outputs
from zoomc import compress

RULE = "norm(x), w => norm(x) / s, s * w"
WIDTH = 128


class Transformer(nn.Module):
    """Self-attention and a gated feed-forward, each behind a norm with a few large channels."""

    def __init__(self, outliers: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 8 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        with torch.no_grad():
            for layer in (self.query, self.key, self.value, self.out, self.up, self.down):
                nn.init.normal_(layer.weight, std=0.05)  # as trained weights are spread
            for norm in self.norms:
                norm.weight.add_(0.1 * torch.randn(WIDTH))
                norm.weight[torch.randperm(WIDTH)[:outliers]] *= 30
        self.eval().requires_grad_(False)

    def forward(self, x):
        h = self.norms[0](x)
        three = (f(h).unflatten(-1, (4, -1)) for f in (self.query, self.key, self.value))
        h = nn.functional.scaled_dot_product_attention(*(y.transpose(1, 2) for y in three))
        x = x + self.out(h.transpose(1, 2).flatten(2))
        value, gate = self.up(self.norms[1](x)).chunk(2, dim=-1)
        return x + self.down(value * nn.functional.gelu(gate))


class Conv(nn.Module):
    """A group norm with nothing between it and a convolution, and one with SiLU between."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in ((8, 64), (64, 64), (64, 64)))
        self.last = nn.Conv2d(64, 8, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, 64) for _ in range(2))
        for norm in self.norms:
            norm.weight.data[::20] *= 30
        self.eval().requires_grad_(False)

    def forward(self, x):
        x = self.norms[0](self.convs[0](x))
        x = self.norms[1](self.convs[1](x))
        return self.last(self.convs[2](nn.functional.silu(x)))


def smoothed(module: nn.Module, x: torch.Tensor, weights: str, smoothing, **settings):
    """The outputs' error, and the trace."""
    gm, inputs = captured(module, (x,))
    want = outputs(gm, inputs)
    settings = {"moments": {}, "inputs": inputs, **settings}
    trace = run(gm, Context(weights=weights, smoothing=smoothing, **settings))
    gm.graph.lint()
    assert_meta_is_true(gm)
    (got,), (want,) = outputs(gm, inputs), want
    return float((got.double() - want.double()).norm() / want.double().norm()), trace


def channels(trace) -> list[int]:
    return [layer.smoothed for layer in trace.layers]


@pytest.fixture(scope="module")
def block():
    return Transformer(), torch.randn(2, 50, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("weights", "part"), [("int8", 0.5), ("int4", 0.85), ("shared", 0.75)])
def test_outlier_channels_cost_less(block, weights, part):
    plain, trace = smoothed(*block, weights, None)
    assert trace.hits(RULE) == 0 and not any(channels(trace))
    better, trace = smoothed(*block, weights, {})
    assert trace.hits(RULE) == 2 and [n >= 4 for n in channels(trace)] == [True, False] * 2
    assert better < part * plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [True, False])
def test_nothing_changes_but_for_codes(dtype, offset):
    torch.manual_seed(0)
    x, weight = torch.randn(9, 70, dtype=dtype), torch.randn(24, 70, dtype=dtype)
    norm = {"norm_weight": torch.randn(70, dtype=dtype), "norm_bias": None}
    norm["norm_bias"] = torch.randn(70, dtype=dtype) if offset else None
    factors = 2.0 ** torch.randint(-3, 6, (70,))
    other = divided(norm, factors)
    assert set(other) == ({*norm} if offset else {"norm_weight"})
    weights = multiplied(weight, factors).to(dtype)
    want = LINEAR(x, weight, norm=True, **norm)
    got = LINEAR(x, weights, norm=True, **other)
    assert got.dtype is dtype and torch.equal(got, want)


@pytest.mark.parametrize(("name", "places"), [("sd2_unet", 12), ("sd15_unet", 16)])
def test_ordinary_models_are_left_as_they_are(name, places):
    gm, inputs = model(name)
    smoothing: dict = {}
    trace = run(gm, Context(weights="int8", smoothing=smoothing, inputs=inputs))
    assert trace.hits(RULE) == 0 and not any(channels(trace))
    assert list(smoothing.values()) == [None] * places


def test_a_group_norm_without_activation_gives_too():
    x = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(3))
    plain, _ = smoothed(Conv(), x, "int8", None)
    better, trace = smoothed(Conv(), x, "int8", {})
    assert [n > 0 for n in channels(trace)] == [False, True, False, False]
    assert better < 0.9 * plain


def test_graphs_of_one_model_share_factors(block):
    module, x = block
    smoothing: dict = {}
    gm, inputs = captured(module, (x,))
    run(gm, Context(weights="int8", smoothing=smoothing, inputs=inputs))
    found = {name: value for name, value in gm.named_buffers() if name.startswith("factors")}
    assert {id(value) for value in found.values()} == set(map(id, smoothing.values()))
    gm, _ = captured(module, (x[:, :7],))
    trace = run(gm, Context(weights="int8", smoothing=smoothing, inputs=()))  # nothing is run
    assert trace.hits(RULE) == 2
    found = {name: value for name, value in gm.named_buffers() if name.startswith("factors")}
    assert {id(value) for value in found.values()} == set(map(id, smoothing.values()))


def test_fuel_takes_smoothing_and_codes_one_by_one(block):
    module, x = block
    total = run(captured(module, (x,))[0], Context()).rewrites
    for fuel, hits in ((1, 0), (2, 1), (3, 1), (4, 1), (5, 2)):
        _, trace = smoothed(module, x, "int8", {}, fuel=total + fuel)
        assert trace.hits(RULE) == hits and trace.rewrites == total + fuel


@pytest.mark.parametrize("budget", [0.07, 0.02])
def test_a_budget_counts_on_it(block, budget):
    _, trace = smoothed(*block, "int4", None, max_error=budget)
    bits = sum(layer.bits for layer in trace.layers)
    error, trace = smoothed(*block, "int4", {}, max_error=budget)
    assert error <= budget and abs(error - trace.of("encode weights").measured) < 1e-3
    assert trace.hits(RULE) > 0
    assert sum(layer.bits for layer in trace.layers) < bits


def test_layers_that_cannot_or_need_not():
    def hits(module: nn.Module, x: torch.Tensor = torch.randn(9, 64), **settings) -> int:
        return smoothed(module.eval().requires_grad_(False), x, "int8", {}, **settings)[1].hits(
            RULE
        )

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(64), nn.Linear(64, 64)
            self.norm.weight.data[:3] *= 30

        def forward(self, x):
            return (
                self.layer(self.norm(x))
                if x.shape[0] == 9
                else self.layer(self.layer(self.norm(x)))
            )

    assert hits(Tied()) == 1
    assert hits(Tied(), torch.randn(8, 3, 64)) == 0  # another layer has the same weight
    assert hits(Tied(), ranges={}) == 0  # the ranges are those of other values
    assert hits(Tied(), weight_only=lambda node, _: "memory is the limit") == 0
    assert hits(Tied(), refuses=lambda node, _: "no integers") == 0
    assert hits(Tied(), torch.full((9, 64), torch.nan)) == 0
    plain = nn.Sequential(nn.LayerNorm(64, elementwise_affine=False), nn.Linear(64, 64))
    assert hits(plain) == 0
    gain = nn.Sequential(nn.LayerNorm(64, bias=False), nn.Linear(64, 64))
    gain[0].weight.data[:3] *= 30
    assert hits(gain) == 1
    assert hits(compress(gain, weights="int8")) == 0


def test_norms_that_vary_and_activations_between_are_not_folded():
    class Modulated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x, gain):
            return self.layer(nn.functional.layer_norm(x, (64,), gain))

    gm, _ = captured(Modulated(), (torch.randn(9, 64), torch.randn(64)))
    run(gm)
    (node,) = (n for n in gm.graph.nodes if n.target is LINEAR)
    assert arguments(node)["norm"] and not foldable(node)
    gm, _ = captured(Conv(), (torch.randn(2, 8, 12, 12),))
    run(gm)
    found = [foldable(n) for n in gm.graph.nodes if n.target is CONV2D]
    assert found == [False, True, False, False]
