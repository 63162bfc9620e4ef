"""Tiles of a product: which there are, the traffic each causes, and which looks fastest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .gpu import Gpu

#: Seconds from one launch's end to the next one's start inside a CUDA graph.
LAUNCH = 1.5e-6


@dataclass(frozen=True)
class Problem:
    """A product ``[m, k] · [k, n]``.

    Attributes:
        m: rows.
        n: columns.
        steps: for each input, how far ``k`` goes in it.
        a_bytes: bytes of one element of the left operand.
        w_bits: bits of one weight in memory.
        a_nbytes: bytes of the left operand in memory, each counted once.
        c_nbytes: bytes read and written by the epilogue.
        block_k: ``k`` of a block divides this.
        work: instructions a thread spends on one element of the left operand before the product.
        gathers: whether rows of the left operand are found by computed addresses, which take
            registers.
    """

    m: int
    n: int
    steps: tuple[int, ...]
    a_bytes: int
    w_bits: int
    a_nbytes: int
    c_nbytes: int
    block_k: int
    work: float = 0.0
    gathers: bool = False

    @property
    def k(self) -> int:
        """Depth of the product."""
        return sum(self.steps)


@dataclass(frozen=True)
class Tile:
    """Block sizes of a product, and how a program runs.

    ``split`` programs share one block of the result, each with a part of ``k``; ``group`` block
    rows are walked together, so that they share columns in the L2 cache.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    split: int = 1
    group: int = 8

    def shared(self, a_bytes: int) -> int:
        """Bytes of shared memory of the blocks in flight."""
        return (self.m + self.n) * a_bytes * self.k * self.stages

    def blocks(self, problem: Problem) -> int:
        """Blocks of the result."""
        return math.ceil(problem.m / self.m) * math.ceil(problem.n / self.n)


@dataclass(frozen=True)
class Traffic:
    """Bytes a product moves: between L2 and multiprocessors, and to and from memory."""

    l2: int
    dram: int


def traffic(problem: Problem, tile: Tile, gpu: Gpu) -> Traffic:
    """Bytes moved by a product under a tile.

    Every block reads its rows and columns through the L2 cache. Memory sees each operand once if
    what the programs running together read fits the cache, and otherwise again for every sweep of
    ``group`` block rows.
    """
    rows, columns = math.ceil(problem.m / tile.m), math.ceil(problem.n / tile.n)
    weights = problem.n * problem.k * problem.w_bits // 8
    a_through = columns * problem.m * problem.k * problem.a_bytes
    w_through = rows * weights
    partial = 2 * 4 * problem.m * problem.n * tile.split if tile.split > 1 else 0
    sweeps = math.ceil(rows / tile.group)
    again = weights * (sweeps - 1) if weights > gpu.l2 // 2 else 0
    dram = problem.a_nbytes + weights + again + problem.c_nbytes
    return Traffic(a_through + w_through + problem.c_nbytes + partial, dram)


def seconds(problem: Problem, tile: Tile, gpu: Gpu) -> float:
    """What a tile is expected to take: whichever of arithmetic, L2 and memory is slowest."""
    programs = tile.blocks(problem) * tile.split
    depth = math.ceil(problem.k / tile.k / tile.split) * tile.k
    # Operands pass through shared memory, at 128 bytes a cycle, once in and once out.
    loads = (tile.m * problem.a_bytes + tile.n * max(problem.a_bytes, 1)) * 2 / 128
    decode = tile.n * (5.0 if problem.w_bits == 4 else 0.0) / 128
    work = tile.m * problem.work / 128
    macs = tile.m * tile.n / gpu.macs[problem.a_bytes]
    cycles = depth * max(macs + 0.5 * (decode + work), loads, decode + work)
    # What a program does at every step, and before its first and after its last.
    cycles += 40 * depth / tile.k + 1000 + tile.m * tile.n * 4 / 128
    rounds = math.ceil(programs / gpu.processors)
    moved = traffic(problem, tile, gpu)
    busy = min(1.0, programs / gpu.processors)
    slowest = max(
        rounds * cycles / gpu.clock,
        moved.l2 / (gpu.l2_rate * busy),
        moved.dram / (gpu.dram_rate * busy),
    )
    return slowest + LAUNCH * (2 if tile.split > 1 else 1)


def tiles(problem: Problem, gpu: Gpu, keep: int = 8) -> list[Tile]:
    """The tiles expected to be fastest, best first; ``keep`` of them."""
    found = sorted(_all(problem, gpu), key=lambda tile: seconds(problem, tile, gpu))
    return found[:keep]


def _all(problem: Problem, gpu: Gpu) -> Iterator[Tile]:
    """Every tile that fits the GPU's registers and shared memory.

    A tensor-core instruction takes 64 rows, so no block has fewer.
    """
    for m in (64, 128):
        for n in (32, 64, 128, 256):
            if (m > 64 and problem.m <= m // 2) or (n > 32 and problem.n <= n // 2):
                continue
            for k in (32, 64, 128):
                if problem.block_k % k == 0 and k * problem.a_bytes <= 128:
                    yield from _fitting(problem, gpu, m, n, k)
    if problem.block_k == 16:
        for n in (32, 64):
            yield Tile(64, n, 16, 4, 2)


def _fitting(problem: Problem, gpu: Gpu, m: int, n: int, k: int) -> Iterator[Tile]:
    threads = gpu.warp * (8 if m * n >= 128 * 128 else 4)
    # Sums of one block, in registers of one thread. They share them with addresses, with whatever
    # is decoded or normalised on its way, and with the parts fp32 is split into. On sm_100 sums
    # have a memory of their own, but come back from it at the end.
    plain = not (problem.work or problem.gathers) and problem.w_bits == 16
    crowded = problem.a_bytes == 4 or (problem.work and problem.gathers)
    room = 32 if crowded else 128 if plain and gpu.name != "sm_100" else 64
    if gpu.kind == "hip" and problem.w_bits == 4:
        room = 16  # decoded by shifts and selects
    if m * n > room * threads:
        return
    for stages in range(2 if gpu.kind == "hip" else 4, 1, -1):
        tile = Tile(m, n, k, threads // gpu.warp, stages)
        if tile.shared(problem.a_bytes) <= gpu.shared - 2048:
            break
    else:
        return
    yield tile
    total = sum(steps // k for steps in problem.steps)
    blocks = tile.blocks(problem)
    for split in (2, 4, 8, 16):
        # A split must have enough to do, and pays only where blocks leave processors idle.
        if blocks * split <= 2 * gpu.processors and total // split >= 4:
            yield Tile(m, n, k, tile.warps, tile.stages, split)
