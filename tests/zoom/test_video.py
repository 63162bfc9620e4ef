"""What is written decodes back: count, size, colours, speed."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from zoomc.zoom.errors import OutputError
from zoomc.zoom.video import check_output, write_video


def colours(count, size=(48, 64)):
    """Flat frames, each of another colour."""
    for index in range(count):
        frame = np.zeros((*size, 3), np.uint8)
        frame[:] = (40 + 20 * index, 200 - 15 * index, 90)
        yield frame


def decode(path):
    if path.suffix.lower() in (".mp4", ".mov", ".mkv"):
        with av.open(str(path)) as container:
            return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    if path.is_dir():
        return [np.asarray(Image.open(file)) for file in sorted(path.glob("*.png"))]
    with Image.open(path) as image:
        frames = []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
        return frames


NAMES = ["a.mp4", "a.MP4", "a.mov", "a.mkv", "a.gif", "a.webp", "frames"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(48, 64), (45, 33)])
def test_what_is_written_reads_back(tmp_path, name, size):
    path = tmp_path / "deep" / "er" / name
    assert write_video(colours(7, size), path, 10) == 7
    got = decode(path)
    assert len(got) == 7
    expected_size = size if name in ("a.gif", "a.webp", "frames") else (48, 64)
    if size == (45, 33) and expected_size != size:
        expected_size = (46, 34)  # 4:2:0 colour needs even sides
    for frame, wanted in zip(got, colours(7, size)):
        assert frame.shape[:2] == expected_size
        tolerance = 0 if name == "frames" else 5
        assert np.abs(frame[10, 10].astype(int) - wanted[10, 10]).max() <= tolerance
    assert os.listdir(path.parent) == [name]  # nothing half-written is left beside it


@pytest.mark.parametrize(("fps", "expected"), [(15, 15), (29.97, 29.97), (0.5, 0.5)])
def test_speed_and_colour_marks(tmp_path, fps, expected):
    write_video(colours(6), tmp_path / "a.mp4", fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(expected, rel=1e-3)
        assert stream.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == 1  # BT.709
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert np.diff(times) == pytest.approx(1 / expected, rel=1e-2)


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animations_loop_at_their_speed(tmp_path, name):
    write_video(colours(5), tmp_path / name, 10)
    with Image.open(tmp_path / name) as image:
        assert image.info.get("loop") == 0
        durations = []
        for index in range(image.n_frames - 1):
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
    assert durations == [100] * 4


@pytest.mark.parametrize("name", NAMES)
def test_same_frames_same_file(tmp_path, name):
    contents = []
    for _ in range(2):
        write_video(colours(4), tmp_path / name, 12)
        files = sorted((tmp_path / name).glob("*")) or [tmp_path / name]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", ["a.mp4", "frames"])
def test_a_failure_leaves_the_old_video(tmp_path, name):
    write_video(colours(3), tmp_path / name, 10)
    before = len(decode(tmp_path / name))

    def broken():
        yield from colours(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(broken(), tmp_path / name, 10)
    assert len(decode(tmp_path / name)) == before
    assert os.listdir(tmp_path) == [name]


def test_fewer_frames_replace_more(tmp_path):
    write_video(colours(5), tmp_path / "frames", 10)
    write_video(colours(2), tmp_path / "frames", 10)
    assert len(decode(tmp_path / "frames")) == 2


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="no frames"):
        write_video(colours(2), tmp_path / "frames", 10)
    assert (tmp_path / "frames" / "diary.txt").read_text() == "mine"


def test_outputs_that_cannot_be(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    for name, words in (
        ("a.avi", r"\.avi"),
        ("folder.mp4", "is a folder"),
        ("file", "is a file"),
        ("file/a.mp4", "cannot make the folder"),
    ):
        with pytest.raises(OutputError, match=words):
            check_output(tmp_path / Path(name))
