"""What a schedule moves: the exact count for one order, one set of tiles, one residency.

The loops over tiles are, outer to inner, groups and then the three dimensions of :data:`DIMS` in
some order: ``s`` (image, row and column of the output), ``o`` (output channels), ``i`` (input
channels). Kernel taps are not tiled. Each operand ignores one of the three:

    input  (s, i) ignores o      weight (o, i) ignores s      output (s, o) ignores i

so in the order (1, 2, 3) the operand that ignores loop 3 is fetched once per tile; the one that
ignores loop 2 is fetched again in every pass of it, unless its buffer covers the whole of loop 3
(``inner``); and the one that ignores loop 1 is fetched again in every pass of it, unless its buffer
holds all of it (``whole``). Any other residency costs space and saves nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from .layer import Conv, halo
from .memory import Memory

DIMS = "soi"
OPERANDS = ("input", "weight", "output")

#: The dimension each operand does not depend on.
IGNORES = {"input": "o", "weight": "s", "output": "i"}
_IGNORANT = {dim: operand for operand, dim in IGNORES.items()}


@dataclass(frozen=True)
class Schedule:
    """An order of the loops and what stays in near memory.

    Attributes:
        order: a permutation of :data:`DIMS`, outer to inner.
        inner: the operand that ignores the middle loop covers the innermost one.
        whole: the operand that ignores the outermost loop is resident as a whole.
    """

    order: str
    inner: bool = False
    whole: bool = False

    def residency(self, operand: str) -> str:
        """``tile``, ``inner`` or ``whole``."""
        position = self.order.index(IGNORES[operand])
        if position == 0 and self.whole:
            return "whole"
        return "inner" if position == 1 and self.inner else "tile"

    @property
    def stationary(self) -> str:
        """The operand that ignores the innermost loop: it waits while the others pass."""
        return _IGNORANT[self.order[2]]

    def active(self) -> set[str]:
        """The dimensions whose number of tiles multiplies some operand's traffic."""
        return ({self.order[1]} if not self.inner else set()) | (
            {self.order[0]} if not self.whole else set()
        )


SCHEDULES = tuple(
    Schedule("".join(order), inner, whole)
    for order in itertools.permutations(DIMS)
    for inner in (False, True)
    for whole in (False, True)
)


@dataclass(frozen=True)
class Tiles:
    """Tile sizes: images, output rows and columns, groups, output and input channels of a group."""

    n: int
    p: int
    q: int
    g: int
    o: int
    i: int


@dataclass(frozen=True)
class Counts:
    """What one schedule needs and moves, in bits; each triple is input, weight, output.

    Attributes:
        footprint: of the buffers, doubled ones counted twice.
        reads: from far memory; the output's are partial sums that come back.
        writes: to far memory; the output's are results and partial sums.
        trips: tiles along s, o, i and g.
    """

    footprint: tuple[int, int, int]
    reads: tuple[int, int, int]
    writes: tuple[int, int, int]
    trips: tuple[int, int, int, int]

    @property
    def total(self) -> int:
        """All bits that travel."""
        return sum(self.reads) + sum(self.writes)


def trips_of(layer: Conv, tiles: Tiles) -> dict[str, int]:
    """Tiles along every dimension."""
    spatial = (
        -(-layer.batch // tiles.n)
        * -(-layer.rows.outputs // tiles.p)
        * -(-layer.columns.outputs // tiles.q)
    )
    return {
        "s": spatial,
        "o": -(-layer.width // tiles.o),
        "i": -(-layer.depth // tiles.i),
        "g": -(-layer.groups // tiles.g),
    }


def passes(schedule: Schedule, trips: dict[str, int], operand: str) -> int:
    """How many times each tile of an operand is needed anew."""
    ignored = IGNORES[operand]
    residency = schedule.residency(operand)
    inside = schedule.order[schedule.order.index(ignored) + 1 :]
    if residency != "tile" or all(trips[d] == 1 for d in inside):
        return 1
    return trips[ignored]


def loads(schedule: Schedule, trips: dict[str, int], operand: str) -> int:
    """How many times an operand's buffer is filled."""
    relevant = [d for d in DIMS if d != IGNORES[operand]]
    residency = schedule.residency(operand)
    if residency == "whole":
        relevant = []
    elif residency == "inner":
        relevant.remove(schedule.order[2])
    count = trips["g"] * passes(schedule, trips, operand)
    for d in relevant:
        count *= trips[d]
    return count


def measure(layer: Conv, memory: Memory, schedule: Schedule, tiles: Tiles) -> Counts:
    """Count a schedule exactly, uneven last tiles, clipped padding and halos included."""
    words, trips = memory.words, trips_of(layer, tiles)
    _, rows_most, rows_all = halo(layer.rows, tiles.p)
    _, columns_most, columns_all = halo(layer.columns, tiles.q)
    held_in_full = {operand: covered(schedule, operand) for operand in OPERANDS}

    whole_input = layer.batch * layer.rows.distinct * layer.columns.distinct
    held = whole_input if "s" in held_in_full["input"] else tiles.n * rows_most * columns_most
    depth = layer.depth if "i" in held_in_full["input"] else tiles.i
    input_bits = held * depth * words.input

    width = layer.width if "o" in held_in_full["weight"] else tiles.o
    depth = layer.depth if "i" in held_in_full["weight"] else tiles.i
    weight_bits = width * layer.taps * words.near_weights(depth)

    held = layer.positions if "s" in held_in_full["output"] else tiles.n * tiles.p * tiles.q
    width = layer.width if "o" in held_in_full["output"] else tiles.o
    output_bits = held * width * words.psum

    footprint = tuple(
        bits
        * tiles.g
        * (2 if memory.double_buffered and loads(schedule, trips, operand) > 1 else 1)
        for operand, bits in zip(OPERANDS, (input_bits, weight_bits, output_bits), strict=True)
    )

    fetched = whole_input if "s" in held_in_full["input"] else layer.batch * rows_all * columns_all
    again = {operand: passes(schedule, trips, operand) for operand in OPERANDS}
    inputs = fetched * layer.in_channels * words.input * again["input"]
    inputs += layer.extra_reads * words.input
    weights = (
        layer.out_channels * layer.taps * _far_weights(layer, memory, tiles, held_in_full["weight"])
    )
    spilled = layer.positions * layer.out_channels * words.psum * (again["output"] - 1)
    return Counts(
        footprint,  # type: ignore[arg-type]
        (inputs, weights * again["weight"], spilled),
        (0, 0, layer.output_elements * words.output + spilled),
        (trips["s"], trips["o"], trips["i"], trips["g"]),
    )


def covered(schedule: Schedule, operand: str) -> str:
    """The dimensions of which an operand's buffer holds everything."""
    residency = schedule.residency(operand)
    if residency == "whole":
        return DIMS
    return schedule.order[2] if residency == "inner" else ""


def _far_weights(layer: Conv, memory: Memory, tiles: Tiles, held: str) -> int:
    """Bits of one output channel's weights for one tap, in pieces as they are fetched."""
    if "i" in held:
        return memory.words.weights(layer.depth)
    full, rest = divmod(layer.depth, tiles.i)
    return full * memory.words.weights(tiles.i) + memory.words.weights(rest)


def every_tiling(layer: Conv) -> Iterator[Tiles]:
    """All tile sizes there are, for exhaustive search on small layers."""
    ranges = (
        layer.batch,
        layer.rows.outputs,
        layer.columns.outputs,
        layer.groups,
        layer.width,
        layer.depth,
    )
    for sizes in itertools.product(*(range(1, n + 1) for n in ranges)):
        yield Tiles(*sizes)
