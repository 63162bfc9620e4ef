"""Tiles of a product: which there are, and by the planner's counts which looks fastest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .gpu import Gpu
from .traffic import Problem, program, sweep

#: Seconds from one launch's end to the next one's start inside a CUDA graph.
LAUNCH = 1.5e-6


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
    group: int = 1

    def blocks(self, problem: Problem) -> int:
        """Blocks of the result."""
        return math.ceil(problem.m / self.m) * math.ceil(problem.n / self.n)


@dataclass(frozen=True)
class Traffic:
    """Bytes a product moves: between L2 and multiprocessors, and to and from memory."""

    l2: int
    dram: int


@dataclass(frozen=True)
class Roof:
    """What a kernel is expected to take, what makes it so long, and its arithmetic alone."""

    seconds: float
    limit: str
    arithmetic: float


def traffic(problem: Problem, tile: Tile, gpu: Gpu) -> Traffic:
    """Bytes moved by a product under a tile, by the planner's count.

    Partial sums are written by every split and read once more; memory sees them where L2 does not
    hold them.
    """
    partial = 2 * 4 * problem.m * problem.n * tile.split if tile.split > 1 else 0
    l2 = program(problem, tile.m, tile.n, tile.k).total // 8 + partial
    dram = sweep(problem, tile.m, tile.n, gpu).counts.total // 8
    return Traffic(l2, dram + (partial if partial > gpu.l2 else 0))


def roof(problem: Problem, tile: Tile, gpu: Gpu) -> Roof:
    """What a tile is expected to take: whichever of arithmetic, L2 and memory is slowest."""
    programs = tile.blocks(problem) * tile.split
    depth = math.ceil(problem.k / tile.k / tile.split) * tile.k
    # Operands pass through shared memory, at 128 bytes a cycle, once in and once out.
    loads = (tile.m + tile.n) * problem.a_bytes * 2 / 128
    decode = tile.n * (5.0 if problem.w_bits == 4 else 0.0) / 128
    work = tile.m * problem.work / 128
    macs = tile.m * tile.n / gpu.macs[problem.a_bytes]
    cycles = depth * max(macs + 0.5 * (decode + work), loads, decode + work)
    # What a program does at every step, and before its first and after its last.
    cycles += 40 * depth / tile.k + 1000 + tile.m * tile.n * 4 / 128
    moved = traffic(problem, tile, gpu)
    busy = min(1.0, programs / gpu.processors)
    return slowest(
        math.ceil(programs / gpu.processors) * cycles / gpu.clock,
        moved,
        gpu,
        busy,
        LAUNCH * (2 if tile.split > 1 else 1),
    )


def slowest(arithmetic: float, moved: Traffic, gpu: Gpu, busy: float, launches: float) -> Roof:
    """The roofline.

    Args:
        arithmetic: seconds of what multiprocessors compute.
        moved: bytes.
        gpu: whose rates.
        busy: the part of the multiprocessors that ask for them.
        launches: seconds besides.
    """
    limits = {
        "arithmetic": arithmetic,
        "the L2 cache": moved.l2 / (gpu.l2_rate * busy),
        "memory": moved.dram / (gpu.dram_rate * busy),
    }
    limit = max(limits, key=limits.__getitem__)
    return Roof(limits[limit] + launches, limit, arithmetic)


@lru_cache(maxsize=4096)
def tiles(problem: Problem, gpu: Gpu, keep: int = 8) -> tuple[Tile, ...]:
    """The tiles expected to be fastest, best first; ``keep`` of them.

    Among equally fast ones, those that move less, then those that compute less.
    """

    def price(tile: Tile) -> tuple[float, int, int, float]:
        moved, found = traffic(problem, tile, gpu), roof(problem, tile, gpu)
        return found.seconds, moved.dram, moved.l2, found.arithmetic

    return tuple(sorted(every_tile(problem, gpu), key=price)[:keep])


def every_tile(problem: Problem, gpu: Gpu) -> Iterator[Tile]:
    """Every tile that fits the GPU's registers and shared memory, in its best program order.

    A tensor-core instruction takes 64 rows, so no block has fewer.
    """
    for tile in _sizes(problem, gpu):
        yield dataclasses.replace(tile, group=sweep(problem, tile.m, tile.n, gpu).group)


def _sizes(problem: Problem, gpu: Gpu) -> Iterator[Tile]:
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


def _waiting(problem: Problem, m: int, k: int) -> int:
    """Registers of rows that wait to be quantised on their way, as they were loaded."""
    return m * k * problem.loaded // 4 if problem.loaded > problem.a_bytes else 0


def _fitting(problem: Problem, gpu: Gpu, m: int, n: int, k: int) -> Iterator[Tile]:
    threads = gpu.warp * (8 if m * n >= 128 * 128 else 4)
    # Sums of one block, in registers of one thread. They share them with addresses, with whatever
    # is decoded or normalised on its way, with a residual, and with the parts fp32 is split into.
    # On sm_100 sums have a memory of their own, but come back from it at the end.
    alone = not (problem.work or problem.gathers or problem.layer.extra_reads)
    plain = alone and problem.w_bits == 16
    crowded = problem.a_bytes == 4 or (problem.work and problem.gathers)
    room = 32 if crowded else 128 if plain and gpu.name != "sm_100" else 64
    if gpu.kind == "hip" and problem.w_bits == 4:
        room = 16  # decoded by shifts and selects
    if m * n > room * threads:
        return
    if gpu.crowds and m * n + _waiting(problem, m, k) > 96 * threads:
        return
    block = sum(program(problem, m, n, k).footprint) // 8
    for stages in range(2 if gpu.kind == "hip" else 4, 1, -1):
        if block * stages <= gpu.shared - 2048:
            break
    else:
        return
    tile = Tile(m, n, k, threads // gpu.warp, stages)
    yield tile
    total = sum(steps // k for steps in problem.steps)
    blocks = tile.blocks(problem)
    for split in (2, 4, 8, 16):
        # A split must have enough to do, and pays only where blocks leave processors idle.
        if blocks * split <= 2 * gpu.processors and total // split >= 4:
            yield dataclasses.replace(tile, split=split)
