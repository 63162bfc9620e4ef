"""A tiny untrained pipeline and a zoom on it, shared by the tests."""

from __future__ import annotations

import numpy as np
import pytest

from zoomc.demo import random_pipeline
from zoomc.zoom import InfiniteZoom, ZoomSettings


@pytest.fixture(scope="session")
def pipeline():
    return random_pipeline(channels=(32, 64), vae_channels=(8, 16, 16), size=32)


@pytest.fixture(scope="session")
def zoom(pipeline):
    return InfiniteZoom(pipeline, compile=False)


@pytest.fixture
def quick():
    """Settings that paint two keyframes in a fraction of a second."""
    return ZoomSettings(
        keyframes=2, frames_per_keyframe=3, shrink=0.5, steps=2, guidance=2.0, upscale=1
    )


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
