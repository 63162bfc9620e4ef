"""Every model class through ``torch.compile``: eager's numbers, and nothing left to eager."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from zoomc.kernels.tir.isa import PATHS, supported
from zoomc.passes import PIPELINE

import zoomc
from tests.models import MODELS
from zoomc.record import collect
from zoomc.report import relative_error

STRICT = {"fallback": "error"}
FP32, BF16 = 1e-5, 3e-2


def error(model: nn.Module, inputs: Any, **options: Any) -> float:
    """Relative error of the compiled model; nothing may fall back, unless options allow it."""
    compiled = torch.compile(model, backend="zoomc", options=STRICT | options)
    return relative_error(compiled(*inputs), model(*inputs))


@pytest.mark.parametrize(
    ("name", "batch"), [*((name, 1) for name in MODELS), ("sd2_unet", 2), ("vae_encoder", 2)]
)
def test_same_numbers_as_eager(name: str, batch: int) -> None:
    assert error(*MODELS[name](batch)) < FP32


@pytest.mark.parametrize("name", MODELS)
def test_bf16_is_close(name: str) -> None:
    model, inputs = MODELS[name](2)
    assert 1e-5 < error(model, inputs, dtype="bf16") < BF16  # not fp32 by mistake


@pytest.mark.parametrize("isa", [path.name for path in PATHS])
@pytest.mark.parametrize("name", ["sd15_unet", "vae_decoder"])
def test_every_instruction_path(name: str, isa: str) -> None:
    if isa not in supported():
        pytest.skip(f"this CPU has no {isa}")
    model, inputs = MODELS[name]()
    assert error(model, inputs, isa=isa) < FP32
    if name == "vae_decoder":
        torch._dynamo.reset()
        assert error(model, inputs, isa=isa, dtype="bf16") < BF16


def test_another_latent_size_and_odd_sizes() -> None:
    model, (sample, *rest) = MODELS["sd2_unet"]()
    compiled = torch.compile(model, backend="zoomc", options=STRICT)
    for height, width in [(16, 16), (24, 16), (10, 14)]:
        sample = torch.randn(1, 9, height, width)
        assert relative_error(compiled(sample, *rest), model(sample, *rest)) < FP32


@pytest.mark.parametrize("name", ["vae_decoder", "sd15_unet"])
def test_odd_sizes(name: str) -> None:
    model, (sample, *rest) = MODELS[name]()
    assert error(model, (torch.randn(1, sample.shape[1], 9, 7), *rest)) < FP32


def test_timesteps_need_no_recompilation() -> None:
    model, (sample, _, context) = MODELS["sd2_unet"]()
    compiled = torch.compile(model, backend="zoomc", options=STRICT)
    with collect() as records:
        for step in (901, 37):
            inputs = sample, torch.tensor(step), context
            assert relative_error(compiled(*inputs), model(*inputs)) < FP32
    assert len(records) == 1


def test_a_diffusers_unet_by_keywords() -> None:
    model, (sample, timestep, context) = MODELS["sd2_unet"]()
    unet = model.unet
    arguments = {"sample": sample, "timestep": timestep, "encoder_hidden_states": context}
    out = torch.compile(unet, backend="zoomc", options=STRICT)(**arguments)
    expected = unet(**arguments)
    assert type(out) is type(expected)
    assert relative_error(out.sample, expected.sample) < FP32


def test_a_transformers_encoder_gives_its_own_output_class() -> None:
    model, (ids,) = MODELS["clip_text"]()
    out = torch.compile(model.encoder, backend="zoomc", options=STRICT)(input_ids=ids)
    expected = model.encoder(input_ids=ids)
    assert type(out) is type(expected)
    assert relative_error(out.last_hidden_state, expected.last_hidden_state) < FP32
    assert relative_error(out.pooler_output, expected.pooler_output) < FP32


def test_kernels_of_the_unet_by_family() -> None:
    """8 resnets of 2 convolutions, 5 with a shortcut, 4 between; 4 transformers of 9 linears."""
    model, inputs = MODELS["sd2_unet"]()
    (graph,) = zoomc.explain(model, *inputs, options=STRICT).to_dict()["graphs"]
    families = Counter(kernel["name"].split("_")[0] for kernel in graph["kernels"])
    heavy = {name: families[name] for name in ("conv2d", "group", "linear", "attention")}
    assert heavy == {"conv2d": 25, "group": 4, "linear": 46, "attention": 8}
    assert families.total() - sum(heavy.values()) <= 12  # the timestep's sines, views, layouts


@pytest.mark.parametrize("fuel", [0, 1, 30, 150])
def test_any_number_of_rewrites_is_right(fuel: int) -> None:
    model, inputs = MODELS["sd2_unet"]()
    with collect() as records:
        assert error(model, inputs, fuel=fuel, fallback="eager") < FP32
    assert records[0].trace.rewrites == fuel


def test_dump_writes_the_graph_after_every_pass(tmp_path) -> None:
    model, inputs = MODELS["clip_text"]()
    assert error(model, inputs, dump=str(tmp_path)) < FP32
    names = sorted(path.name for path in tmp_path.iterdir())
    steps = ["captured", *(step.name for step in PIPELINE)]
    assert names == [f"{i:02d}_{step.replace(' ', '_')}.txt" for i, step in enumerate(steps)]
    assert all("def forward" in path.read_text() for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sd2_unet", "clip_text"])
def test_validate_covers_every_kernel(name: str) -> None:
    model, inputs = MODELS[name]()
    with collect() as records:
        assert error(model, inputs, validate=True) < FP32
    (record,) = records
    rows = record.validation
    assert len(rows) == len(record.executable.report["kernels"])
    assert all(row["finite"] and row["error"] < FP32 for row in rows), rows
    assert all(done.error < FP32 for done in record.trace.passes)
