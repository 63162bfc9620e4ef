"""Coded weights through torch.compile: options, numbers, reports, memory, changed weights."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from zoomc.kernels.tir.isa import isa, supported
from zoomc.kernels.weights import encoder

import zoomc
from zoomc.errors import OptionValueError, ZoomcError
from zoomc.options import Options
from zoomc.record import collect


class Block(nn.Module):
    """A transformer's feed-forward, twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128), nn.SiLU(), nn.Linear(128, 200)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def block():
    return Block().eval().requires_grad_(False), torch.randn(33, 128)


def compiled(model, **options):
    return torch.compile(model, backend="zoomc", options=options)


def error(got, want) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize(
    ("weights", "low", "high"),
    [
        ("int8", 1e-3, 0.03),
        ("int4", 0.02, 0.2),
        ("shared", 0.02, 0.2),
        ("int4+2:4", 0.2, 0.8),
        ("keep+50%", 0.1, 0.8),
        ("keep+blocks50%", 0.1, 0.9),
    ],
)
def test_numbers_through_the_compiler(block, weights, low, high):
    model, x = block
    with collect() as records:
        got = compiled(model, weights=weights, validate=True, fallback="error")(x)
    assert low < error(got, model(x)) < high
    layers = records[0].trace.layers
    assert [layer.encoding for layer in layers] == [weights] * 3
    assert all(row["error"] < 1e-5 and row["finite"] for row in records[0].validation)


def test_a_layer_is_encoded_once_and_nothing_is_kept_of_it(block, monkeypatch):
    model, x = block
    calls: list[tuple[int, ...]] = []
    encode = encoder.encode

    def counting(weight, *args, **kwargs):
        calls.append(tuple(weight.shape))
        return encode(weight, *args, **kwargs)

    monkeypatch.setattr("zoomc.kernels.weights.op.encode", counting)
    with collect() as records:
        fast = compiled(model, weights="int4")
        fast(x)
    assert sorted(calls) == sorted(layer.shape for layer in records[0].trace.layers)
    fast(torch.randn(33, 128))
    assert len(calls) == 3
    assert records[0].executable._constants._several is None


def test_calibrated_codes_go_through_the_compiler(block):
    model, x = block
    got = compiled(model, weights="int4", fallback="error")(x)
    plain = compiled(model, weights="int4", calibrate=False)(x)
    assert not torch.equal(got, plain) and error(got, model(x)) < 0.1


def test_variants_share_calibrated_codes_and_new_weights_are_calibrated_anew(block):
    model, x = block
    with collect() as records:
        fast = compiled(model, weights="int4", fallback="error")
        fast(x)
        size = records[0].executable._constants.nbytes()
        other = torch.randn(47, 128)
        assert error(fast(other), model(other)) < 0.1
        assert len(records) == 2 and records[1].executable._constants.nbytes() == size
        with torch.no_grad():
            model.layers[0].weight.mul_(-2)
        assert error(fast(x), model(x)) < 0.1
    assert len(records) == 3


def test_variants_share_static_scales_and_new_weights_get_new_ones(block):
    model, x = block
    options = {"weights": "int8", "scales": "static", "fallback": "error", "validate": True}
    with collect() as records:
        fast = compiled(model, **options)
        assert error(fast(x), model(x)) < 0.03
        other = torch.randn(47, 128).clamp(-2, 2)
        assert error(fast(other), model(other)) < 0.03
        # values beyond are clamped
        assert error(fast(100 * x), model(100 * x)) > 0.5
        assert fast(x.index_fill(1, torch.tensor(3), torch.nan)).isnan().all()
        with torch.no_grad():
            model.layers[0].weight.mul_(-20)
        assert error(fast(x), model(x)) < 0.03
    bounds = [[layer.bounds for layer in r.trace.layers] for r in records]
    assert bounds[0] == bounds[1] and None not in bounds[0]
    assert bounds[-1][0] == bounds[0][0] and bounds[-1][1][1] > 10 * bounds[0][1][1]
    assert all(len(record.validation) == 3 for record in records)
    assert all(row["error"] < 1e-5 for record in records for row in record.validation)


