"""Coded weights in a graph: which layers take which, what that costs, what a target may refuse."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from zoomc.kernels.weights import Encoding, decode, encode
from zoomc.kernels.weights.coded import bits
from zoomc.passes import PIPELINE, Context, PassRecord, run
from zoomc.passes.candidates import row_a_picture
from zoomc.passes.ops import CONV2D, LINEAR
from zoomc.passes.rewrite import arguments

from tests.passes.util import assert_meta_is_true, captured, counts, model, outputs
from zoomc import compress

#: The passes up to the one tested here: what it gives codes is fused after it.
ENCODED = PIPELINE[: [p.name for p in PIPELINE].index("encode weights") + 1]


def coded(name_or_module, weights: str, inputs=None, **settings):
    """The graph with coded weights, its inputs, its outputs before, and the pass's record."""
    gm, inputs = model(name_or_module) if inputs is None else captured(name_or_module, inputs)
    want = outputs(gm, inputs)
    trace = run(gm, Context(weights=weights, inputs=inputs, **settings), ENCODED)
    gm.graph.lint()
    return gm, inputs, want, trace.passes[-1]


def error(got, want) -> float:
    return max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(got, want, strict=True)
        if b.is_floating_point()
    )


def encodings(record: PassRecord) -> Counter[str]:
    return Counter(layer.encoding for layer in record.layers)


