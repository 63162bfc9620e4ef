"""The whole pipeline with the options a user gets who gives none."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
from PIL import Image

from zoomc.demo import random_pipeline
from zoomc.record import collect
from zoomc.report import Report
from zoomc.zoom import InfiniteZoom


def keyframes(folder):
    files = sorted(folder.glob("*.png"))
    return np.stack([np.asarray(Image.open(file), np.float64) for file in files])


@pytest.fixture(scope="module")
def pipeline():
    """Of one level: every kernel that is compiled takes its time."""
    return random_pipeline(channels=(32,), vae_channels=(8, 16), size=32)


def test_a_compiled_zoom_with_no_options(pipeline, picture, quick, tmp_path, monkeypatch):
    monkeypatch.delenv("ZOOMC_WEIGHTS")
    InfiniteZoom(copy.deepcopy(pipeline), compile=False)(picture, "a", tmp_path / "a.mp4", quick)
    with collect() as records:
        zoom = InfiniteZoom(copy.deepcopy(pipeline))
        zoom(picture, "a", tmp_path / "b.mp4", quick)
    wanted, got = keyframes(tmp_path / "a.keyframes"), keyframes(tmp_path / "b.keyframes")
    assert len(got) == quick.keyframes + 1
    assert np.array_equal(got[0], wanted[0])
    # Another noise changes these pictures by much more than 4-bit weights do.
    other = dataclasses.replace(quick, seed=1)
    InfiniteZoom(copy.deepcopy(pipeline), compile=False)(picture, "a", tmp_path / "c.mp4", other)
    changed = np.abs(got - wanted)[1:].mean()
    assert 0 < changed < np.abs(keyframes(tmp_path / "c.keyframes") - wanted)[1:].mean() / 3

    graphs = Report(records).to_dict()["graphs"]
    assert len(graphs) == 4 and not any(graph["fallbacks"] for graph in graphs)
    encodings = [{layer["encoding"] for layer in graph["layers"]} for graph in graphs]
    # What runs once a picture keeps its weights.
    assert sorted(encodings, key=len) == [set(), set(), set(), {"int4", "int8"}]
