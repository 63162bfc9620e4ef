"""The whole zoom, on a tiny untrained pipeline."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from zoomc.demo import random_pipeline
from zoomc.zoom import InfiniteZoom, compose
from zoomc.zoom.errors import ModelOutputError, ResumeError, SettingsError
from zoomc.zoom.pipeline import compile_pipeline
from zoomc.zoom.progress import Reporter


def keyframes(folder):
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]


class Recorder(Reporter):
    """Remembers what it was told, and interrupts where asked."""

    def __init__(self, stop_at=None):
        self.notes, self.steps, self.written, self.stop_at = [], [], 0, stop_at

    def note(self, text):
        self.notes.append(text)

    def step(self, keyframe, done, total):
        self.steps.append((keyframe, done, total))
        if (keyframe, done) == self.stop_at:
            raise KeyboardInterrupt

    def frame(self):
        self.written += 1


@pytest.fixture
def told(zoom):
    """The shared zoom with a reporter that remembers."""
    zoom.reporter = Recorder()
    yield zoom.reporter
    zoom.reporter = Reporter()


@pytest.mark.parametrize("feather", [0, 3])
def test_the_picture_stays_in_the_middle(zoom, picture, quick, tmp_path, feather):
    output = zoom(picture, "a", tmp_path / "frames", quick, feather=feather)
    frames = keyframes(output)
    kept = keyframes(tmp_path / "frames.keyframes")
    assert len(frames) == 7 and len(kept) == 3
    settings = dataclasses.replace(quick, feather=feather)
    geometry = zoom.geometry((40, 40), settings)
    for index, keyframe in enumerate(kept):
        assert np.array_equal(frames[3 * index], keyframe)
    left, top, right, bottom = geometry.window
    deep = np.s_[top + feather : bottom - feather, left + feather : right - feather]
    for inner, outer in itertools.pairwise(kept):
        known, mask = compose.canvas(inner, geometry)
        assert np.array_equal(outer[deep], known[deep])
        assert outer[mask == 255].std() > 1  # something was painted


def test_same_seed_same_video(pipeline, picture, quick, tmp_path):
    first = InfiniteZoom(pipeline, compile=False)(picture, "a", tmp_path / "a.mp4", quick)
    torch.manual_seed(99)  # torch's own random state must not matter
    again = InfiniteZoom(pipeline, compile=False)(picture, "a", tmp_path / "b.mp4", quick)
    assert first.read_bytes() == again.read_bytes()
    other = InfiniteZoom(pipeline, compile=False)(picture, "a", tmp_path / "c.mp4", quick, seed=1)
    assert first.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("scheduler", ["pndm", "dpm++", "euler-a", "heun"])
def test_an_interrupt_changes_nothing(picture, quick, tmp_path, scheduler):
    """Schedulers keep state and draw noise: neither may depend on where a run began."""
    settings = dataclasses.replace(quick, keyframes=3)
    pipeline = random_pipeline(channels=(32, 64), vae_channels=(8, 16, 16), size=32)
    zoom = InfiniteZoom(pipeline, compile=False, scheduler=scheduler)
    whole = zoom(picture, ["a", "b", "c"], tmp_path / "whole.mp4", settings)
    zoom.reporter = Recorder(stop_at=(2, 1))
    with pytest.raises(KeyboardInterrupt):
        zoom(picture, ["a", "b", "c"], tmp_path / "cut.mp4", settings)
    assert not (tmp_path / "cut.mp4").exists()
    assert len(keyframes(tmp_path / "cut.keyframes")) == 2
    zoom.reporter = Recorder()
    resumed = zoom(picture, ["a", "b", "c"], tmp_path / "cut.mp4", settings)
    assert "1 of 3 keyframes" in " ".join(zoom.reporter.notes)
    assert {keyframe for keyframe, *_ in zoom.reporter.steps} == {2, 3}
    assert resumed.read_bytes() == whole.read_bytes()


def test_kept_keyframes_serve_other_videos(zoom, told, picture, quick, tmp_path):
    zoom(picture, "a", tmp_path / "z.mp4", quick)
    told.steps.clear()
    for changes in (
        {"direction": "in"},
        {"fps": 30},
        {"frames_per_keyframe": 2},
        {"keyframes": 1},
        {"upscale": 2},
    ):
        zoom(picture, "a", tmp_path / "z.gif", quick, **changes)
    assert not told.steps
    zoom(picture, "a", tmp_path / "z.webp", quick, keyframes=3)
    assert {keyframe for keyframe, *_ in told.steps} == {3}


def test_a_misspelt_setting_is_told(zoom, picture, tmp_path):
    with pytest.raises(SettingsError, match="'keyframe'; did you mean 'keyframes'"):
        zoom(picture, "a", tmp_path / "z.gif", keyframe=3)


@pytest.mark.parametrize(
    "change", [{"steps": 3}, {"seed": 5}, {"feather": 1}, {"guidance": 1.0}, {"shrink": 0.75}]
)
def test_other_settings_do_not_mix(zoom, picture, quick, tmp_path, change):
    zoom(picture, "a", tmp_path / "z.mp4", dataclasses.replace(quick, keyframes=1))
    with pytest.raises(ResumeError):
        zoom(picture, "a", tmp_path / "z.mp4", dataclasses.replace(quick, keyframes=1, **change))
    with pytest.raises(ResumeError, match="picture was"):
        zoom(255 - picture, "a", tmp_path / "z.mp4", quick)
    with pytest.raises(ResumeError, match="prompt of keyframe 1"):
        zoom(picture, "b", tmp_path / "z.mp4", quick)


def test_every_mode_of_picture_is_taken(zoom, quick, tmp_path):
    once = dataclasses.replace(quick, keyframes=1, steps=1, frames_per_keyframe=1)
    grey = Image.linear_gradient("L").resize((50, 30))
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        image = grey.convert("I").convert(mode) if mode == "I;16" else grey.convert(mode)
        output = zoom(image, "a", tmp_path / f"{mode.replace(';', '')}x", once)
        assert [frame.shape for frame in keyframes(output)] == [(32, 48, 3)] * 2


def test_sizes_and_notes(zoom, told, picture, quick, tmp_path):
    once = dataclasses.replace(quick, keyframes=1, frames_per_keyframe=1)
    output = zoom(picture, "a", tmp_path / "a", once, size=(48, 32), shrink=0.9)
    assert keyframes(output)[1].shape == (32, 48, 3)
    assert any("shrink 0.9 becomes 0.5" in note for note in told.notes)


def test_progress_covers_all_work(zoom, told, picture, quick, tmp_path):
    zoom(picture, "a", tmp_path / "z.mp4", quick)
    assert told.written == quick.frame_count
    assert [s for s in told.steps if s[1] == s[2]] == [(1, 2, 2), (2, 2, 2)]
    assert told.steps == sorted(told.steps)


def test_not_a_number_is_an_error(picture, quick, tmp_path):
    pipeline = random_pipeline(channels=(32, 64), vae_channels=(8, 16, 16), size=32)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.fill_(float("nan"))
    with pytest.raises(ModelOutputError, match="not-a-number"):
        InfiniteZoom(pipeline, compile=False)(picture, "a", tmp_path / "z.mp4", quick)
    assert not (tmp_path / "z.mp4").exists()


def test_compiling_takes_each_model_as_one_graph(picture, quick, tmp_path):
    graphs = []

    def backend(module, inputs, options=None):
        graphs.append((len(module.graph.nodes), options))
        return module.forward

    torch._dynamo.reset()
    plain = random_pipeline(channels=(32, 64), vae_channels=(8, 16, 16), size=32)
    wanted = InfiniteZoom(plain, compile=False)(picture, "a", tmp_path / "a", quick)
    keys = list(plain.unet.state_dict())
    compile_pipeline(plain, {"threads": 1}, backend=backend)
    got = InfiniteZoom(plain, compile=False)(picture, "a", tmp_path / "b", quick)
    # Dynamo's graph may add in another order than the model's own code.
    for a, b in zip(keyframes(got), keyframes(wanted), strict=True):
        np.testing.assert_allclose(a.astype(int), b.astype(int), atol=2)
    # What runs once a picture keeps its weights unless told otherwise.
    once = {"weights": "keep", "threads": 1}
    assert sorted((options for _, options in graphs), key=len) == [{"threads": 1}, *[once] * 3]
    assert list(plain.unet.state_dict()) == keys
