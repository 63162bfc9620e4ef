"""The contact sheet: one picture of all keyframes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import OutputError
from .store import beside
from .video import check_folder

#: Shorter side in pixels that every keyframe is scaled to.
SIDE = 192

_GAP, _COLUMNS, _GROUND = 4, 6, (255, 255, 255)


def sheet_path(output: Path, sheet: str | os.PathLike[str] | bool) -> Path | None:
    """Where the contact sheet of a zoom is written.

    Args:
        output: the video's.
        sheet: a PNG file; True for ``<output without ending>.keyframes.png``, a name that no
            picture the zoom may come from has; False for no sheet, which is None.

    Raises:
        OutputError: for a name that is no PNG file's, or a place that is taken or not writable.
    """
    if isinstance(sheet, bool):
        if not sheet:
            return None
        path = beside(output, ".keyframes.png")
    else:
        path = Path(sheet)
    if path.suffix.lower() != ".png":
        raise OutputError(f"the contact sheet is a PNG file; {str(path)!r} does not end in .png")
    if path.is_dir():
        raise OutputError(f"{str(path)!r} is a folder; choose another name for the contact sheet")
    check_folder(path.parent)
    return path


def write_sheet(keyframes: Iterable[np.ndarray], count: int, path: Path) -> None:
    """Lay keyframes out in rows, holding one at a time; the file appears when it is complete.

    Args:
        keyframes: ``count`` of them, each (H, W, 3) uint8, all of one size.
        count: at least 1.
        path: of the PNG file.

    Raises:
        OutputError: where writing fails.
    """
    rows = math.ceil(count / max(_COLUMNS, math.isqrt(count)))
    columns = math.ceil(count / rows)
    sheet: Image.Image | None = None
    for index, keyframe in enumerate(keyframes):
        height, width = keyframe.shape[:2]
        scale = SIDE / min(width, height)
        cell = (round(width * scale), round(height * scale))
        pitch_x, pitch_y = cell[0] + _GAP, cell[1] + _GAP
        if sheet is None:
            sheet = Image.new("RGB", (columns * pitch_x - _GAP, rows * pitch_y - _GAP), _GROUND)
        picture = Image.fromarray(keyframe).resize(cell, Image.Resampling.BICUBIC)
        sheet.paste(picture, (index % columns * pitch_x, index // columns * pitch_y))
    assert sheet is not None
    part = path.with_name(f".{path.name}.part")
    try:
        sheet.save(part, format="PNG", optimize=True)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {str(path)!r}: {error}") from error