class Normed(nn.Module):
    """A gated linear behind a norm that makes a few channels large."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.gated = nn.LayerNorm(128), nn.Linear(128, 1024)
        self.norm.weight.data[::40] *= 30
        nn.init.normal_(self.gated.weight, std=0.1)  # as trained weights are spread
        self.eval().requires_grad_(False)

    def forward(self, x):
        value, gate = self.gated(self.norm(x)).chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_smoothing_through_the_compiler_and_new_weights_are_smoothed_anew(weights):
    model, x = Normed(), torch.randn(333, 128)
    options = {"weights": weights, "fallback": "error", "validate": True}
    plain = compiled(model, **options, smooth=False)(x)
    alone = compiled(model, **options, calibrate=False)(x)
    assert torch.equal(plain, alone) == (weights == "int8")
    plain = error(plain, model(x))
    with collect() as records:
        fast = compiled(model, **options)
        smooth = error(fast(x), model(x))
        assert smooth < (0.5 if weights == "int8" else 0.9) * plain
        size = records[0].executable._constants.nbytes()
        other = torch.randn(47, 128)
        assert error(fast(other), model(other)) < 1.2 * smooth
        assert len(records) == 2 and records[1].executable._constants.nbytes() == size
        model.norm.weight.data[::40] /= 30
        model.norm.weight.data[7] *= 100
        assert error(fast(x), model(x)) < 0.9 * plain
    channels = [[layer.smoothed for layer in r.trace.layers] for r in records]
    assert channels[0] == channels[1] and channels[0][0] >= 4 and channels[-1][0] >= 1
    factors = [value for record in records[::2] for value in record.graph.buffers()]
    factors = [value for value in factors if value.shape == (128,) and (value != 1).any()]
    assert factors[0][40] > 1 == factors[0][7] and factors[1][7] > 1 == factors[1][40]
    assert all(row["error"] < 1e-5 for record in records for row in record.validation)


def test_smoothing_is_told_and_what_gains_nothing_is_packed_again_without_compiling(block):
    report = zoomc.explain(Normed(), torch.randn(33, 128), options={"weights": "int8"})
    assert "smoothing    1 layers, in 4 channels of norms before" in str(report)
    (graph,) = report.to_dict()["graphs"]
    assert [layer["smoothed"] for layer in graph["layers"]] == [4]
    model, x = Normed(), torch.randn(33, 128)
    model.norm.weight.data.fill_(1)
    with collect() as records:
        fast = compiled(model, weights="int8")
        fast(x)
        model.gated.weight.mul_(-2)
        assert error(fast(x), model(x)) < 0.03
    assert len(records) == 1 and "smoothing" not in str(zoomc.explain(model, x))


def test_static_scales_are_told(block):
    model, x = block
    options = {"weights": "int4", "scales": "static", "calibrate": False}
    report = zoomc.explain(model, x, options=options)
    assert "scales       static in 3 layers" in str(report)
    (graph,) = report.to_dict()["graphs"]
    ends = [float(x.min()), float(x.max())]
    assert list(graph["layers"][0]["bounds"]) == pytest.approx(ends)
    json.dumps(report.to_dict())


def test_a_first_call_on_nan_gets_plain_codes(block):
    model, x = block
    fast = compiled(model, weights="int4")
    assert fast(torch.full_like(x, torch.nan)).isnan().all()
    assert torch.equal(fast(x), compiled(model, weights="int4", calibrate=False)(x))


def test_changed_weights_are_encoded_again(block):
    model, x = block
    fast = compiled(model, weights="int4")
    before = fast(x)
    with torch.no_grad():
        model.layers[2].weight.mul_(-2)
    after = fast(x)
    assert error(after, model(x)) < 0.2 < error(before, model(x))


def test_a_budget_is_kept_and_told(block):
    model, x = block
    report = zoomc.explain(model, x, options={"weights": "int4", "max_error": 0.03})
    figures = report.to_dict()
    json.dumps(figures)
    assert report.error <= 0.031
    (graph,) = figures["graphs"]
    assert graph["encoding_error"] <= 0.03
    assert abs(graph["encoding_error"] - report.error) < 1e-3
    encodings = [layer["encoding"] for layer in graph["layers"]]
    assert len(encodings) == 3 and encodings != ["int4"] * 3
    for layer in graph["layers"]:
        tried = layer["errors"]
        assert tried["int4"] > tried["int8"] > tried["keep"] == 0
        assert layer["error"] == tried[layer["encoding"]]
    text = str(report)
    assert "causing an error of" in text and "taken" in text
    row = next(line for line in text.splitlines() if "layers.2.weight (128, 256)" in line)
    assert f"{graph['layers'][1]['errors']['int4']:.2e}" in row


class Conditioned(nn.Module):
    """A convolution between others, shifted by a row a picture."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((16, 64), (64, 64), (64, 16))
        )
        self.time = nn.Linear(48, 64)

    def forward(self, x, t):
        x = self.convs[1](self.convs[0](x).relu()) + self.time(t)[:, :, None, None]
        return self.convs[2](x.relu())


