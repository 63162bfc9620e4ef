"""The GPU target on CPU tensors, its kernels in Triton's interpreter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from zoomc.kernels.triton.gpu import GPUS
from zoomc.kernels.triton.kernel import candidates
from zoomc.kernels.triton.run import bind
from zoomc.targets.triton.plan import Plan
from zoomc.targets.triton.tune import recall, tune
from zoomc.targets.tuning import Store

import zoomc
from zoomc.errors import FallbackError
from zoomc.record import collect

TARGET = {"target": "triton"}


class Block(nn.Module):
    """A little of everything a UNet has."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.GroupNorm(4, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(16, channels)
        self.layer = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.gate = nn.Linear(channels, 4 * channels)
        self.out = nn.Linear(2 * channels, channels)
        self.register_buffer("steps", torch.arange(8) / 8)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        angles = t.float()[:, None] * self.steps
        emb = self.time(torch.cat([angles.sin(), angles.cos()], -1).to(x.dtype))
        y = self.conv(nn.functional.silu(self.norm(x))) + emb[:, :, None, None] + x
        rows = y.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.layer(rows)).chunk(3, -1)
        heads = (z.unflatten(-1, (2, -1)).transpose(1, 2) for z in (q, k, v))
        a = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        value, gate = self.gate(a).chunk(2, -1)
        return self.out(value * nn.functional.gelu(gate)) + rows


def inputs(batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 32, 4, 5, generator=generator).to(dtype), torch.arange(batch) * 7 + 3


def run(model, *args, **options):
    with torch.no_grad(), collect() as records:
        actual = torch.compile(model, backend="zoomc", options=TARGET | options)(*args)
    return actual, records


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_block(dtype):
    model, args = Block().to(dtype), inputs(dtype=dtype)
    actual, records = run(model, *args)
    expected = model.double()(args[0].double(), args[1])
    assert (actual.double() - expected).norm() / expected.norm() < 8 * torch.finfo(dtype).eps
    report = records[0].executable.report
    names = [k["name"] for k in report["kernels"]]
    assert {"conv2d_3x3_norm_silu_shift_residual", "attention", "linear_geglu"} <= set(names)
    assert {f["operator"] for f in report["fallbacks"]} >= {"aten.sin.default", "aten.cos.default"}
    assert all("in eager" in f["reason"] for f in report["fallbacks"])


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_coded_weights(weights):
    model, args = Block(), inputs(1)
    model.layer.weight[::8] *= 30  # which the weight behind it takes back
    model.layer.bias[::8] *= 30
    model.qkv.weight[:, ::8] /= 30
    actual, records = run(model, *args, weights=weights, activations="int8")
    assert [layer.smoothed > 0 for layer in records[0].trace.layers].count(True) == 1
    cpu = torch.compile(model, backend="zoomc", options={"target": "cpu", "weights": weights})
    with torch.no_grad():
        torch._dynamo.reset()
        expected = cpu(*args)
    # The same codes on both: activations' last places may fall on either side of a half.
    assert (actual - expected).norm() / expected.norm() < 5e-3
    notes = [k["notes"].get("weights", "") for k in records[0].executable.report["kernels"]]
    bits = {"int8": "8 bits", "int4": "4 bits"}[weights]
    assert any(bits in note for note in notes)


def test_layers_that_gain_nothing_from_integers_read_floats():
    """A pass of its own would quantise the first; what it writes, it measures for the second."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64)).requires_grad_(False)
    x = torch.randn(5, 64)
    exact = model(x)
    actual, records = run(model, x, weights="int8")
    torch._dynamo.reset()
    integers, _ = run(model, x, weights="int8", activations="int8")
    assert (actual - exact).norm() < (integers - exact).norm()
    layers = records[0].trace.layers
    read = {layer.shape: layer.weight_only for layer in layers}
    assert read[96, 64] and not read[64, 96]
    kernels = [k["notes"] for k in records[0].executable.report["kernels"]]
    assert [k["route"] for k in kernels] == ["as it is", "quantised in the load"]
    assert "read in float32: " in str(zoomc.Report(records))
    torch._dynamo.reset()
    on_cpu = torch.compile(model, backend="zoomc", options={"target": "cpu"})
    with torch.no_grad(), collect() as records:
        on_cpu(x)
    assert not any(layer.weight_only for layer in records[0].trace.layers)


def test_static_scales():
    """Of the first call's values, beyond which later ones are clamped."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(5, 512)
    model = nn.Sequential(first, nn.GroupNorm(4, 32), nn.SiLU(), last).requires_grad_(False)
    x = inputs()[0]
    options = {"weights": "int8", "activations": "int8", "scales": "static", "validate": True}
    with torch.no_grad(), collect() as records:
        compiled = torch.compile(model, backend="zoomc", options=TARGET | options)
        errors = [(compiled(y) - model(y)).norm() / model(y).norm() for y in (x, 3 * x)]
    assert errors[0] < 3e-2 < 1e-1 < errors[1]
    layers = [x for x in records[0].trace.layers if x.encoding == "int8"]
    assert len(layers) == 2 and all(layer.bounds is not None for layer in layers)
    assert all(row["error"] < 5e-3 for row in records[0].validation)


