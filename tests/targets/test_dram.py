"""The row-buffer model against published device figures and against burst-by-burst simulation."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.targets.dram import (
    PRESETS,
    ROW_FIRST,
    RowBuffers,
    Run,
    Sram,
    layout,
    stream_cost,
)
from zoomc.targets.errors import MachineError
from zoomc.targets.stream import Stream
from zoomc.targets.tiling import KIB, SCHEDULES, Memory, Schedule, Words, conv, matmul, plan

DDR3, LPDDR4 = PRESETS["ddr3-1600"], PRESETS["lpddr4-3200"]
SMALL = dataclasses.replace(DDR3, row=32, banks=2, chips=2, rows=8)


def test_published_latency_and_energy_by_row_state():
    clocks = [DDR3.latency_ns(s) / 1.25 for s in ("hit", "miss", "conflict")]
    assert clocks == [14, 24, 34]
    assert DDR3.read_pj_per_bit("hit") == pytest.approx(11.1, abs=0.05)
    assert DDR3.read_pj_per_bit("miss") == pytest.approx(39.0, abs=0.05)
    assert LPDDR4.read_pj_per_bit("hit") == pytest.approx(8.5, abs=0.05)
    assert LPDDR4.read_pj_per_bit("miss") == pytest.approx(13.2, abs=0.05)
    assert [PRESETS["lpddr5-6400"].read_pj_per_bit(s) for s in ("hit", "miss")] == [5, 7]


@pytest.mark.parametrize("dram", PRESETS.values(), ids=PRESETS)
def test_a_long_run_flows_at_the_peak_and_opens_each_row_once(dram):
    cost = stream_cost(dram, [Run(0, 64 * dram.row)])
    assert cost.activations == 64
    assert cost.conflicts == max(0, 64 - dram.banks * dram.chips)
    assert cost.nanoseconds < 1.02 * 64 * dram.row / dram.bytes_per_ns + dram.latency_ns("miss")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.integers(1, 100), st.booleans()), min_size=1, max_size=12
    ),
    st.permutations(ROW_FIRST),
)
def test_equals_burst_by_burst_simulation(accesses, order):
    runs = [Run(*a) for a in accesses]
    cost = stream_cost(SMALL, runs, tuple(order))
    sizes = {"column": 4, "chip": 2, "bank": 2, "row": 8}
    open_rows, seen = {}, {"hit": 0, "miss": 0, "conflict": 0}
    bursts = 0
    for run in runs:
        for burst in range(run.start // 8, (run.start + run.length - 1) // 8 + 1):
            rest, place = burst, {}
            for name in order:
                rest, place[name] = divmod(rest, sizes[name])
            key = (place["chip"], place["bank"])
            state = "miss" if key not in open_rows else "conflict"
            seen["hit" if open_rows.get(key) == place["row"] else state] += 1
            open_rows[key] = place["row"]
            bursts += 1
    assert (cost.hits, cost.misses, cost.conflicts) == tuple(seen.values())
    assert cost.bursts == bursts
    energy = cost.reads * 0.7125 + cost.writes * 0.75 + cost.activations * 1.781
    assert cost.nanojoules == pytest.approx(energy + cost.nanoseconds * 0.3375 / 5)
    slowest = cost.bursts * DDR3.latency_ns("conflict")
    assert cost.bursts * 5 < cost.nanoseconds <= slowest


@pytest.mark.parametrize("order", list(itertools.permutations(ROW_FIRST)))
def test_addresses_are_a_bijection(order):
    buffers = RowBuffers(SMALL, order)
    places = {buffers.locate(b) for b in range(SMALL.capacity // SMALL.burst)}
    assert len(places) == SMALL.capacity // SMALL.burst


def test_row_first_opens_the_fewest_rows():
    runs = [Run(0, 4096)]
    wide = dataclasses.replace(DDR3, chips=1)
    opened = {
        order: stream_cost(wide, runs, order).activations
        for order in itertools.permutations(ROW_FIRST)
    }
    assert opened[ROW_FIRST] == min(opened.values()) == 4
    assert max(opened.values()) == 512


def moved(runs):
    reads = sum(r.length for r in runs if not r.write)
    return reads, sum(r.length for r in runs if r.write)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        conv("x", (6, 5), (9, 8), 3, batch=2),
        conv("x", (6, 4), (9, 8), 3, stride=2, groups=2),
        conv("x", (5, 6), (8, 8), 1, stride=2),
        matmul("x", 12, 7, 9),
    ],
    ids=["conv", "groups", "gaps", "matmul"],
)
def test_a_stream_moves_the_bytes_its_plan_predicts(layer, schedule, tiled):
    memory = Memory(2 * KIB, Words(8, 8, 8, 32))
    try:
        found = plan(layer, memory, schedules=[schedule])
    except Exception:
        pytest.skip("this schedule does not fit")
    reads, writes = moved(Stream(found, DDR3, tiled))
    assert reads * 8 == sum(found.counts.reads)
    assert writes * 8 == sum(found.counts.writes)


def test_tiles_in_one_piece_open_fewer_rows_and_cost_less():
    layer = conv("x", (96, 64), (28, 28), 3)
    memory = Memory(16 * KIB, Words(8, 8, 8, 32))
    fixed = [s for s in SCHEDULES if s.stationary == "output"]
    before = plan(layer, memory, schedules=fixed, tiles="tied")
    base = stream_cost(DDR3, Stream(before, DDR3, tiled=False))
    bursts = dataclasses.replace(memory, granule=(8, 8))  # blocks of whole bursts
    ours = stream_cost(DDR3, Stream(plan(layer, bursts), DDR3))
    assert ours.activations < 0.6 * base.activations
    assert ours.nanojoules < 0.95 * base.nanojoules


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 500), st.integers(1, 40), st.integers(0, 80))
def test_bank_conflicts_equal_a_count_of_every_lane(start, lanes, stride):
    sram = Sram(4096, 8, 4)
    words = {(start + k * stride) // 4 for k in range(lanes)}
    load = [sum(w % 8 == bank for w in words) for bank in range(8)]
    assert sram.cycles(start, lanes, stride) == max(load)
    assert sram.conflicts(start, lanes, stride) == max(0, max(load) - -(-lanes // 8))


def test_consecutive_words_never_conflict_and_a_bank_apart_always_do():
    sram = Sram(64 << 10, 16, 8)
    assert sram.conflicts(0, 16, 8) == 0
    assert sram.conflicts(0, 16, 8 * 16) == 15
    assert {sram.locate(8 * k)[0] for k in range(16)} == set(range(16))


def test_tensors_start_on_rows():
    assert layout([1, 1024, 1025, 5], DDR3) == [0, 1024, 2048, 4096]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"burst": 0}, "burst is 0"),
        ({"read_nj": -1.0}, "read_nj"),
        ({"row": 1001}, "whole bursts"),
    ],
)
def test_devices_that_make_no_sense_are_refused(change, message):
    with pytest.raises(MachineError, match=message):
        dataclasses.replace(DDR3, **change)


def test_impossible_accesses_and_memories_are_refused():
    with pytest.raises(MachineError, match="ends at"):
        stream_cost(SMALL, [Run(SMALL.capacity - 1, 2)])
    with pytest.raises(MachineError, match="address order"):
        RowBuffers(DDR3, ("row", "row", "bank", "chip"))
    with pytest.raises(MachineError, match="does not divide"):
        Sram(1000, 16, 8)
    with pytest.raises(MachineError, match="positive"):
        Sram(0, 16, 8)
    assert stream_cost(DDR3, []).nanoseconds == 0
    assert stream_cost(DDR3, [Run(0, 0)]).bursts == 0
    assert Schedule("soi").stationary == "output"