def test_explain_shows_encodings_reasons_and_bytes():
    model, inputs = Conditioned().eval(), (torch.randn(2, 16, 8, 8), torch.randn(2, 48))
    report = zoomc.explain(model.requires_grad_(False), *inputs, options={"weights": "int4"})
    (graph,) = report.to_dict()["graphs"]
    assert report.error < 0.1 and not graph["fallbacks"]
    assert {layer["weight"]: (layer["encoding"], layer["reason"]) for layer in graph["layers"]} == {
        "convs.0.weight": ("int8", "the first convolution"),
        "convs.1.weight": ("int4", ""),
        "convs.2.weight": ("int8", "the last convolution"),
        "time.weight": ("int8", "a row a picture, as in time embeddings"),
    }
    text = str(report)
    megabytes = sum(layer["bits"] for layer in graph["layers"]) / 8e6
    assert f"encodings    {megabytes:.1f} MB in 4 layers" in text and "a row a picture" in text


class Attends(nn.Module):
    """A layer and attention over what it makes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 3 * 64)

    def forward(self, x):
        q, k, v = self.layer(x).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).flatten(2)


def test_explain_shows_what_attention_multiplies():
    model, x = Attends().eval().requires_grad_(False), torch.randn(2, 50, 64)
    fast = next((p for p in ("amx", "avx512", "avx2") if p in supported() and isa(p).vnni), None)
    taken = {"amx": "bf16", None: "keep"}.get(fast, "int8")
    options = {"weights": "int4", "isa": fast or "portable", "max_error": 0.9, "fallback": "error"}
    report = zoomc.explain(model, x, options=options)
    (graph,) = report.to_dict()["graphs"]
    (attention,) = graph["attentions"]
    assert attention["arithmetic"] == taken and attention["shape"] == (2, 2, 50, 50, 32)
    assert report.error < 0.2
    text = str(report)
    assert "attention    1 calls" in text and f"      1  {taken}" in text
    assert f"{attention['error']:.2e}  {attention['node']} (2, 2, 50, 50, 32)" in text


def test_by_default_weights_take_four_bits(block, monkeypatch):
    monkeypatch.delenv("ZOOMC_WEIGHTS")
    model, x = block
    with collect() as records:
        got = compiled(model)(x)
    assert 0.02 < error(got, model(x)) < 0.2
    assert [layer.encoding for layer in records[0].trace.layers] == ["int4"] * 3


def test_options_are_checked():
    assert Options(weights="int4+2:4").weights == "int4+2:4"
    assert Options(weights="int4", max_error="0.05").max_error == 0.05
    for weights in ("int5", "shared:5", 4):
        with pytest.raises(OptionValueError, match="it takes keep, int8, int4 or shared"):
            Options(weights=weights)
    for value in (0, -1, 2, "many", True):
        with pytest.raises(OptionValueError, match="a fraction between 0 and 1"):
            Options(weights="int4", max_error=value)
    with pytest.raises(OptionValueError, match="weights that lose something"):
        Options(weights="keep", max_error=0.1)


def test_weights_without_numbers_say_so(block):
    model, x = block
    model.layers[2].weight.data[3, 4] = float("nan")
    with pytest.raises((ZoomcError, RuntimeError), match="NaN or infinity"):
        compiled(model, weights="int4")(x)
    compiled(model, weights="keep")(x)
