"""The planner's counts for GPUs against programs walked one by one, and how they rank tiles."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install zoomc[gpu]")

from zoomc.kernels.attention.triton_traffic import traffic as attention_traffic
from zoomc.kernels.tiling.layer import Attention, conv, matmul
from zoomc.kernels.tiling.memory import Words
from zoomc.kernels.triton import traffic as module
from zoomc.kernels.triton.gpu import GPUS, Gpu
from zoomc.kernels.triton.kernel import candidates
from zoomc.kernels.triton.tiles import every_tile, roof, tiles, traffic
from zoomc.kernels.triton.traffic import Problem, measured, program, sweep

from .calls import attention, unet


def problem(m: int, n: int, k: int, bits: int = 16) -> Problem:
    words = Words(16, bits, 16, 1, scale=8 if bits == 4 else 0)
    return Problem(matmul("", m, n, k), words, (k,), 2, 64)


def gpu(processors: int, l2: int) -> Gpu:
    return dataclasses.replace(GPUS["sm_90"], processors=processors, l2=l2)


def order(blocks_m: int, blocks_n: int, group: int) -> list[tuple[int, int]]:
    """The blocks as programs take them, spelled out."""
    found = []
    for first in range(0, blocks_m, group):
        rows = range(first, min(first + group, blocks_m))
        found += [(row, column) for column in range(blocks_n) for row in rows]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_what_programs_read_is_what_they_are_walked_to_read(seed):
    random.seed(seed)
    m, n, k = random.randint(1, 90), random.randint(1, 90), 64 * random.randint(1, 3)
    bm, bn, bk = random.choice((8, 16, 64)), random.choice((8, 32)), random.choice((32, 64))
    walked = 0
    for row, column in itertools.product(range(0, m, bm), range(0, n, bn)):
        high, wide = min(bm, m - row), min(bn, n - column)
        walked += high * k * 16 + wide * k * 16 + high * wide * 16
    assert program(problem(m, n, k), bm, bn, bk).total == walked


def walk(blocks_m: int, blocks_n: int, slices: int, group: int, wave: int, room: int) -> int:
    """Slices of rows and columns that an L2 of ``room`` slices, the last used ones, misses.

    ``wave`` programs at a time go through ``k`` in step.
    """
    cache: dict[tuple[str, int, int], None] = {}
    missed = 0
    programs = order(blocks_m, blocks_n, group)
    for first in range(0, len(programs), wave):
        for part in range(slices):
            for row, column in programs[first : first + wave]:
                for key in (("row", row, part), ("column", column, part)):
                    missed += key not in cache
                    cache.pop(key, None)
                    cache[key] = None
                    if len(cache) > room:
                        del cache[next(iter(cache))]
    return missed


def counts_and_walks(blocks_m: int, blocks_n: int, room: int) -> dict[int, tuple[int, int]]:
    """Slices that memory sees by group: as counted, and as walked.

    Blocks are 64×64 by 64 and ``k`` four of them, so that rows and columns weigh the same. The
    cache has twice the room, since half of it is counted on.
    """
    size, wave, found = 64 * 64 * 2, 4, {}
    p, machine = problem(64 * blocks_m, 64 * blocks_n, 256), gpu(4, 2 * room * size)
    for group in (1, 2, 4):
        counts = measured(p, 64, 64, machine, group)
        counted = (counts.total // 8 - p.m * p.n * 2) // size
        found[group] = counted, walk(blocks_m, blocks_n, 4, group, wave, 2 * room)
    return found


@pytest.mark.parametrize("blocks", [(16, 4), (4, 16), (8, 8), (16, 16), (64, 2), (7, 5)], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.6, 1.0, 2.0])
def test_memory_sees_no_more_than_is_counted(blocks, share):
    for counted, walked in counts_and_walks(*blocks, int(share * 4 * sum(blocks))).values():
        assert 4 * sum(blocks) <= walked <= counted


@pytest.mark.parametrize(
    ("blocks", "room"), [((4, 16), 24), ((16, 16), 25), ((16, 4), 48), ((64, 2), 26), ((8, 8), 64)]
)
def test_the_program_order_is_the_one_that_a_walk_finds(blocks, room):
    found = counts_and_walks(*blocks, room)
    assert all(counted == walked for counted, walked in found.values()), found
    machine = gpu(4, 2 * room * 64 * 64 * 2)
    chosen = sweep(problem(64 * blocks[0], 64 * blocks[1], 256), 64, 64, machine).group
    assert found[chosen][1] == min(walked for _, walked in found.values())


def test_a_cache_that_holds_the_weights_sees_all_once():
    p = problem(4096, 1280, 1280)
    once = (p.m * p.k + p.k * p.n + p.m * p.n) * 2
    assert traffic(p, tiles(p, GPUS["sm_90"])[0], GPUS["sm_90"]).dram == once
    small = gpu(8, 1 << 20)
    assert traffic(p, tiles(p, small)[0], small).dram > 1.5 * once


def test_codes_travel_as_codes():
    p, coded = problem(64, 1280, 1280), problem(64, 1280, 1280, 4)
    saved = sweep(p, 64, 64, GPUS["sm_90"]).counts.reads[1]
    assert sweep(coded, 64, 64, GPUS["sm_90"]).counts.reads[1] == saved // 4 + 1280 * 20 * 8


def test_a_convolution_is_read_from_memory_once_and_from_l2_by_tap():
    layer = conv("", (64, 64), (32, 32), 3, batch=2)
    p = Problem(layer, Words(16, 16, 16, 1), (9 * 64,), 2, 64)
    counts = sweep(p, 64, 64, GPUS["sm_90"]).counts
    assert counts.reads[0] == layer.input_elements * 16
    assert program(p, 64, 64, 64).reads[0] == 9 * layer.input_elements * 16


@pytest.mark.parametrize("bits", [16, 4])
def test_the_ranking_is_that_of_everything_there_is(bits):
    for sizes in ((8192, 320, 320), (128, 1280, 5120), (3, 64, 4096)):
        p, machine = problem(*sizes, bits), GPUS["sm_90"]
        everything = list(every_tile(p, machine))
        best = tiles(p, machine)
        assert len(best) == min(8, len(everything)) and set(best) <= set(everything)
        slowest = roof(p, best[-1], machine).seconds
        assert all(roof(p, t, machine).seconds >= slowest for t in set(everything) - set(best))
        assert all(traffic(p, t, machine).dram >= 2 * p.m * p.k for t in everything)


def test_less_traffic_wins_where_memory_is_the_limit():
    p = problem(8192, 8192, 1024)
    slow = dataclasses.replace(GPUS["sm_90"], dram_rate=1e11, l2_rate=2e11)
    best = tiles(p, slow)[0]
    least = min(traffic(p, t, slow).l2 for t in every_tile(p, slow))
    assert roof(p, best, slow).limit in ("memory", "the L2 cache")
    assert traffic(p, best, slow).l2 == least


@pytest.mark.parametrize("name", GPUS)
def test_integers_are_expected_to_win_where_keys_are_many(name):
    def seconds(length, arithmetic):
        call = attention(length, length, 8, 128, arithmetic, torch.float32)
        return candidates(call, GPUS[name])[0].seconds

    assert seconds(4096, "int8") < 0.9 * seconds(4096, "bf16") < 0.9 * seconds(4096, "keep")
    assert seconds(64, "int8") > seconds(64, "bf16")


HALF = Words(16, 16, 16, 1)


def test_attention_counts():
    layer, machine = Attention("", 10, 4096, 4096, 64), GPUS["sm_90"]
    operand = 10 * 4096 * 64 * 2
    for bm in (64, 128):
        found = attention_traffic(layer, HALF, machine, bm, 64)
        assert found.l2 == operand * 2 + 2 * operand * (4096 // bm)
        assert found.dram == 4 * operand
    tiny = gpu(4, 1 << 16)
    assert attention_traffic(layer, HALF, tiny, 64, 64).dram == operand * (2 + 2 * 4096 // 256)


def test_integer_attention_counts_its_codes_too():
    machine = GPUS["sm_90"]
    operand = 2 * 5 * 4096 * 64
    for kernel in candidates(attention(4096, 4096, 5, arithmetic="int8"), machine):
        bm = kernel.launches[-1].arguments["BM"]
        # Keys twice and values once in fp16, their codes written, and read by every program;
        # queries and the result in fp16.
        assert kernel.notes["l2_bytes"] == operand * (6 + 2 + 2 * 4096 // bm + 4)


@pytest.mark.parametrize(("name", "bits"), [("sm_80", 16), ("sm_90", 4), ("gfx942", 8)])
def test_every_tile_of_the_unet_fits_shared_memory(name, bits):
    """By the sizes it is launched with; what the compiler makes of them, test_aot.py reads."""
    machine = GPUS[name]
    for call in unet(bits).values():
        for kernel in candidates(call, machine):
            assert kernel.notes["dram_bytes"] >= kernel.out.nbytes
            for launch in kernel.launches:
                if launch.function.fn.__name__ != "product":
                    continue
                size = kernel.specs[launch.arguments["x0"].name].dtype.itemsize
                rows, columns, deep = (launch.arguments[n] for n in ("BM", "BN", "BK"))
                assert (rows + columns) * deep * size * launch.stages <= machine.shared


def test_programs_are_told_apart_from_orders():
    """The counts are kept by what they depend on, or a whole UNet would take minutes."""
    module.sweep.cache_clear()
    for call in unet(16).values():
        candidates(call, GPUS["sm_90"])
    before = module.sweep.cache_info().misses
    for call in unet(16).values():
        candidates(call, GPUS["sm_90"])
    assert module.sweep.cache_info().misses == before
