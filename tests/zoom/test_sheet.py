"""The contact sheet shows every keyframe, in the video's order, and overwrites nothing else."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from zoomc.zoom.errors import OutputError
from zoomc.zoom.sheet import SIDE, sheet_path, write_sheet


def flat(count, size=(8, 8)):
    """Keyframes of one colour each."""
    return [np.full((*size, 3), 10 * (i + 1), np.uint8) for i in range(count)]


def cells(path, columns, rows):
    """The colour in the middle of each cell, row by row."""
    sheet = np.asarray(Image.open(path))
    height, width = sheet.shape[0] / rows, sheet.shape[1] / columns
    return [
        int(sheet[int((row + 0.5) * height), int((column + 0.5) * width), 0])
        for row in range(rows)
        for column in range(columns)
    ]


@pytest.mark.parametrize(
    ("count", "columns", "rows"),
    [(1, 1, 1), (2, 2, 1), (6, 6, 1), (7, 4, 2), (9, 5, 2), (13, 5, 3)],
)
def test_every_keyframe_has_its_cell(tmp_path, count, columns, rows):
    write_sheet(iter(flat(count)), count, tmp_path / "s.png")
    empty = columns * rows - count
    assert cells(tmp_path / "s.png", columns, rows) == [
        *(10 * (i + 1) for i in range(count)),
        *[255] * empty,
    ]
    assert os.listdir(tmp_path) == ["s.png"]


@pytest.mark.parametrize(
    ("size", "cell"),
    [
        ((8, 8), (SIDE, SIDE)),
        ((16, 24), (SIDE, SIDE * 3 // 2)),
        ((600, 400), (SIDE * 3 // 2, SIDE)),
    ],
)
def test_the_shorter_side_is_always_the_same(tmp_path, size, cell):
    write_sheet(flat(1, size), 1, tmp_path / "s.png")
    assert np.asarray(Image.open(tmp_path / "s.png")).shape == (*cell, 3)


def test_names(tmp_path):
    video = tmp_path / "photo.mp4"
    assert sheet_path(video, True) == tmp_path / "photo.keyframes.png"
    assert sheet_path(tmp_path / "frames", True) == tmp_path / "frames.keyframes.png"
    assert sheet_path(video, False) is None
    assert sheet_path(video, tmp_path / "new" / "x.PNG") == tmp_path / "new" / "x.PNG"
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.jpg", "a.jpg"), ("a", "PNG"), ("d.png", "folder"), ("f/a.png", "folder")],
)
def test_places_that_cannot_be(tmp_path, name, words):
    (tmp_path / "d.png").mkdir()
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match=words):
        sheet_path(tmp_path / "v.mp4", tmp_path / name)


def test_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OutputError):
        write_sheet(flat(2), 2, tmp_path / "taken.png")
    assert os.listdir(tmp_path) == ["taken.png"]


def test_a_zoom_shows_its_keyframes_in_the_videos_order(zoom, picture, quick, tmp_path):
    for direction in ("out", "in"):
        settings = dataclasses.replace(quick, direction=direction)
        zoom(picture, "a", tmp_path / "z.mp4", settings)
        kept = [Image.open(f) for f in sorted((tmp_path / "z.keyframes").glob("*.png"))]
        if direction == "in":
            kept.reverse()
        sheet = Image.open(tmp_path / "z.keyframes.png")
        pitch = (sheet.width - SIDE) // (len(kept) - 1)
        for index, keyframe in enumerate(kept):
            cell = sheet.crop((index * pitch, 0, index * pitch + SIDE, SIDE))
            want = keyframe.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            assert np.array_equal(np.asarray(cell), np.asarray(want))
    (tmp_path / "z.keyframes.png").unlink()
    zoom(picture, "a", tmp_path / "z.mp4", quick, sheet=False)
    assert not (tmp_path / "z.keyframes.png").exists()
