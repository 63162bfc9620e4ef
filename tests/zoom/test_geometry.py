"""The window is centred, on the latent grid, and of the frame's own shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomc.zoom.errors import SettingsError
from zoomc.zoom.geometry import Grid, plan

SD = Grid(cell=8, unit=64, native=512)
SMALL = Grid(cell=4, unit=16, native=64)

grids = st.sampled_from([SD, SMALL, Grid(cell=8, unit=32, native=768), Grid(1, 2, 32)])
shrinks = st.floats(0.05, 0.98)


def check(geometry, grid):
    left, top, right, bottom = geometry.window
    assert left > 0 and top > 0 and right > left and bottom > top
    assert left == geometry.width - right and top == geometry.height - bottom
    assert not any(edge % grid.cell for edge in (*geometry.window, geometry.width, geometry.height))
    # Equal ratios, as integers: a difference of one part in a million would add up.
    assert (right - left) * geometry.height == (bottom - top) * geometry.width


@given(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), shrinks, grids)
def test_any_picture_gets_a_frame(size, shrink, grid):
    geometry = plan(size, None, shrink, grid)
    check(geometry, grid)
    assert min(geometry.width, geometry.height) == grid.native
    assert (geometry.width - geometry.height) * (size[0] - size[1]) >= 0
    assert max(geometry.width, geometry.height) <= 2 * grid.native


@given(st.integers(1, 40), st.integers(1, 40), shrinks, grids)
def test_any_given_size_gets_a_window_or_a_way_out(columns, rows, shrink, grid):
    size = (columns * grid.cell, rows * grid.cell)
    try:
        geometry = plan((100, 100), size, shrink, grid)
    except SettingsError as error:
        suggestion = str(error).split(" grid; ")[1].split(" ")[0]
        width, height = map(int, suggestion.split("x"))
        geometry = plan((100, 100), (width, height), shrink, grid)
    check(geometry, grid)


@pytest.mark.parametrize("shrink", [0.75, 0.5, 0.875, 0.25])
def test_a_square_frame_meets_common_ratios_exactly(shrink):
    assert plan((640, 640), None, shrink, SD).ratio == shrink


def test_the_default_ratio_is_met_for_photos_of_common_shapes():
    for size in [(4000, 3000), (3000, 4000), (3000, 2000), (1920, 1080), (1080, 1920)]:
        for grid in (SD, SMALL):
            geometry = plan(size, None, 0.75, grid)
            assert geometry.ratio == 0.75
            cropped = (geometry.width / geometry.height) / (size[0] / size[1])
            assert 0.85 < cropped < 1.15


def test_the_nearest_possible_ratio_is_taken():
    geometry = plan((1, 1), (640, 360), 0.9, SD)  # 80 x 45 cells, in common 5: only 0.6 and 0.2
    assert geometry.ratio == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((500, 512), ["width 500", "8 pixels", "496"]),
        ((512, 3), ["height 3", "nearest is 8"]),
        (517, ["517", "520"]),
        (0, ["size 0", "8"]),
        ((520, 512), ["520x512", "512x512"]),
        ((8, 8), ["8x8"]),
    ],
)
def test_impossible_sizes_say_what_is_possible(size, words):
    with pytest.raises(SettingsError) as caught:
        plan((1, 1), size, 0.75, SD)
    for word in words:
        assert word in str(caught.value)
