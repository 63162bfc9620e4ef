"""Loading says what is wrong; schedulers and compiling work on any pipeline."""

from __future__ import annotations

import json

import pytest
import torch

from zoomc.demo import SETTINGS, demo_pipeline, is_trained, random_pipeline
from zoomc.zoom import InfiniteZoom, ZoomSettings
from zoomc.zoom import pipeline as pipelines
from zoomc.zoom.errors import ModelKindError, ModelNotFoundError, SettingsError


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "small model"
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_loads_with_every_model_in_the_dtype(pipeline, saved, dtype):
    loaded = pipelines.load_pipeline(saved, dtype)
    for part in ("unet", "vae", "text_encoder"):
        for name, weight in getattr(loaded, part).state_dict().items():
            if weight.is_floating_point():
                assert weight.dtype == dtype, name
    if dtype == torch.float32:
        assert pipelines.fingerprint(loaded) == pipelines.fingerprint(pipeline)
    assert loaded.tokenizer("a fish")["input_ids"] == pipeline.tokenizer("a fish")["input_ids"]


def test_half_size_files_are_enough(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, variant="fp16")
    loaded = pipelines.load_pipeline(tmp_path)
    assert pipelines.fingerprint(loaded) == pipelines.fingerprint(pipeline)


def test_the_fingerprint_sees_weights(pipeline):
    other = random_pipeline(channels=(32, 64), vae_channels=(8, 16, 16), size=32, seed=1)
    same = random_pipeline(channels=(32, 64), vae_channels=(8, 16, 16), size=32, seed=0)
    assert pipelines.fingerprint(other) != pipelines.fingerprint(pipeline)
    assert pipelines.fingerprint(same) == pipelines.fingerprint(pipeline)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("stabilityai/stable-diffusion-2-inpainting", ["removed", pipelines.SOURCE, "hf download"]),
        ("some/other-model", ["cache", "hf download some/other-model"]),
        ("./no/such/folder", ["no folder", pipelines.SOURCE]),
        ("nothing", ["no folder"]),
        ("a b/c?d", ["hub"]),
    ],
)
def test_what_is_not_there_says_how_to_get_it(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError) as caught:
        pipelines.load_pipeline(source)
    for word in words:
        assert word in str(caught.value)


def test_folders_and_files_that_are_no_pipeline(saved, tmp_path):
    with pytest.raises(ModelNotFoundError, match="model_index"):
        pipelines.load_pipeline(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="one file"):
        pipelines.load_pipeline(tmp_path / "model.safetensors")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ModelKindError, match="FluxPipeline"):
        pipelines.load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text((saved / "model_index.json").read_text())
    with pytest.raises(ModelNotFoundError, match="incomplete"):
        pipelines.load_pipeline(tmp_path)
    with pytest.raises(ModelKindError, match="not a str"):
        pipelines.check_pipeline("pipeline")


@pytest.mark.parametrize("name", ["ddim", "DPM++", "euler", "EulerDiscreteScheduler"])
def test_schedulers_keep_the_prediction_type(name):
    pipeline = random_pipeline(channels=(32, 64), vae_channels=(8, 16, 16), size=32)
    pipelines.set_scheduler(pipeline, name)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.beta_end == 0.012


def test_unknown_schedulers(pipeline):
    with pytest.raises(SettingsError, match="did you mean 'unipc'"):
        pipelines.set_scheduler(pipeline, "unpic")
    with pytest.raises(SettingsError, match="does not fit"):
        pipelines.set_scheduler(pipeline, "FlowMatchEulerDiscreteScheduler")


def test_the_grid(pipeline):
    grid = pipelines.grid_of(pipeline)
    assert (grid.cell, grid.unit, grid.native) == (4, 8, 32)


@pytest.mark.parametrize("part", pipelines.PARTS)
def test_example_inputs_run(pipeline, part):
    model, inputs = pipelines.example_inputs(pipeline, part)
    with torch.no_grad():
        model(*inputs)


def test_the_built_in_pipeline_runs():
    pipeline = demo_pipeline()
    pipelines.check_pipeline(pipeline)
    assert pipelines.grid_of(pipeline).native == 64
    assert is_trained() or pipeline.scheduler.config.prediction_type == "v_prediction"


def test_a_zoom_takes_the_settings_that_suit_its_pipeline(pipeline):
    built_in = InfiniteZoom(compile=False)
    assert built_in.settings == SETTINGS != ZoomSettings()
    assert built_in.geometry((100, 100), built_in.settings).ratio == SETTINGS.shrink
    assert InfiniteZoom(pipeline, compile=False).settings == ZoomSettings()


def test_random_weights_leave_the_random_state_alone():
    before = torch.get_rng_state()
    random_pipeline(channels=(32, 64), vae_channels=(8, 16, 16), size=32)
    assert torch.equal(torch.get_rng_state(), before)
