"""Bits in whole bus words: what misaligned runs really cost."""

from __future__ import annotations

from functools import lru_cache
from math import gcd

from ...kernels.tiling.layer import Axis, Conv
from ...kernels.tiling.memory import Memory
from ...kernels.tiling.schedule import Counts, Schedule, Tiles, passes, trips_of


@lru_cache(maxsize=1 << 16)
def run_words(bus: int, start: int, length: int, step: int, count: int) -> int:
    """Bus words that ``count`` runs of ``length`` bits touch, starts ``step`` bits apart."""
    if length == 0 or count == 0:
        return 0
    period = bus // gcd(step, bus) if step % bus else 1

    def words(k: int) -> int:
        first = (start + k * step) % bus
        return (first + length - 1) // bus + 1

    full, rest = divmod(count, period)
    once = [words(k) for k in range(min(period, count))]
    return full * sum(once) + sum(once[:rest])


def spans(axis: Axis, tile: int) -> list[tuple[int, int]]:
    """``(first, count)`` of the input positions each tile of an axis fetches, gaps closed up."""
    found = []
    for start, count in axis.tiles(tile):
        if axis.gaps:  # single positions: the row or column runs never merge
            for o in range(start, start + count):
                size = axis.touched(o, 1)
                found.append((max(0, o * axis.stride - axis.padding[0]), size))
        else:
            first = max(0, start * axis.stride - axis.padding[0])
            found.append((first, axis.touched(start, count)))
    return found


def map_bits(
    memory: Memory,
    word: int,
    shape: tuple[int, int, int, int],
    rows: list[tuple[int, int]],
    columns: list[tuple[int, int]],
    channels: list[tuple[int, int]],
    images: int = 1,
) -> int:
    """Bits, in whole bus words, of one pass over a map in far memory.

    Args:
        memory: bus and layout.
        word: bits of an element.
        shape: images, rows, columns, channels of the whole map.
        rows: ``(first, count)`` of every tile's rows.
        columns: of every tile's columns.
        channels: of every tile's channels.
        images: images that a tile holds.
    """
    bus = memory.bus
    n, height, width, depth = shape
    total = 0
    for r0, rc in rows:
        for c0, cc in columns:
            for k0, kc in channels:
                total += sum(
                    _tile(bus, word, memory.layout, shape, (i, r0, c0, k0), (m, rc, cc, kc))
                    for i, m in _merged(n, images, (rc, cc, kc) == (height, width, depth))
                )
    return total * bus


def _merged(n: int, images: int, contiguous: bool) -> list[tuple[int, int]]:
    """First image and images of every run of whole images, or every image by itself."""
    if contiguous:
        return [(i, min(images, n - i)) for i in range(0, n, images)]
    return [(i, 1) for i in range(n)]


def _tile(
    bus: int,
    word: int,
    layout: str,
    shape: tuple[int, int, int, int],
    first: tuple[int, int, int, int],
    count: tuple[int, int, int, int],
) -> int:
    """Bus words of one box of a map."""
    _, height, width, depth = shape
    i, r, c, k = first
    images, rc, cc, kc = count
    if 0 in count:
        return 0
    if layout == "nhwc":
        outer, middle, inner = (rc, r, height), (cc, c, width), (kc, k, depth)
    else:
        outer, middle, inner = (kc, k, depth), (rc, r, height), (cc, c, width)
    line, plane = inner[2] * word, middle[2] * inner[2] * word
    start = ((i * outer[2] + outer[1]) * plane) + middle[1] * line + inner[1] * word
    if images > 1 or (inner[0] == inner[2] and middle[0] == middle[2]):
        return run_words(bus, start % bus, images * outer[0] * plane, 0, 1)
    if inner[0] == inner[2]:
        return run_words(bus, start % bus, middle[0] * line, plane, outer[0])
    if plane % bus == 0:
        return outer[0] * run_words(bus, start % bus, inner[0] * word, line, middle[0])
    return sum(
        run_words(bus, (start + j * plane) % bus, inner[0] * word, line, middle[0])
        for j in range(outer[0])
    )


def pieces(size: int, tile: int) -> list[tuple[int, int]]:
    """``(first, count)`` of every tile of an axis without halos."""
    return [(k, min(tile, size - k)) for k in range(0, size, tile)]


def _channels(groups: list[tuple[int, int]], size: int, tile: int) -> list[tuple[int, int]]:
    """Channel runs of tiles over groups: whole groups lie side by side."""
    if tile >= size:
        return [(g0 * size, gc * size) for g0, gc in groups]
    return [
        (g * size + first, count)
        for g0, gc in groups
        for g in range(g0, g0 + gc)
        for first, count in pieces(size, tile)
    ]


def aligned(
    layer: Conv, memory: Memory, schedule: Schedule, tiles: Tiles, counts: Counts
) -> Counts:
    """The same counts in whole bus words.

    Activations are counted run by run as they lie in far memory. Weights lie tile by tile, each
    tile from a bus word on. Partial sums spill in the output's place, at their own word.
    """
    if not memory.bus:
        return counts
    words, trips = memory.words, trips_of(layer, tiles)
    groups = pieces(layer.groups, tiles.g)

    def whole(operand: str, dim: str) -> bool:
        residency = schedule.residency(operand)
        return residency == "whole" or (residency == "inner" and schedule.order[2] == dim)

    # Input: the tiles of one pass, as often as passes come.
    spatial = whole("input", "s")
    p = layer.rows.outputs if spatial else tiles.p
    q = layer.columns.outputs if spatial else tiles.q
    n = layer.batch if spatial else tiles.n
    depth = layer.depth if whole("input", "i") else tiles.i
    inputs = map_bits(
        memory,
        words.input,
        (layer.batch, layer.rows.size, layer.columns.size, layer.in_channels),
        spans(layer.rows, p),
        spans(layer.columns, q),
        _channels(groups, layer.depth, depth),
        n,
    ) * passes(schedule, trips, "input")
    inputs += _whole(layer.extra_reads * words.input, memory.bus)

    width = layer.width if whole("weight", "o") else tiles.o
    depth = layer.depth if whole("weight", "i") else tiles.i
    weights = sum(
        _whole(gc * oc * layer.taps * words.weights(ic), memory.bus)
        for _, gc in groups
        for _, oc in pieces(layer.width, width)
        for _, ic in pieces(layer.depth, depth)
    ) * passes(schedule, trips, "weight")

    spatial = whole("output", "s")
    p = layer.rows.outputs if spatial else tiles.p
    q = layer.columns.outputs if spatial else tiles.q
    n = layer.batch if spatial else tiles.n
    width = layer.width if whole("output", "o") else tiles.o

    def written(word: int, share: int) -> int:
        """One pass over the output; ``share`` channels become one element."""
        return map_bits(
            memory,
            word,
            (
                layer.batch,
                layer.rows.outputs,
                layer.columns.outputs,
                layer.out_channels // share,
            ),
            pieces(layer.rows.outputs, p),
            pieces(layer.columns.outputs, q),
            _channels(groups, layer.width // share, -(-width // share)),
            n,
        )

    results = written(words.output, 2 if layer.gated else 1)
    again = passes(schedule, trips, "output") - 1
    spilled = written(words.psum, 1) * again if again else 0
    return Counts(
        counts.footprint, (inputs, weights, spilled), (0, 0, results + spilled), counts.trips
    )


def _whole(bits: int, bus: int) -> int:
    """Bits rounded up to bus words."""
    return -(-bits // bus) * bus