#: Layers by encoding: all but the ends, the time embeddings and the projections in the resnets.
EXPECTED = {
    "sd2_unet": {"int4": 25 - 2 + 8 + 28, "int8": 2 + 2 + 8},
    "sdxl_unet": {"int4": 25 - 2 + 8 + 56, "int8": 2 + 4 + 8},
    "clip_text": {"int4": 8},
    "vae_decoder": {"int4": 16, "keep": 3},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_layers_take_what_they_can_bear(name):
    gm, inputs, want, record = coded(name, "int4")
    assert encodings(record) == EXPECTED[name]
    assert_meta_is_true(gm)
    # one rounding of 16 levels a layer, one of 255 an activation, over some twenty layers in line
    assert 0.01 < error(outputs(gm, inputs), want) < 0.25
    for layer in record.layers:
        assert (layer.encoding == "int4") == (layer.reason == ""), layer
        assert layer.weight and "weight" in layer.weight
    used = counts(gm)
    expected = sum(n for e, n in EXPECTED[name].items() if e != "keep")
    assert used["zoomc.encode.default"] == expected


def test_every_encoding_errs_as_much_as_its_levels_explain():
    errors = {}
    for weights in ("int8", "shared:256", "shared", "int4", "shared:4", "int4+2:4", "keep+2:4"):
        gm, inputs, want, _ = coded("clip_text", weights)
        errors[weights] = error(outputs(gm, inputs), want)
    assert errors["int8"] < 0.03 and errors["shared:256"] < 0.03
    assert 3 * errors["int8"] < errors["int4"] < 0.25
    # which of the two is better is told by weights, not by a model as small as this
    assert max(errors["shared"], errors["int4"]) < errors["shared:4"]
    assert errors["int4"] < errors["keep+2:4"] < 1 and errors["int4"] < errors["int4+2:4"]


def test_what_a_layer_takes_to_store_is_what_its_codes_take():
    _, _, _, record = coded("sd2_unet", "int4")
    for layer in record.layers:
        weight, encoding = torch.randn(layer.shape), Encoding.parse(layer.encoding)
        assert layer.bits == bits(encode(weight, encoding), encoding)


def test_a_coded_layer_computes_with_the_decoded_weight():
    torch.manual_seed(0)
    layer = nn.Linear(200, 48)
    x = torch.randint(-127, 128, (20, 200)).float()
    x[:, 0] = 127  # the scale is 1: activations are exact, so only the weight's rounding is left
    gm, inputs, _, _ = coded(layer, "shared", (x,))
    weight = decode(encode(layer.weight, Encoding.parse("shared")))
    expected = torch.nn.functional.linear(x, weight, layer.bias)
    torch.testing.assert_close(outputs(gm, inputs)[0], expected.detach(), rtol=1e-5, atol=1e-3)


def test_a_weight_used_twice_is_encoded_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            return self.layer(self.layer(x).sin())

    gm, _, _, record = coded(Tied(), "int4", (torch.randn(9, 64),))
    assert encodings(record) == {"int4": 2}
    assert counts(gm)["zoomc.encode.default"] == 1


def test_queries_keys_and_values_stay_one_product():
    gm, _, _, record = coded("clip_text", "int4")
    merged = [layer for layer in record.layers if layer.weight.count(" + ") == 2]
    assert len(merged) == 2
    assert all("q_proj" in layer.weight and "v_proj" in layer.weight for layer in merged)
    assert counts(gm)["zoomc.linear.default"] == 8


class Gated(nn.Module):
    """Convolutions, then a linear with geglu and one without."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(130, 256, 3), nn.Conv2d(256, 256, 3))
        self.last = nn.Conv2d(256, 256, 1)
        self.gated, self.plain = nn.Linear(256, 1280), nn.Linear(640, 96)

    def forward(self, x):
        x = self.last(self.layers(x)).flatten(2).transpose(1, 2)
        value, gate = self.gated(x).chunk(2, dim=-1)
        return self.plain(value * nn.functional.gelu(gate))


def test_kernels_of_kept_weights_are_told_how_many_blocks_are_left():
    torch.manual_seed(0)
    layers, inputs = Gated().eval().requires_grad_(False), (torch.randn(1, 130, 8, 8),)
    gm, *_ = coded(layers, "keep+blocks50%", inputs)
    found = [
        arguments(node)["kept_steps"] for node in gm.graph.nodes if node.target in (CONV2D, LINEAR)
    ]
    assert found == [0, 18, 2, 2, 5]


@pytest.mark.parametrize("stored", [False, True])
def test_kernels_are_told_how_many_blocks_are_left(stored):
    torch.manual_seed(0)
    layers, inputs = Gated().eval().requires_grad_(False), (torch.randn(1, 130, 8, 8),)
    weights = "int4+blocks50%"
    if stored:
        compress(layers, *inputs, weights=weights)
    gm, inputs, _, record = coded(layers, "keep" if stored else weights, inputs)
    found = {
        (node.args[1].meta["val"].shape[0], arguments(node)["kept_steps"])
        for node in gm.graph.nodes
        if node.target in (CONV2D, LINEAR)
    }
    # Of 4 groups at 9 taps 18, of 4 groups 2, of 10 groups 5. The first is not pruned, and the
    # last convolution only where linears behind it say that it is not the last layer.
    ends = {(256, 0)} if stored else {(256, 0), (256, 2)}
    assert found == {(256, 18), (1280, 2), (96, 5)} | ends
    assert encodings(record) == {"int8": 3 - len(ends), weights: 2 + len(ends)}


def test_what_the_target_refuses_takes_more_bits_or_stays():
    def no_int4_convs(node, constant):
        table = arguments(node)["table"]
        assert table is None or table in constant
        return "no tables" if node.target is CONV2D and table is not None else None

    _, _, _, record = coded("sd2_unet", "int4", refuses=no_int4_convs)
    assert encodings(record) == {"int8": 25 + 10, "int4": 36}
    reasons = Counter(layer.reason for layer in record.layers)
    assert reasons["the target cannot run int4: no tables"] == 23

    gm, inputs, want, record = coded("sd2_unet", "int4", refuses=lambda *_: "no integers")
    assert encodings(record) == {"keep": 71} and not record.hits
    assert error(outputs(gm, inputs), want) < 1e-5
    assert counts(gm)["zoomc.encode.default"] == 0


def test_what_the_target_would_not_quantise_stays_in_floats():
    def linears(node, constant):
        assert arguments(node)["table"] is None or arguments(node)["table"] in constant
        return None if node.target is CONV2D else "memory is the limit"

    gm, inputs, want, record = coded("clip_text", "int8", weight_only=linears)
    layers = {layer.node: layer for layer in record.layers if layer.encoding != "keep"}
    assert layers and all(layer.weight_only == "memory is the limit" for layer in layers.values())
    nodes = [node for node in gm.graph.nodes if node.name in layers]
    assert len(nodes) == len(layers)
    assert all(node.kwargs["weight_only"] and node.kwargs["channel_scale"] for node in nodes)
    quantised, _, _, _ = coded("clip_text", "int8")
    assert counts(gm) == counts(quantised)
    assert error(outputs(gm, inputs), want) < error(outputs(quantised, inputs), want)


def test_tiny_double_and_varying_weights_are_kept():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.tiny = nn.Linear(8, 8)
            self.exact = nn.Linear(64, 64).double()

        def forward(self, x, w):
            return self.exact(self.tiny(x).repeat(1, 8).double()), x @ w.t()

    gm, inputs, want, record = coded(Odd(), "int4", (torch.randn(20, 8), torch.randn(30, 8)))
    assert {layer.reason.split()[0] for layer in record.layers} == {"fewer", "float64"}
    assert all(torch.equal(a, b) for a, b in zip(outputs(gm, inputs), want, strict=True))


def test_half_precision_models_and_a_second_run():
    gm, inputs = model("clip_text")
    want = outputs(gm, inputs)
    run(gm, Context(weights="int4", dtype=torch.bfloat16))
    assert_meta_is_true(gm)
    assert error(outputs(gm, inputs), want) < 0.25
    for node in gm.graph.nodes:
        if node.target is LINEAR:
            assert node.meta["val"].dtype is torch.bfloat16
            assert arguments(node)["channel_scale"].meta["val"].dtype is torch.float32
    assert run(gm, Context(weights="int4")).rewrites == 0


def test_fuel_counts_layers():
    total = run(model("clip_text")[0], Context()).rewrites
    gm, inputs = model("clip_text")
    want = outputs(gm, inputs)
    run(gm, Context(weights="int4", fuel=total + 3))
    assert counts(gm)["zoomc.encode.default"] == 3
    assert error(outputs(gm, inputs), want) < 0.25


class Fragile(nn.Module):
    """Layers in a row, one of which loses everything to 16 levels: its columns differ too much."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(5))
        scale = torch.where(torch.arange(128) % 16 == 0, 300.0, 1.0)
        with torch.no_grad():
            self.layers[2].weight *= scale
        self.register_buffer("scale", scale)

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = torch.tanh(layer(x / self.scale if i == 2 else x)) * 3
        return x


def test_a_budget_spends_bits_where_they_matter():
    x = (torch.randn(40, 128),)
    _, _, _, plain = coded(Fragile(), "int4", x)
    gm, inputs, want, record = coded(Fragile(), "int4", x, max_error=0.2)
    assert encodings(plain) == {"int4": 5} and plain.measured is None
    assert encodings(record)["int4"] == 4
    fragile = record.layers[2]
    assert fragile.encoding != "int4" and "layers.2" in fragile.weight
    got = error(outputs(gm, inputs), want)
    assert got <= 0.2 and abs(got - record.measured) < 1e-3
    # without the budget, that one layer costs more than all others together
    assert error(outputs(*coded(Fragile(), "int4", x)[:2]), want) > 1.5 * got


class Branches(nn.Module):
    """Two layers alike that lose alike; what the first gives hardly reaches the output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.quiet, self.loud = nn.Linear(128, 128), nn.Linear(128, 128)

    def forward(self, x):
        return 1e-3 * torch.tanh(self.quiet(x)) + torch.tanh(self.loud(x))


def test_a_budget_sees_what_reaches_the_outputs():
    torch.manual_seed(0)
    gm, inputs, want, record = coded(Branches(), "int4", (torch.randn(40, 128),), max_error=0.03)
    assert {layer.weight: layer.encoding for layer in record.layers} == {
        "quiet.weight": "int4",
        "loud.weight": "int8",
    }
    assert error(outputs(gm, inputs), want) <= 0.03


@pytest.mark.parametrize("budget", [0.3, 0.08, 0.02, 1e-4])
def test_smaller_budgets_take_more_bits_and_are_kept(budget):
    x = (torch.randn(40, 128),)
    gm, inputs, want, record = coded(Fragile(), "int4", x, max_error=budget)
    assert error(outputs(gm, inputs), want) <= max(budget, 1e-5)
    assert record.measured <= budget
    total = sum(layer.bits for layer in record.layers)
    looser = coded(Fragile(), "int4", x, max_error=min(0.9, budget * 3))[3]
    assert sum(layer.bits for layer in looser.layers) <= total
    if budget == 1e-4:
        assert encodings(record) == {"keep": 5}


def test_the_budget_of_a_whole_unet():
    gm, inputs, want, record = coded("sd2_unet", "int4", max_error=0.08)
    assert error(outputs(gm, inputs), want) <= 0.0801
    found = encodings(record)
    assert found["int4"] > 5 and found["int8"] > 12
    assert all(layer.error is not None for layer in record.layers)


class Norms(nn.Module):
    """A norm and SiLU before a convolution, and before a linear: what a product reads is not x."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(8, 64, 1)
        self.norm = nn.GroupNorm(8, 64)
        self.conv = nn.Conv2d(64, 96, 3, padding=1)
        self.layer_norm = nn.LayerNorm(96)
        self.linear = nn.Linear(96, 64)

    def forward(self, x):
        x = self.conv(nn.functional.silu(self.norm(self.first(x))))
        return self.linear(self.layer_norm(x.flatten(2).mT))


def test_moments_are_those_of_what_the_product_reads():
    from zoomc.passes.calibrate import look

    module, x = Norms().eval().requires_grad_(False), torch.randn(2, 8, 6, 6)
    gm, inputs = captured(module, (x,))
    run(gm)
    layers = [n for n in gm.graph.nodes if n.target in (CONV2D, LINEAR)]
    seen = look(gm, layers, inputs)
    found = {layer: seen[layer].gram for layer in layers}
    h = nn.functional.silu(module.norm(module.first(x)))
    rows = h.movedim(1, -1).reshape(-1, 64)
    moments = rows.t() @ rows / len(rows)
    # 72 rows tell of 64 channels: what they have in common counts 72 / 136
    off = moments * (72 / 136)
    torch.testing.assert_close(found[layers[1]][0], torch.diagonal_scatter(off, moments.diag()))
    h = module.layer_norm(module.conv(h).flatten(2).mT).reshape(-1, 96)
    assert found[layers[2]].shape == (2, 64, 64)
    moments = h[:, :64].t() @ h[:, :64] / len(h)
    shrunk = torch.diagonal_scatter(moments * (72 / 136), moments.diag())
    torch.testing.assert_close(found[layers[2]][0], shrunk, rtol=1e-4, atol=1e-5)
    assert (found[layers[2]][1, 32:] == 0).all()


def test_calibration_loses_less():
    x = (torch.randn(2, 8, 16, 16),)
    lost = {}
    for calibrate in (False, True):
        moments = {} if calibrate else None
        gm, inputs, want, record = coded(Norms().eval(), "shared:4", x, moments=moments)
        assert_meta_is_true(gm)
        lost[calibrate] = error(outputs(gm, inputs), want)
        assert encodings(record)["shared:4"] == 1 or encodings(record)["shared:4"] == 2
    assert lost[True] < 0.95 * lost[False]
    gm, inputs, want, record = coded(
        Norms().eval(), "shared:4", x, moments={}, max_error=lost[True] / 2
    )
    assert error(outputs(gm, inputs), want) <= lost[True] / 2 * 1.001


def test_a_row_a_picture_whatever_the_batch():
    assert row_a_picture((8, 320), ()) and not row_a_picture((9, 320), ())
    assert row_a_picture((16, 320), {16}) and not row_a_picture((17, 320), {16})
    assert row_a_picture((320,), ()) and not row_a_picture((2, 4, 320), {8})


def test_ranges_are_those_of_what_the_product_reads():
    module, x = Norms().eval().requires_grad_(False), torch.randn(2, 8, 6, 6)
    ranges = {}
    gm, inputs, want, record = coded(module, "int8", (x,), ranges=ranges)
    h = nn.functional.silu(module.norm(module.first(x)))
    wide = module.layer_norm(module.conv(h).flatten(2).mT)
    assert record.layers[0].bounds is None and record.layers[0].encoding == "keep"
    for read, layer in zip((h, wide), record.layers[1:], strict=True):
        ends = read.amin().clamp(max=0), read.amax().clamp(min=0)
        torch.testing.assert_close(layer.bounds, tuple(map(float, ends)), rtol=1e-4, atol=1e-5)
        assert layer.dynamic == "" and ranges[layer.weight, layer.shape].tolist() == [*layer.bounds]
    assert_meta_is_true(gm)
    assert error(outputs(gm, inputs), want) < 0.03
    # another graph of the model is given the same, and so runs nothing to find it
    _, _, _, other = coded(module, "int8", (torch.randn(1, 8, 9, 9),), ranges=ranges)
    assert [layer.bounds for layer in other.layers] == [layer.bounds for layer in record.layers]


def test_layers_of_one_weight_have_the_range_of_both():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            return self.layer(x), self.layer(9 * x.abs())

    x = torch.randn(9, 64)
    _, _, _, record = coded(Tied(), "int8", (x,), ranges={})
    ends = float(x.amin()), float(9 * x.abs().amax())
    assert [layer.bounds for layer in record.layers] == [pytest.approx(ends)] * 2


@pytest.mark.parametrize("fill", [0.0, torch.inf, torch.nan])
def test_what_gives_no_range_is_measured_by_each_call(fill):
    layer, x = nn.Linear(64, 64), torch.full((9, 64), fill)
    gm, _, _, record = coded(layer, "int8", (x,), ranges={})
    assert record.layers[0].bounds is None and "no range" in record.layers[0].dynamic
    x = torch.randn(9, 64)
    assert error(outputs(gm, [*captured(layer, (x,))[1][:-1], x]), [layer(x).detach()]) < 0.03


def test_ranges_the_target_refuses_and_those_of_floats():
    def refuses(node, constant):
        bounds = arguments(node)["bounds"]
        assert bounds is None or bounds in constant
        return "not here" if node.target is CONV2D and bounds is not None else None

    def linears(node, constant):
        return None if node.target is CONV2D else "memory is the limit"

    x = (torch.randn(2, 8, 6, 6),)
    gm, _, _, record = coded(Norms(), "int8", x, ranges={}, refuses=refuses, weight_only=linears)
    assert [bool(layer.dynamic) for layer in record.layers] == [False, True, False]
    assert record.layers[1].dynamic == "the target cannot fix them: not here"
    layers = [n for n in gm.graph.nodes if n.target in (CONV2D, LINEAR)]
    assert all(layer.bounds is None for layer in record.layers)
    assert all(arguments(node)["bounds"] is None for node in layers)


def test_a_budget_counts_what_clamping_loses():
    x = (torch.randn(2, 8, 16, 16),)
    narrow = {}
    coded(Norms().eval(), "int8", x, ranges=narrow)
    narrow = {key: bounds / 4 for key, bounds in narrow.items()}
    gm, inputs, want, record = coded(Norms().eval(), "int8", x, ranges=narrow)
    assert error(outputs(gm, inputs), want) > 0.05
    gm, inputs, want, record = coded(Norms().eval(), "int8", x, ranges=narrow, max_error=0.05)
    assert error(outputs(gm, inputs), want) < 0.05 and "keep" in encodings(record)
