"""A picture drawn by code, for a zoom without a photo."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ..training import scenes

_SUPERSAMPLE = 4


def demo_picture(size: int = 512) -> np.ndarray:
    """What :data:`zoomc.demo.PROMPT` says, the same every time.

    Args:
        size: side in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    side = size * _SUPERSAMPLE
    image = Image.fromarray(_background(side))
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(7)
    green, orange, blue = (42, 152, 62), scenes.FISH["orange"], scenes.WATERS["blue"][0]
    for x, y, height in ((0.08, 0.86, 0.3), (0.86, 0.84, 0.36), (0.95, 0.9, 0.24)):
        scenes.draw_weed(draw, x * side, y * side, height * side, green, rng)
    scenes.draw_rock(draw, 0.22 * side, 0.93 * side, 0.1 * side, (150, 140, 136), rng)
    for x, y in ((0.8, 0.3), (0.82, 0.21), (0.79, 0.13)):
        scenes.draw_bubble(draw, x * side, y * side, 0.022 * side, blue)
    for x, y, length, left in (
        (0.34, 0.3, 0.3, False),
        (0.6, 0.5, 0.34, True),
        (0.3, 0.64, 0.26, False),
    ):
        scenes.draw_fish(draw, x * side, y * side, length * side, orange, left)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.uint8)


def _background(side: int) -> np.ndarray:
    """Water that darkens with depth, over sand with low dunes."""
    y = np.linspace(0, 1, side)[:, None]
    x = np.linspace(0, 1, side)[None, :]
    line = 0.8 + 0.015 * np.sin(7 * x) + 0.006 * np.sin(17 * x + 1)
    water = _blend(scenes.WATERS["blue"], np.broadcast_to(y / 0.8, (side, side)))
    sand = _blend(scenes.FLOORS["sand"], np.broadcast_to((y - 0.8) / 0.3, (side, side)))
    return np.where((y > line)[..., None], sand, water).astype(np.uint8)


def _blend(ends: tuple[scenes.Colour, scenes.Colour], share: np.ndarray) -> np.ndarray:
    first, last = (np.array(end, np.float32) for end in ends)
    return first + (last - first) * np.clip(share, 0, 1)[..., None].astype(np.float32)