@pytest.mark.parametrize("asked", ["int8", "bf16"])
def test_attention_that_multiplies_less_exactly(asked):
    """Named in the report, and off by what its bits explain."""
    model, args = Block(), inputs(1)
    exact = model(*args)
    actual, records = run(model, *args, attention=asked)
    kernels = [k["notes"] for k in records[0].executable.report["kernels"]]
    assert [k["arithmetic"] for k in kernels if "arithmetic" in k] == [asked]
    assert f"        1  {asked}" in str(zoomc.Report(records)).splitlines()
    error = (actual - exact).norm() / exact.norm()
    assert 1e-6 < error < 2e-2


def test_changed_inputs_shapes_and_weights():
    model = Block()
    with torch.no_grad(), collect() as records:
        compiled = torch.compile(model, backend="zoomc", options=TARGET, dynamic=False)
        for batch, seed in ((1, 0), (1, 1), (2, 2), (1, 3)):
            args = inputs(batch, seed=seed)
            torch.testing.assert_close(compiled(*args), model(*args), rtol=1e-4, atol=1e-4)
        assert len(records) == 2
        model.conv.weight.mul_(-2)
        args = inputs(1)
        torch.testing.assert_close(compiled(*args), model(*args), rtol=1e-4, atol=1e-4)
        assert len(records) == 2


def test_results_are_the_callers_own():
    model = Block()
    with torch.no_grad():
        compiled = torch.compile(model, backend="zoomc", options=TARGET)
        args = inputs(1)
        first = compiled(*args)
        kept = first.clone()
        compiled(*inputs(1, seed=9))
        assert torch.equal(first, kept)


def test_looking_inside():
    _, records = run(Block(), *inputs(1), validate=True, debug=2)
    rows = records[0].validation
    assert rows and all(row["error"] < 1e-5 and row["finite"] for row in rows)
    assert set(records[0].profile.kernels) == {
        k["symbol"] for k in records[0].executable.report["kernels"]
    }
    assert "conv2d_3x3" in str(zoomc.explain(Block(), *inputs(1), options=TARGET))


def test_fallback_error_names_the_node():
    with pytest.raises(Exception, match="cannot run on triton") as caught:
        run(Block(), *inputs(1), fallback="error")
    chain = [caught.value, caught.value.__cause__, getattr(caught.value, "inner_exception", None)]
    assert any(isinstance(error, FallbackError) for error in chain)


def test_tuning_keeps_the_fastest_that_agrees(tmp_path):
    gpu = dataclasses.replace(GPUS["sm_90"], permutes=False)
    x, w = torch.randn(130, 64), torch.randn(96, 64)
    choices = candidates(bind("zoomc::linear", x, w), gpu)[:3]
    wrong = choices[1].launches[0]
    broken = dataclasses.replace(
        choices[1],
        launches=(dataclasses.replace(wrong, arguments=dict(wrong.arguments) | {"steps0": 1}),),
    )
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(name) for name in ("x", "w")]
    node = graph.call_function(torch.ops.zoomc.linear.default, tuple(inputs))
    for each, value in zip((*inputs, node), (x, w, torch.empty(130, 96)), strict=True):
        each.meta["val"] = value.to("meta")
    seconds = iter([3.0] * 5 + [1.0] * 5)

    def tensors(kernel):
        made = {"x": x, "w": w, "out": torch.empty(130, 96)}
        return {name: made[name] for name in kernel.specs if name in made}

    def plan():
        return Plan(set(), {node: [choices[0], broken, choices[2]]})

    tuned, path = plan(), tmp_path / "store.jsonl"
    assert tune(tuned, gpu, Store(path), tensors, lambda go: next(seconds)) == 1
    assert tuned.kernels[node][0] is choices[2] and broken in tuned.kernels[node]
    # Another process finds it in the file, and has nothing left to measure.
    later = plan()
    assert tune(later, gpu, Store(path), tensors, lambda go: next(seconds)) == 1
    assert later.kernels[node][0] is choices[2]
    assert recall(plan(), gpu, Store(path)) == 1 and recall(plan(), gpu, Store()) == 0
    other = dataclasses.replace(gpu, name="sm_100")
    assert recall(plan(), other, Store(path)) == 0
