"""Writing frames as they come: mp4, gif, webp, or a folder of PNG files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from .errors import OutputError

#: Container and codecs, best first, for each ending. No ending: a folder of PNG files.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    ".mp4": ("mp4", ("libx264", "libopenh264", "mpeg4")),
    ".mov": ("mov", ("libx264", "libopenh264", "mpeg4")),
    ".mkv": ("matroska", ("libx264", "libopenh264", "mpeg4")),
    ".gif": ("gif", ("gif",)),
    ".webp": ("webp", ("libwebp_anim",)),
}

_BT709 = 1  # the code of ITU-R BT.709 for matrix, primaries and transfer alike
_LIMITED_RANGE = 1


def check_output(output: Path) -> None:
    """Refuse, before hours of work, an output that could not be written.

    Raises:
        OutputError: for an unknown ending, or a place that is taken or not writable.
    """
    ending = output.suffix.lower()
    if ending and ending not in FORMATS:
        raise OutputError(
            f"cannot write {ending} files; use one of {', '.join(FORMATS)}, or a name without an "
            "ending for a folder of PNG files"
        )
    if ending and output.is_dir():
        raise OutputError(f"{str(output)!r} is a folder; remove it or choose another name")
    if not ending and output.exists() and not output.is_dir():
        raise OutputError(f"{str(output)!r} is a file; choose another name for the folder")
    check_folder(output.parent)


def check_folder(folder: Path) -> None:
    """Make a folder if it is missing.

    Raises:
        OutputError: where it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {str(folder)!r}: {error}") from None
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {str(folder)!r} may not be written to")


def write_video(frames: Iterable[np.ndarray], output: Path, fps: float) -> int:
    """Write frames, holding one at a time; the output appears when it is complete.

    Args:
        frames: each (H, W, 3) uint8, all of one size.
        output: its ending chooses the format, see :data:`FORMATS`.
        fps: frames a second. GIF counts hundredths of a second, so it is met on average there.

    Returns:
        How many frames were written.

    Raises:
        OutputError: where writing fails.
    """
    check_output(output)
    part = output.with_name(f".{output.name}.part")
    _remove(part)
    try:
        if output.suffix:
            count = _encode(frames, part, output.suffix.lower(), fps)
        else:
            count = _pictures(frames, part)
            _remove_frames(output)
        os.replace(part, output)
    except (OSError, av.FFmpegError) as error:
        raise OutputError(f"cannot write {str(output)!r}: {error}") from error
    finally:
        _remove(part)
    return count


def _pictures(frames: Iterable[np.ndarray], folder: Path) -> int:
    folder.mkdir()
    count = 0
    for frame in frames:
        Image.fromarray(frame).save(folder / f"{count:05d}.png", compress_level=4)
        count += 1
    return count


def _remove_frames(folder: Path) -> None:
    """Make room for new frames; anything but frames in the folder stops it."""
    if not folder.exists():
        return
    for file in folder.glob("[0-9][0-9][0-9][0-9][0-9].png"):
        file.unlink()
    try:
        folder.rmdir()
    except OSError:
        raise OutputError(
            f"{str(folder)!r} holds files that are no frames of a zoom; choose another folder"
        ) from None


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _encode(frames: Iterable[np.ndarray], file: Path, ending: str, fps: float) -> int:
    container_name, codecs = FORMATS[ending]
    codec = next((name for name in codecs if name in av.codecs_available), None)
    if codec is None:
        raise OutputError(
            f"this build of PyAV cannot write {ending} files (it lacks {' and '.join(codecs)}); "
            "install PyAV from PyPI, or write a folder of PNG files"
        )
    rate = Fraction(fps).limit_denominator(1000)
    options = {"fflags": "+bitexact"}  # no random identifiers: same frames, same file
    if ending in (".gif", ".webp"):
        options["loop"] = "0"
    count = 0
    with av.open(str(file), "w", format=container_name, options=options) as container:
        stream: Any = None
        palette: av.filter.Graph | None = None
        for frame in frames:
            picture = frame if codec in ("gif", "libwebp_anim") else _even(frame)
            if stream is None:
                stream = _stream(container, codec, rate, picture)
                palette = _palette_graph(picture, rate) if codec == "gif" else None
            raw: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            raw.pts, raw.time_base = count, 1 / rate
            if palette is not None:
                palette.push(raw)
                raw = palette.pull()
            elif codec != "libwebp_anim":  # which converts in its own way
                raw = raw.reformat(format="yuv420p", dst_colorspace="ITU709")
                raw.pts, raw.time_base = count, 1 / rate
            container.mux(stream.encode(raw))
            count += 1
        if stream is not None:
            container.mux(stream.encode())
    return count


def _stream(container: Any, codec: str, rate: Fraction, picture: np.ndarray) -> Any:
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = picture.shape[:2]
    context = stream.codec_context
    if codec == "gif":
        stream.pix_fmt = "pal8"
    elif codec == "libwebp_anim":
        stream.pix_fmt = "bgra"
        stream.options = {"quality": "90"}
    else:
        stream.pix_fmt = "yuv420p"  # what every player and browser shows
        # Without these marks a player guesses the matrix from the size, and colours shift.
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        if codec == "libx264":
            # x264's macroblock tree makes two files of the same frames (seen at 40x40 in one run of
            # 30, single-threaded too; never without it): same seed, same video.
            stream.options = {"crf": "17", "preset": "medium", "mbtree": "0"}
        else:
            stream.bit_rate = max(1_000_000, int(picture.shape[0] * picture.shape[1] * rate / 2))
    return stream


def _palette_graph(picture: np.ndarray, rate: Fraction) -> av.filter.Graph:
    """Each frame with a palette of its own: GIF allows it, and one palette for all would band."""
    graph = av.filter.Graph()
    height, width = picture.shape[:2]
    source = graph.add_buffer(
        width=width,
        height=height,
        format=av.VideoFormat("rgb24", width, height),
        time_base=1 / rate,
    )
    split = graph.add("split")
    make = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(make, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _even(frame: np.ndarray) -> np.ndarray:
    """Repeat the last row or column where a side is odd: 4:2:0 colour needs pairs."""
    bottom, right = frame.shape[0] % 2, frame.shape[1] % 2
    return (
        np.pad(frame, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else frame
    )
