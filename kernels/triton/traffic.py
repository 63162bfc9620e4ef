"""What a product moves on a GPU: the tile planner's counts between its two pairs of memories.

A program holds a block of the result in its registers while ``k`` passes through shared memory:
one schedule of the planner's, between L2 and shared memory. The programs that run at one time
share what they read through the L2 cache: they are a tile of the planner's between memory and L2,
as many block rows high as the program order walks down before it steps to the next column. How
many that are, and so what stays in the cache meanwhile, is the planner's choice.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache

from ..tiling.layer import Conv, matmul
from ..tiling.memory import Memory, Words
from ..tiling.schedule import Counts, Schedule, Tiles, measure
from .gpu import Gpu

#: In a program the result waits; no program keeps anything for the next one.
_PROGRAM = Schedule("soi")

#: What stays in L2 along the program order, and whether a tile there is all of ``k`` deep, as a
#: cache that keeps what was last used needs it to be: nothing; rows, while columns pass; all
#: columns, too.
_SWEEPS = (
    (Schedule("soi"), False),
    (Schedule("soi"), True),
    (Schedule("soi", whole=True), True),
)

#: How far along ``k`` programs that run together are apart.
_APART = 64

#: Block rows that a program order may walk down.
GROUPS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Problem:
    """A product ``[m, k] · [k, n]`` as the planner knows it.

    Attributes:
        layer: the convolution it computes, or the product itself; input channels with their
            padding. What the epilogue reads besides are its ``extra_reads``.
        words: bits in memory, of an input element as often as it is read there.
        steps: for each input, how far ``k`` goes in it.
        a_bytes: bytes of one element of the left operand as a program multiplies it.
        block_k: ``k`` of a block divides this.
        work: instructions a thread spends on one element of the left operand before the product.
        gathers: whether rows of the left operand are found by computed addresses, which take
            registers.
        loaded_bytes: bytes of one element of the left operand as a program takes it, where it
            quantises; 0 where they are as many as it multiplies.
    """

    layer: Conv
    words: Words
    steps: tuple[int, ...]
    a_bytes: int
    block_k: int
    work: float = 0.0
    gathers: bool = False
    loaded_bytes: int = 0

    @property
    def loaded(self) -> int:
        """Bytes of one element of the left operand as a program takes it."""
        return self.loaded_bytes or self.a_bytes

    @property
    def m(self) -> int:
        """Rows."""
        return self.layer.positions

    @property
    def n(self) -> int:
        """Columns."""
        return self.layer.out_channels

    @property
    def k(self) -> int:
        """Depth of the product."""
        return sum(self.steps)

    @property
    def w_bits(self) -> int:
        """Bits of one weight in memory."""
        return self.words.weight


@lru_cache(maxsize=1 << 15)
def program(problem: Problem, m: int, n: int, k: int) -> Counts:
    """What passes between L2 and shared memory in blocks of that size; bits.

    The footprint is of one block in flight, with its weights decoded; the sums are in registers.
    """
    words = dataclasses.replace(
        problem.words, input=8 * problem.loaded, near_weight=8 * problem.a_bytes
    )
    extra = problem.layer.extra_reads * problem.words.input // words.input
    layer = matmul("", problem.m, problem.n, problem.k, extra_reads=extra)
    layer = dataclasses.replace(layer, gated=problem.layer.gated)
    # A program starts with nothing in shared memory even where one block holds all of k.
    passing = min(k, -(-problem.k // 2))
    counts = measure(layer, Memory(1, words), _PROGRAM, Tiles(1, m, 1, 1, n, passing))
    held = (m * k * words.input, n * words.near_weights(k), 0)
    return dataclasses.replace(counts, footprint=held)


@dataclass(frozen=True)
class Sweep:
    """A program order: ``group`` block rows high, and the bits that memory sees under it."""

    group: int
    counts: Counts


@lru_cache(maxsize=1 << 15)
def sweep(problem: Problem, m: int, n: int, gpu: Gpu) -> Sweep:
    """The program order that moves the least between memory and L2, in blocks of that size."""
    rows = math.ceil(problem.m / m)
    groups = [g for g in GROUPS if g == 1 or (g < 2 * rows and g <= gpu.processors)]
    found = [Sweep(group, measured(problem, m, n, gpu, group)) for group in groups]
    return min(found, key=lambda sweep: _price(sweep.counts))


def measured(problem: Problem, m: int, n: int, gpu: Gpu, group: int) -> Counts:
    """What passes between memory and L2 under one program order; bits.

    The cache manages itself, so half of it is counted on.
    """
    layer, memory = problem.layer, Memory(gpu.l2 // 2 * 8, problem.words)
    columns = min(problem.n, gpu.processors // group * n)
    every = []
    for schedule, deep in _SWEEPS:
        i = layer.depth if deep else min(_APART, -(-layer.depth // 2))
        every.append(measure(layer, memory, schedule, _tile(layer, group * m, columns, i)))
    fitting = [counts for counts in every if memory.fits(counts.footprint)]
    return min(fitting or every[:1], key=_price)


def _price(counts: Counts) -> tuple[int, int]:
    """Bits that travel; among equals, the space they take."""
    return counts.total, sum(counts.footprint)


def _tile(layer: Conv, rows: int, o: int, i: int) -> Tiles:
    """The least tile of whole image rows, or of whole images, that so many output pixels are in."""
    high, wide = layer.rows.outputs, layer.columns.outputs
    if rows >= high * wide:
        return Tiles(min(layer.batch, -(-rows // (high * wide))), high, wide, 1, o, i)
    return Tiles(1, -(-rows // wide), wide, 1, o, i)
