"""Where the shrunken frame lies: centred, on the latent grid, with the frame's own shape.

All three at once need care. With sides of ``a`` and ``b`` latent cells and ``g = gcd(a, b)``, the
centred windows of the frame's shape whose edges lie between cells are exactly those with sides
``a (1 - 2m/g)`` and ``b (1 - 2m/g)`` for whole ``m``. Anything else would either cut latent cells
(so that pixels meant to be kept are repainted) or stretch the picture a little at every keyframe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import SettingsError

#: Pictures longer than this are cropped to it where the frame's size is chosen from the picture.
MAX_ASPECT = 2.0


@dataclass(frozen=True)
class Geometry:
    """A frame and the centred window that the previous keyframe shrinks to, in pixels.

    Attributes:
        width: of the frame.
        height: of the frame.
        border_x: left and right of the window.
        border_y: above and below the window.
    """

    width: int
    height: int
    border_x: int
    border_y: int

    @property
    def window(self) -> tuple[int, int, int, int]:
        """``(left, top, right, bottom)``, the last two exclusive."""
        return (
            self.border_x,
            self.border_y,
            self.width - self.border_x,
            self.height - self.border_y,
        )

    @property
    def ratio(self) -> float:
        """Window side over frame side."""
        return 1 - 2 * self.border_x / self.width


@dataclass(frozen=True)
class Grid:
    """What a pipeline asks of a frame.

    Attributes:
        cell: pixels a side of one latent cell.
        unit: sides that are multiples of this keep every level of the UNet even, in pixels.
        native: side in pixels the model was trained at.
    """

    cell: int
    unit: int
    native: int


def plan(
    picture: tuple[int, int], size: int | tuple[int, int] | None, shrink: float, grid: Grid
) -> Geometry:
    """Choose frame and window.

    Args:
        picture: width and height of the input in pixels.
        size: see :class:`~zoomc.zoom.settings.ZoomSettings`.
        shrink: wanted ratio of window to frame.
        grid: of the pipeline.

    Raises:
        SettingsError: where the size is off the latent grid or has no window.
    """
    if isinstance(size, tuple):
        width, height = size
        for name, side in (("width", width), ("height", height)):
            if side < grid.cell or side % grid.cell:
                raise SettingsError(
                    f"{name} {side} is not a multiple of {grid.cell} pixels, the side of a latent "
                    f"cell of this model; the nearest is {_nearest(side, grid.cell)}"
                )
    else:
        short = grid.native if size is None else size
        if short < grid.cell or short % grid.cell:
            raise SettingsError(
                f"size {short} is not a multiple of {grid.cell} pixels, the side of a latent cell "
                f"of this model; the nearest is {_nearest(short, grid.cell)}"
            )
        width, height = _follow(picture, short, shrink, grid)
    return _with_window(width, height, shrink, grid.cell)


def _nearest(side: int, step: int) -> int:
    return max(step, round(side / step) * step)


def _follow(picture: tuple[int, int], short: int, shrink: float, grid: Grid) -> tuple[int, int]:
    """The size with this shorter side that fits both the picture's shape and the wanted ratio."""
    wide = picture[0] >= picture[1]
    aspect = min(max(picture) / min(picture), MAX_ASPECT)
    best, best_cost = short, math.inf
    for long in (short, *range(_up(short + 1, grid.unit), int(short * MAX_ASPECT) + 1, grid.unit)):
        ratio = _ratio(short, long, shrink, grid.cell)
        if ratio is None:
            continue
        # The shape costs as much as the ratio: both are visible, neither must be exact.
        cost = abs(math.log(long / short / aspect)) + abs(math.log(ratio / shrink))
        if cost < best_cost:
            best, best_cost = long, cost
    return (best, short) if wide else (short, best)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _ratio(width: int, height: int, shrink: float, cell: int) -> float | None:
    """The possible ratio nearest to ``shrink``; None where there is none."""
    common = math.gcd(width // cell, height // cell)
    most = (common - 1) // 2
    if most < 1:
        return None
    return 1 - 2 * min(max(round((1 - shrink) * common / 2), 1), most) / common


def _with_window(width: int, height: int, shrink: float, cell: int) -> Geometry:
    ratio = _ratio(width, height, shrink, cell)
    if ratio is None:
        near = min(
            (
                (w, h)
                for w in range(max(cell, width - 8 * cell), width + 9 * cell, cell)
                for h in range(max(cell, height - 8 * cell), height + 9 * cell, cell)
                if _ratio(w, h, shrink, cell) is not None
            ),
            key=lambda s: (abs(s[0] - width) + abs(s[1] - height), s),
        )
        raise SettingsError(
            f"a frame of {width}x{height} has no centred window of its own shape on the "
            f"{cell}-pixel latent grid; {near[0]}x{near[1]} has one, and multiples of "
            f"{8 * cell} give the most choice"
        )
    return Geometry(width, height, round(width * (1 - ratio) / 2), round(height * (1 - ratio) / 2))
