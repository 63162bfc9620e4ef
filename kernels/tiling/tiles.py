"""Tile sizes worth a look: for every number of tiles the least that gives it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

from .layer import Axis, halo

#: A spatial tile: tiles, most input positions of one, output positions of one, input positions of
#: all, and its sizes n, p, q.
Spatial = tuple[int, int, int, int, int, int, int]


@lru_cache(maxsize=4096)
def sizes(size: int, granule: int = 1) -> tuple[int, ...]:
    """The smallest multiple of ``granule`` for every number of tiles, fewest tiles first."""
    found: dict[int, int] = {1: size}
    for tile in range(granule, size, granule):
        found.setdefault(-(-size // tile), tile)
    return tuple(found[n] for n in sorted(found))


@lru_cache(maxsize=4096)
def axis_tiles(axis: Axis) -> tuple[tuple[int, ...], ...]:
    """``(tiles, most input, tile, input of all tiles)`` of every tile that none beats."""
    found = []
    for tile in range(1, axis.outputs + 1):
        count, most, total = halo(axis, tile)
        found.append((count, most, tile, total))
    return tuple(frontier(found))


@lru_cache(maxsize=1024)
def spatial_tiles(
    batch: int, rows: Axis, columns: Axis, lines: bool = False
) -> tuple[Spatial, ...]:
    """Every spatial tile that none beats on tiles, space and halo; fewest tiles first.

    Args:
        batch: images.
        rows: the vertical axis.
        columns: the horizontal axis.
        lines: add every tile of whole rows.
    """
    images = [(-(-batch // n), n) for n in sizes(batch)]
    points = []
    for (a, n), r, c in itertools.product(images, axis_tiles(rows), axis_tiles(columns)):
        points.append(
            (a * r[0] * c[0], n * r[1] * c[1], n * r[2] * c[2], batch * r[3] * c[3], n, r[2], c[2])
        )
    kept = frontier(points)
    if lines:
        kept += [s for s in points if s[6] == columns.outputs and s not in kept]
    return tuple(kept)  # type: ignore[arg-type]


def frontier(points: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The points that no other equals or beats in each of the first four numbers."""
    kept: list[tuple[int, ...]] = []
    for point in sorted(points):
        _, x, y, z = point[:4]
        if not any(k[1] <= x and k[2] <= y and k[3] <= z for k in kept):
            kept.append(point)
    return kept
