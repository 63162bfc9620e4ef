"""Frames from keyframes: shrink, composite, and everything in between.

Two neighbouring keyframes show the same scene at two scales: the *outer* one holds the *inner* one
shrunk by the ratio ``s`` in its window. The frame at time ``t`` from inner (0) to outer (1) looks
at the outer keyframe through a centred view of ``s**(1 - t)`` of its sides, so that the speed of
the zoom is the same everywhere, and lays the inner keyframe, scaled by ``s**t``, over the middle,
where it has more detail. Both ends equal the keyframes exactly:

* at ``t = 0`` the inner keyframe covers the frame at scale 1;
* at ``t = 1`` the inner keyframe is shrunk by the very resampling that put it into the outer one,
  and where the feather changed it, near the seam, the outer keyframe shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from .geometry import Geometry

#: Pixels a side that the picture is extended by, so that a rectangle may end between two pixels.
_MARGIN = 4


def shrink(keyframe: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The keyframe at the size of the window.

    Args:
        keyframe: (H, W, 3) uint8.
        geometry: of the zoom.

    Returns:
        (window height, window width, 3) uint8.
    """
    left, top, right, bottom = geometry.window
    placed, _ = _place(keyframe.astype(np.float32), geometry.ratio)
    return _to_bytes(placed[: bottom - top, : right - left])


def canvas(keyframe: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The shrunken keyframe in an otherwise unknown frame.

    The border repeats the window's edge pixels: a model that sees the masked pixels (one with four
    input channels does) then meets no sharp edge that it would paint around.

    Returns:
        The frame (H, W, 3) uint8, and its mask (H, W) uint8: 255 where to paint, else 0.
    """
    left, top, right, bottom = geometry.window
    mask = np.full((geometry.height, geometry.width), 255, np.uint8)
    mask[top:bottom, left:right] = 0
    borders = ((top, geometry.height - bottom), (left, geometry.width - right), (0, 0))
    return np.pad(shrink(keyframe, geometry), borders, mode="edge"), mask


def composite(
    known: np.ndarray, painted: np.ndarray, geometry: Geometry, feather: int
) -> np.ndarray:
    """Put the known pixels back over what the model painted.

    Args:
        known: (H, W, 3) uint8, valid inside the window.
        painted: (H, W, 3) floats from 0 to 255.
        geometry: of the zoom.
        feather: pixels inside the window, counted from its edge, over which painted turns into
            known. Deeper pixels come back exactly; with 0 all of them do.

    Returns:
        (H, W, 3) uint8.
    """
    left, top, right, bottom = geometry.window
    depth = np.minimum.outer(
        _depth(np.arange(geometry.height) + 0.5, top, bottom),
        _depth(np.arange(geometry.width) + 0.5, left, right),
    )
    keep = np.clip(depth / feather, 0, 1) if feather else (depth > 0).astype(np.float64)
    keep = keep[..., None].astype(np.float32)
    return _to_bytes(keep * known + (1 - keep) * painted.astype(np.float32))


def between(
    inner: np.ndarray, outer: np.ndarray, t: float, geometry: Geometry, feather: int
) -> np.ndarray:
    """The frame at time ``t`` between two neighbouring keyframes.

    Args:
        inner: (H, W, 3) uint8.
        outer: (H, W, 3) uint8, with ``inner`` in its window.
        t: from 0 (shows ``inner``) to 1 (shows ``outer``).
        geometry: of the zoom.
        feather: the one ``outer`` was composited with.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = outer.shape[:2]
    view = geometry.ratio ** (1 - t)
    box = (
        width * (1 - view) / 2,
        height * (1 - view) / 2,
        width * (1 + view) / 2,
        height * (1 + view) / 2,
    )
    frame = _resize(outer.astype(np.float32), (width, height), box)
    scale = geometry.ratio**t
    placed, (x, y) = _place(inner.astype(np.float32), scale)
    rows = np.arange(y, y + placed.shape[0])
    columns = np.arange(x, x + placed.shape[1])
    keep = np.multiply.outer(_coverage(rows, height, scale), _coverage(columns, width, scale))
    # The blend moves in from the seam as the view widens: nothing at t = 0, where the inner
    # keyframe fills the frame; past the whole feather at t = 1, where the outer one has it already.
    seam = feather * t
    if seam > 0:
        depth = view * np.minimum.outer(
            _depth(rows + 0.5, height * (1 - scale) / 2, height * (1 + scale) / 2),
            _depth(columns + 0.5, width * (1 - scale) / 2, width * (1 + scale) / 2),
        )
        keep = keep * np.clip((depth - seam) / seam, 0, 1)
    keep = keep[..., None].astype(np.float32)
    area = frame[y : y + placed.shape[0], x : x + placed.shape[1]]
    area += keep * (placed - area)
    return _to_bytes(frame)


