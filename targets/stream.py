"""The access stream of a plan: which bytes of far memory its tiles touch, in order.

Two layouts. ``rows`` knows nothing of tiles: maps lie as NCHW, weights as OIHW, row after row.
``tiles`` lays each weight tile in one piece, and a map in blocks of as many channels as its tiles
hold, row by row inside a block: a tile is one run per row, or a single one where it is as wide as
the map.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ..kernels.tiling.layer import Conv
from ..kernels.tiling.schedule import IGNORES, OPERANDS, Schedule, Tiles, covered
from .dram import Dram, Run, layout
from .tiling.bus import pieces, spans
from .tiling.plan import Plan

_ALL = (0, 0)


class Stream:
    """Runs of one convolution's or matmul's plan.

    Words of whole bytes only; partial sums take as many bytes as their word, in a place of their
    own.
    """

    def __init__(self, plan: Plan, dram: Dram, tiled: bool = True, base: int = 0) -> None:
        """``tiled`` chooses the layout; ``base`` is the first byte to use."""
        assert isinstance(plan.layer, Conv)
        assert isinstance(plan.schedule, Schedule)
        assert isinstance(plan.tiles, Tiles)
        self.layer, self.schedule, self.tiles = plan.layer, plan.schedule, plan.tiles
        self.tiled = tiled
        words = plan.memory.words
        self._bytes = {
            "input": -(-words.input // 8),
            "weight": -(-words.weight // 8),
            "output": -(-words.output // 8),
            "psum": -(-words.psum // 8),
        }
        layer = self.layer
        self._input = layer.batch * layer.rows.size * layer.columns.size * layer.in_channels
        starts = layout(
            (
                self._input * self._bytes["input"],
                layer.weight_elements * self._bytes["weight"],
                layer.positions * layer.out_channels * self._bytes["output"],
                layer.positions * layer.out_channels * self._bytes["psum"],
            ),
            dram,
        )
        self._start = dict(
            zip(("input", "weight", "output", "psum"), (base + s for s in starts), strict=True)
        )
        self._cover = {operand: covered(self.schedule, operand) for operand in OPERANDS}

    def __iter__(self) -> Iterator[Run]:
        """Walk the loops: a run whenever a buffer's content changes."""
        layer, tiles, order = self.layer, self.tiles, self.schedule.order
        ranges: dict[str, list[tuple[int, ...]]] = {
            "s": list(
                itertools.product(
                    range(len(pieces(layer.batch, tiles.n))),
                    range(len(pieces(layer.rows.outputs, tiles.p))),
                    range(len(pieces(layer.columns.outputs, tiles.q))),
                )
            ),
            "o": [(k,) for k in range(0, layer.width, tiles.o)],
            "i": [(k,) for k in range(0, layer.depth, tiles.i)],
        }
        for group in range(layer.groups):
            held: dict[str, tuple[tuple[int, ...] | None, ...]] = {}
            visits: dict[object, int] = {}
            for point in itertools.product(*(ranges[d] for d in order)):
                at = dict(zip(order, point, strict=True))
                for operand in OPERANDS:
                    key = tuple(
                        None if d in self._cover[operand] else at[d]
                        for d in "soi"
                        if d != IGNORES[operand]
                    )
                    if held.get(operand) == key:
                        continue
                    if operand == "output":
                        yield from self._leave(held.get(operand), visits, group, len(ranges["i"]))
                        if key in visits:
                            yield from self._map("psum", key, group, False)
                    else:
                        yield from self._fetch(operand, key, group)
                    held[operand] = key
                out = held["output"]
                visits[out] = visits.get(out, 0) + 1
            yield from self._leave(held["output"], visits, group, len(ranges["i"]))

    def _leave(
        self,
        key: tuple[tuple[int, ...] | None, ...] | None,
        visits: dict[object, int],
        group: int,
        steps: int,
    ) -> Iterator[Run]:
        """Write an output tile out: finished, or as partial sums."""
        if key is None:
            return
        total = steps
        for part, dim in zip(key, "so", strict=True):
            if part is None:
                total *= self._trips(dim)
        yield from self._map("output" if visits[key] >= total else "psum", key, group, True)

    def _trips(self, dim: str) -> int:
        layer, tiles = self.layer, self.tiles
        if dim == "o":
            return -(-layer.width // tiles.o)
        return (
            len(pieces(layer.batch, tiles.n))
            * len(pieces(layer.rows.outputs, tiles.p))
            * len(pieces(layer.columns.outputs, tiles.q))
        )

    def _fetch(
        self, operand: str, key: tuple[tuple[int, ...] | None, ...], group: int
    ) -> Iterator[Run]:
        if operand == "input":
            yield from self._map("input", key, group, False)
            return
        layer, tiles, size = self.layer, self.tiles, self._bytes["weight"]
        o0, oc = _range(key[0], layer.width, tiles.o)
        i0, ic = _range(key[1], layer.depth, tiles.i)
        base = self._start["weight"] + group * layer.width * layer.depth * layer.taps * size
        if self.tiled:
            # Tiles of one row of tiles lie side by side, rows of tiles below each other.
            first = (o0 * layer.depth + i0 * oc) * layer.taps
            yield Run(base + first * size, oc * ic * layer.taps * size)
            return
        for o in range(o0, o0 + oc):
            first = (o * layer.depth + i0) * layer.taps
            yield Run(base + first * size, ic * layer.taps * size)

    def _map(
        self, what: str, key: tuple[tuple[int, ...] | None, ...], group: int, write: bool
    ) -> Iterator[Run]:
        """A tile of the input, of the output or of its partial sums."""
        layer, tiles, size = self.layer, self.tiles, self._bytes[what]
        inward = what == "input"
        rows, columns = layer.rows, layer.columns
        height, width = (rows.size, columns.size) if inward else (rows.outputs, columns.outputs)
        channels, tile = (layer.depth, tiles.i) if inward else (layer.width, tiles.o)
        cover = self._cover["input" if inward else "output"]
        c0, cc = _range(key[1], channels, tile)
        block = channels if ("i" if inward else "o") in cover else tile
        p = rows.outputs if "s" in cover else tiles.p
        q = columns.outputs if "s" in cover else tiles.q
        n = layer.batch if "s" in cover else tiles.n
        a, y, x = key[0] if key[0] is not None else (0, 0, 0)
        if inward:
            gaps = rows.gaps or columns.gaps
            y_spans = spans(rows, p)[y * p : (y + 1) * p] if rows.gaps else [spans(rows, p)[y]]
            x_spans = (
                spans(columns, q)[x * q : (x + 1) * q] if columns.gaps else [spans(columns, q)[x]]
            )
        else:
            gaps = False
            y_spans, x_spans = [pieces(height, p)[y]], [pieces(width, q)[x]]
        total = layer.groups * channels
        base = self._start[what]
        for image in range(a * n, min((a + 1) * n, layer.batch)):
            at = base + image * total * height * width * size
            for (y0, yc), (x0, xc) in itertools.product(y_spans, x_spans):
                if self.tiled:
                    # Blocks of channels; inside a block rows, columns, channels.
                    first = group * channels + c0 - c0 % block
                    held = min(block, channels - (c0 - c0 % block))
                    plane = at + first * height * width * size
                    if xc == width and not gaps:
                        yield Run(plane + y0 * width * held * size, yc * width * held * size, write)
                        continue
                    for r in range(y0, y0 + yc):
                        start = plane + (r * width + x0) * held * size
                        yield Run(start, xc * held * size, write)
                    continue
                for c in range(group * channels + c0, group * channels + c0 + cc):
                    plane = at + c * height * width * size
                    if xc == width and not gaps:
                        yield Run(plane + y0 * width * size, yc * width * size, write)
                        continue
                    for r in range(y0, y0 + yc):
                        yield Run(plane + (r * width + x0) * size, xc * size, write)


def _range(part: tuple[int, ...] | None, size: int, tile: int) -> tuple[int, int]:
    """``(first, count)`` of a tile along a channel axis; all of it where the buffer covers it."""
    if part is None:
        return 0, size
    return part[0], min(tile, size - part[0])


def extent(plan: Plan, dram: Dram) -> int:
    """Bytes of far memory that a plan's tensors take."""
    return max((run.start + run.length for run in Stream(plan, dram)), default=0)


__all__ = ["Stream", "extent"]
