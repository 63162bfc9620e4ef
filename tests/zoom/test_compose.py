"""Known pixels come back, and the video passes through keyframes without a jump."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoomc.zoom import compose
from zoomc.zoom.geometry import Grid, plan

GRID = Grid(cell=8, unit=16, native=64)


def noise(geometry, seed=0):
    shape = (geometry.height, geometry.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(geometry, seed):
    """Random waves, so that neighbouring frames differ by what moved and nothing else."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : geometry.height * 1j, -1 : 1 : geometry.width * 1j]
    waves = [
        np.sin(a * x + b * y + c)
        for a, b, c in zip(rng.normal(0, 9, 9), rng.normal(0, 9, 9), rng.uniform(0, 6, 9))
    ]
    image = np.stack([sum(waves[i::3]) for i in range(3)], axis=2)
    return (127 + 40 * image).clip(0, 255)


def chain(geometry, feather, count=3, paint=smooth):
    """Keyframes as a zoom makes them, from pictures that a model might paint."""
    keyframes = [paint(geometry, 0).astype(np.uint8)]
    for index in range(1, count + 1):
        known, _ = compose.canvas(keyframes[-1], geometry)
        keyframes.append(compose.composite(known, paint(geometry, index), geometry, feather))
    return keyframes


geometries = st.builds(
    plan,
    st.just((64, 48)),
    st.sampled_from([(64, 64), (64, 128), (96, 64), (80, 80)]),
    st.sampled_from([0.5, 0.75, 0.875]),
    st.just(GRID),
)


@given(geometries)
@settings(max_examples=20, deadline=None)
def test_the_mask_is_the_same_in_latents(geometry):
    known, mask = compose.canvas(noise(geometry), geometry)
    left, top, right, bottom = geometry.window
    assert known.dtype == mask.dtype == np.uint8 and known.shape[:2] == mask.shape
    assert set(np.unique(mask)) == {0, 255}
    assert (mask == 0).sum() == (right - left) * (bottom - top)
    # diffusers takes the first pixel of each cell; every other pixel must agree with it.
    cells = mask[:: GRID.cell, :: GRID.cell]
    assert np.array_equal(np.kron(cells, np.ones((GRID.cell, GRID.cell), np.uint8)), mask)