def frames(
    keyframe: Callable[[int], np.ndarray],
    count: int,
    per_keyframe: int,
    geometry: Geometry,
    feather: int,
    *,
    direction: str = "out",
) -> Iterator[np.ndarray]:
    """All frames of the video in order, holding two keyframes at a time.

    Args:
        keyframe: gives keyframe ``i``, 0 to ``count`` inclusive.
        count: generated keyframes.
        per_keyframe: frames from one keyframe to the next.
        geometry: of the zoom.
        feather: of the zoom.
        direction: ``"out"`` or ``"in"``, the same frames reversed.

    Yields:
        ``count * per_keyframe + 1`` frames (H, W, 3) uint8.
    """
    outwards = direction == "out"
    order = range(count + 1) if outwards else range(count, -1, -1)
    near = keyframe(order[0])
    yield near
    for index in order[1:]:
        far = keyframe(index)
        inner, outer = (near, far) if outwards else (far, near)
        for step in range(1, per_keyframe):
            t = step / per_keyframe
            yield between(inner, outer, t if outwards else 1 - t, geometry, feather)
        yield far
        near = far


def enlarge(frame: np.ndarray, factor: int) -> np.ndarray:
    """A frame with ``factor`` times its sides, (H, W, 3) uint8."""
    if factor == 1:
        return frame
    size = (frame.shape[1] * factor, frame.shape[0] * factor)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def _place(image: np.ndarray, scale: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Scale an image about its own centre, on the whole pixels that it touches.

    Args:
        image: (H, W, 3) float32.
        scale: at most 1.

    Returns:
        The scaled pixels (h, w, 3) float32, and ``(x, y)`` of the first of them in the frame.
        Pixels at the rim that the image covers in part hold its colour there, undimmed.
    """
    height, width = image.shape[:2]
    spans = []
    for side in (width, height):
        # The tolerance keeps rounding errors from adding a pixel that is touched by 1e-14.
        first = math.floor(side * (1 - scale) / 2 + 1e-6)
        last = math.ceil(side * (1 + scale) / 2 - 1e-6)
        start = (first - side * (1 - scale) / 2) / scale
        spans.append((first, last, start, start + (last - first) / scale))
    (x, x_end, left, right), (y, y_end, top, bottom) = spans
    margin = _MARGIN + math.ceil(1 / scale)
    extended = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    box = (left + margin, top + margin, right + margin, bottom + margin)
    return _resize(extended, (x_end - x, y_end - y), box), (x, y)


def _resize(
    image: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]
) -> np.ndarray:
    """Lanczos in float, widened where it shrinks. (H, W, 3) float32 to (size[1], size[0], 3)."""
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(
            size, Image.Resampling.LANCZOS, box=box
        )
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)


def _depth(position: np.ndarray, start: float, end: float) -> np.ndarray:
    """Distance into an interval from its nearer end; negative outside."""
    return np.minimum(position - start, end - position)


def _coverage(pixels: np.ndarray, side: int, scale: float) -> np.ndarray:
    """How much of each pixel a centred interval of ``scale * side`` covers, 0 to 1."""
    start, end = side * (1 - scale) / 2, side * (1 + scale) / 2
    return np.clip(np.minimum(pixels + 1, end) - np.maximum(pixels, start), 0, 1)


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)