@given(geometries, st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_known_pixels_come_back_exactly_but_for_the_feather(geometry, feather):
    keyframe = noise(geometry)
    known, mask = compose.canvas(keyframe, geometry)
    painted = noise(geometry, 1).astype(np.float32)
    result = compose.composite(known, painted, geometry, feather)
    left, top, right, bottom = geometry.window
    inside = np.s_[top + feather : bottom - feather, left + feather : right - feather]
    assert np.array_equal(result[inside], known[inside])
    assert np.array_equal(known[top:bottom, left:right], compose.shrink(keyframe, geometry))
    assert np.array_equal(result[mask == 255], painted[mask == 255])
    if feather:  # and the blend lies between the two everywhere
        low = np.minimum(known, painted) - 0.5
        assert (result >= low).all() and (result <= np.maximum(known, painted) + 0.5).all()


@given(geometries, st.integers(0, 4), st.sampled_from([noise, smooth]))
@settings(max_examples=30, deadline=None)
def test_both_ends_equal_the_keyframes(geometry, feather, paint):
    inner, outer = chain(geometry, feather, 1, paint)
    assert np.array_equal(compose.between(inner, outer, 0.0, geometry, feather), inner)
    end = compose.between(inner, outer, 1.0, geometry, feather).astype(int)
    # A tie in rounding may fall the other way where the two are mixed; nothing more.
    assert np.abs(end - outer).max() <= 1
    assert np.mean(end != outer) < 0.01


@pytest.mark.parametrize("feather", [0, 3])
@pytest.mark.parametrize("shrink", [0.5, 0.75])
def test_time_is_continuous_at_both_ends(feather, shrink):
    geometry = plan((1, 1), (128, 128), shrink, GRID)
    inner, outer = chain(geometry, feather, 1)
    for t, keyframe in ((1e-4, inner), (1 - 1e-4, outer)):
        frame = compose.between(inner, outer, t, geometry, feather).astype(int)
        assert np.abs(frame - keyframe).max() <= 2


def spiral(geometry, index, flicker=0):
    """The same world at every scale; with flicker, every picture of it in another brightness."""
    y, x = np.mgrid[0 : geometry.height, 0 : geometry.width] + 0.5
    z = (x - geometry.width / 2) + 1j * (y - geometry.height / 2)
    turns = np.log(np.abs(z)) / np.log(geometry.ratio)
    wave = np.sin(2 * np.pi * turns + np.angle(z))
    return np.repeat((127 + 20 * wave + flicker * (-1) ** index)[..., None], 3, axis=2)


def changes(paint, feather, per=12):
    """Mean change from frame to frame, a row per pair of keyframes; early ones are left out."""
    geometry = plan((1, 1), (192, 128), 0.75, GRID)
    keyframes = chain(geometry, feather, 5, paint)
    video = compose.frames(keyframes.__getitem__, 5, per, geometry, feather)
    pairs = itertools.pairwise(frame.astype(float) for frame in video)
    return np.array([np.abs(b - a).mean() for a, b in pairs]).reshape(-1, per)[2:]


@pytest.mark.parametrize("feather", [0, 3])
def test_the_speed_is_the_same_at_keyframes_and_between(feather):
    """In a self-similar world every two neighbouring frames differ by the same amount."""
    change = changes(spiral, feather)
    usual = np.median(change)
    assert (change < 1.1 * usual).all() and (change > 0.9 * usual).all()


@pytest.mark.parametrize("feather", [0, 3])
def test_no_jump_at_keyframes(feather):
    """Seams that show move inwards and get shorter, so the change falls up to the keyframe."""
    change = changes(functools.partial(spiral, flicker=40), feather)
    assert (np.diff(change, axis=1)[:, -3:] < 0).all()


@given(st.floats(0, 1), st.sampled_from([0.5, 0.75]))
@settings(max_examples=25, deadline=None)
def test_in_between_frames_are_scaled_to_a_fraction_of_a_pixel(t, shrink):
    """A slope through the centre stays one; its steepness says the scale."""
    geometry = plan((1, 1), (128, 128), shrink, GRID)
    position = np.arange(128) + 0.5 - 64
    steep = 0.5

    def slope(factor):
        row = 127 + steep * factor * position
        return np.repeat(np.rint(row)[None, :, None].repeat(128, 0), 3, axis=2).astype(np.uint8)

    inner, outer = slope(1.0), slope(1 / shrink)
    frame = compose.between(inner, outer, t, geometry, 0)[:, 8:-8].astype(float)
    expected = 127 + steep * shrink**-t * position[8:-8]
    assert np.abs(frame - expected[None, :, None]).max() < 1.5
    measured = np.polyfit(position[8:-8], frame[64, :, 0], 1)
    assert measured[0] == pytest.approx(steep * shrink**-t, rel=0.01)
    assert measured[1] == pytest.approx(127, abs=0.2)


@pytest.mark.parametrize(("count", "per"), [(1, 1), (2, 1), (3, 4)])
def test_in_is_out_reversed(count, per):
    geometry = plan((1, 1), (64, 64), 0.5, GRID)
    keyframes = chain(geometry, 2, count)
    out = list(compose.frames(keyframes.__getitem__, count, per, geometry, 2))
    back = list(compose.frames(keyframes.__getitem__, count, per, geometry, 2, direction="in"))
    assert len(out) == len(back) == count * per + 1
    assert all(np.array_equal(a, b) for a, b in zip(out, reversed(back)))
    assert all(np.array_equal(a, b) for a, b in zip(out[::per], keyframes))


def test_frames_are_made_one_at_a_time():
    geometry = plan((1, 1), (64, 64), 0.5, GRID)
    keyframes, loaded = chain(geometry, 0, 3), []

    def load(index):
        loaded.append(index)
        return keyframes[index]

    video = compose.frames(load, 3, 5, geometry, 0)
    next(video)
    assert loaded == [0]
    for _ in range(5):
        next(video)
    assert loaded == [0, 1]


def test_enlarge():
    frame = noise(plan((1, 1), (64, 128), 0.5, GRID))
    assert compose.enlarge(frame, 1) is frame
    assert compose.enlarge(frame, 4).shape == (512, 256, 3)
