"""The planner against exhaustive search, and its counts against loops that are really walked."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.kernels.tiling.schedule import IGNORES, OPERANDS, every_tiling
from zoomc.targets.errors import CapacityError, LayerError, MachineError
from zoomc.targets.tiling import (
    KIB,
    SCHEDULES,
    W4A8,
    Axis,
    Conv,
    Memory,
    Schedule,
    Tiles,
    Words,
    conv,
    lower_bound,
    matmul,
    measure,
    plan,
)
from zoomc.targets.tiling.bus import aligned
from zoomc.targets.tiling.search import cost, legal


@st.composite
def axes(draw):
    kernel = draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    span = (kernel - 1) * dilation + 1
    size = draw(st.integers(max(1, span - sum(padding)), 6))
    return Axis(size, kernel, draw(st.integers(1, 3)), padding, dilation)


@st.composite
def layers(draw):
    groups = draw(st.integers(1, 2))
    depth, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    batch = draw(st.integers(1, 2))
    rows, columns = draw(axes()), draw(axes())
    extra = draw(st.integers(0, 5))
    return Conv("x", batch, depth * groups, width * groups, rows, columns, groups, extra)


@st.composite
def memories(draw):
    words = Words(
        input=draw(st.sampled_from([4, 8, 16])),
        weight=draw(st.sampled_from([4, 8])),
        output=draw(st.sampled_from([8, 16])),
        psum=draw(st.sampled_from([16, 32])),
        near_weight=draw(st.sampled_from([0, 8])),
        scale=draw(st.sampled_from([0, 8])),
        group=2,
    )
    sizes = st.integers(40, 6000)
    near = draw(sizes | st.tuples(sizes, sizes, sizes))
    granule = draw(st.sampled_from([(1, 1), (2, 2), (1, 3)]))
    return Memory(near, words, double_buffered=draw(st.booleans()), granule=granule)


def best(layer, memory, objective="traffic"):
    """The least cost over every tile size and schedule there is."""
    least = math.inf
    for tiles in every_tiling(layer):
        if not legal(layer, memory, tiles):
            continue
        for schedule in SCHEDULES:
            counts = measure(layer, memory, schedule, tiles)
            if memory.fits(counts.footprint):
                counts = aligned(layer, memory, schedule, tiles, counts)
                least = min(least, cost(layer, memory, objective, counts))
    return least


def walk(layer: Conv, words: Words, schedule: Schedule, tiles: Tiles):
    """Walk the loops, hold what the residency says, count every element that moves."""
    ranges = {
        "s": list(
            itertools.product(
                range(0, layer.batch, tiles.n),
                range(0, layer.rows.outputs, tiles.p),
                range(0, layer.columns.outputs, tiles.q),
            )
        ),
        "o": range(0, layer.width, tiles.o),
        "i": range(0, layer.depth, tiles.i),
    }

    def region(operand, at, group):
        """The coordinates an operand's buffer holds; at[d] is None where it covers d."""
        groups = range(group, min(group + tiles.g, layer.groups))
        spatial = ranges["s"] if at["s"] is None else [at["s"]]
        out = range(layer.width) if at["o"] is None else range(at["o"], at["o"] + tiles.o)
        depth = range(layer.depth) if at["i"] is None else range(at["i"], at["i"] + tiles.i)
        out, depth = [o for o in out if o < layer.width], [i for i in depth if i < layer.depth]
        if operand == "weight":
            return set(itertools.product(groups, out, depth))
        places = set()
        for n0, p0, q0 in spatial:
            images = range(n0, min(n0 + tiles.n, layer.batch))
            p = range(p0, min(p0 + tiles.p, layer.rows.outputs))
            q = range(q0, min(q0 + tiles.q, layer.columns.outputs))
            if operand == "input":
                p, q = fetched(layer.rows, p), fetched(layer.columns, q)
            places |= set(itertools.product(images, p, q))
        return set(itertools.product(groups, places, depth if operand == "input" else out))

    def fetched(axis, outputs):
        reach = {o * axis.stride - axis.padding[0] + k for o in outputs for k in range(axis.span)}
        if not axis.gaps:
            reach = set(range(min(reach), max(reach) + 1))
        return {y for y in reach if 0 <= y < axis.size}

    moved = {"input": 0, "weight": 0, "read": 0, "spilled": 0, "written": 0}
    most = dict.fromkeys(OPERANDS, 0)
    for group in range(0, layer.groups, tiles.g):
        held = dict.fromkeys(OPERANDS)
        finished, sums = set(), {}
        for point in itertools.product(*(ranges[d] for d in schedule.order)):
            at = dict(zip(schedule.order, point, strict=True))
            for operand in OPERANDS:
                key = {d: v for d, v in at.items() if d != IGNORES[operand]}
                residency = schedule.residency(operand)
                if residency == "whole":
                    key = dict.fromkeys(key)
                elif residency == "inner":
                    key[schedule.order[2]] = None
                where = tuple(sorted(key.items()))
                if held[operand] and held[operand][0] == where:
                    continue
                content = region(operand, {"o": None, "s": None, "i": None} | key, group)
                most[operand] = max(most[operand], len(content))
                if operand == "output":
                    if held[operand]:
                        left = held[operand][1]
                        moved["spilled"] += len(left - finished)
                        moved["written"] += len(left & finished)
                    moved["read"] += sum(x in sums for x in content)
                else:
                    moved[operand] += len(content)
                held[operand] = (where, content)
            now = region("output", at, group)
            for x in now:
                sums[x] = sums.get(x, 0) + min(tiles.i, layer.depth - at["i"])
            finished |= {x for x in now if sums[x] == layer.depth}
        moved["written"] += len(held["output"][1])
        assert held["output"][1] <= finished
    return moved, most


@settings(max_examples=150, deadline=None)
@given(layers(), st.sampled_from(SCHEDULES), st.data())
def test_counts_are_those_of_walked_loops(layer, schedule, data):
    words = Words(input=8, weight=4, output=8, psum=32)
    tiles = Tiles(
        *(
            data.draw(st.integers(1, size))
            for size in (
                layer.batch,
                layer.rows.outputs,
                layer.columns.outputs,
                layer.groups,
                layer.width,
                layer.depth,
            )
        )
    )
    counts = measure(layer, Memory(1, words), schedule, tiles)
    moved, most = walk(layer, words, schedule, tiles)
    assert counts.reads == (
        (moved["input"] + layer.extra_reads) * 8,
        moved["weight"] * layer.taps * 4,
        moved["read"] * 32,
    )
    assert counts.writes == (0, 0, moved["written"] * 8 + moved["spilled"] * 32)
    held = (most["input"] * 8, most["weight"] * layer.taps * 4, most["output"] * 32)
    if layer.groups % tiles.g == 0 or tiles.g == 1:
        assert counts.footprint[1:] == held[1:]
        assert counts.footprint[0] >= held[0]  # a clipped corner may be smaller than its box


@settings(max_examples=60, deadline=None)
@given(layers(), memories(), st.sampled_from(["traffic", "energy"]))
def test_equals_exhaustive_search(layer, memory, objective):
    expected = best(layer, memory, objective)
    if expected == math.inf:
        with pytest.raises(CapacityError, match="smallest needs"):
            plan(layer, memory, objective)
        return
    found = plan(layer, memory, objective)
    assert found.exact
    assert memory.fits(found.counts.footprint)
    assert legal(layer, memory, found.tiles)
    assert cost(layer, memory, objective, found.counts) == pytest.approx(expected, rel=1e-12)
    assert found.counts == measure(layer, memory, found.schedule, found.tiles)
    if objective == "energy":
        assert found.picojoules == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        lambda size, kernel, channels, stride: conv(
            "x", channels, (size, size + 1), kernel, stride=stride
        ),
        st.integers(3, 5),
        st.sampled_from([1, 3]),
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
        st.integers(1, 2),
    ),
    st.integers(200, 2000),
    st.sampled_from([32, 64, 128]),
    st.sampled_from(["nhwc", "nchw"]),
)
def test_equals_exhaustive_search_in_bus_words(layer, near, bus, layout):
    memory = Memory(near, Words(8, 8, 8, 16), bus=bus, layout=layout)
    found = plan(layer, memory)
    if found.exact:
        assert found.bits == best(layer, memory)
    assert found.bits % bus == 0
    assert found.bits >= plan(layer, Memory(near, memory.words)).bits


@settings(max_examples=60, deadline=None)
@given(layers(), st.integers(1, 100_000), st.sampled_from([Words(), W4A8, Words(8, 8, 8, 32)]))
def test_no_schedule_goes_below_the_bound(layer, near, words):
    try:
        found = plan(layer, Memory(near, words))
    except CapacityError:
        return
    assert found.bits >= found.bound
    assert found.distance >= 1


def test_endless_near_memory_moves_everything_once():
    layer = conv("x", (5, 7), (9, 11), 3, stride=2)
    found = plan(layer, Memory(10**9))
    assert found.bits == found.bound
    assert found.bits == 16 * (9 * 11 * 5 + 7 * 5 * 9 + 5 * 6 * 7)


def test_more_memory_never_costs_more():
    layer = conv("x", (64, 96), (28, 28), 3)
    sizes = [plan(layer, Memory(kib * KIB)).bits for kib in (2, 4, 8, 16, 32, 64, 128, 256)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]


def test_a_buffer_per_operand_never_beats_one_they_share():
    layer = conv("x", (64, 96), (28, 28), 3)
    third = 20 * KIB
    apart = plan(layer, Memory((third, third, third)))
    assert apart.bits > plan(layer, Memory(3 * third)).bits
    assert all(bits <= third for bits in apart.counts.footprint)


def test_double_buffering_holds_refilled_tiles_twice():
    layer = matmul("x", 64, 64, 64)
    once = plan(layer, Memory(8 * KIB))
    twice = plan(layer, Memory(8 * KIB, double_buffered=True))
    assert twice.bits > once.bits
    single = measure(layer, once.memory, twice.schedule, twice.tiles)
    assert sum(single.footprint) < sum(twice.counts.footprint) <= 8 * KIB


def test_matmul_reaches_the_published_bound_asymptotically():
    # COSMA: 2mnk/√S + mn, in words.
    m = n = k = 512
    words = 64 * 64 + 2 * 64
    found = plan(matmul("x", m, n, k), Memory(words * 16))
    assert found.bound == pytest.approx(16 * (2 * m * n * k / words**0.5 + m * n), rel=1e-6)
    assert found.distance < 1.05


def test_depthwise_moves_everything_once_in_very_little_memory():
    layer = conv("x", (512, 512), (14, 14), 3, groups=512)
    found = plan(layer, Memory(1 * KIB))
    assert found.distance == 1
    assert found.tiles.g == 1


def test_a_stride_past_the_kernel_leaves_rows_unread():
    layer = conv("x", (8, 8), (8, 8), 1, stride=2)
    assert layer.input_elements == 8 * 16
    assert plan(layer, Memory(KIB)).operand_bytes()["input"] == 8 * 16 * 2


def test_group_scales_travel_with_their_codes():
    layer = matmul("x", 16, 32, 192)
    found = plan(layer, Memory(64 * KIB, W4A8))
    assert found.operand_bytes()["weight"] == 32 * (192 // 2 + 3)
    tight = plan(layer, Memory(6 * KIB, W4A8))
    assert tight.tiles.i % 64 == 0


def test_plans_are_data():
    layer = conv("x", (64, 96), (28, 28), 3)
    a, b = (plan(layer, Memory(16 * KIB)) for _ in range(2))
    assert a == b and hash(a.tiles) == hash(b.tiles)
    assert a != plan(layer, Memory(32 * KIB))
    row = a.to_dict()
    assert row["bytes"] == sum(row["operands"].values())
    assert str(a).startswith(f"x: {a.bytes:,} bytes")
    assert "× its bound" in str(a)


@pytest.mark.parametrize(
    "make",
    [
        lambda: conv("bad", (0, 4), (8, 8)),
        lambda: conv("bad", (4, 4), (8, 8), groups=3),
        lambda: conv("bad", (4, 4), (2, 2), 5, padding=0),
        lambda: conv("bad", (4, 4), (8, 8), stride=0),
        lambda: conv("bad", (4, 4), (8, 8), padding=-1),
        lambda: matmul("bad", 4, 0, 4),
        lambda: matmul("bad", 4, 3, 4, gated=True),
    ],
)
def test_layers_that_make_no_sense_are_refused(make):
    with pytest.raises(LayerError, match="bad"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Memory(0),
        lambda: Memory((1, 0, 1)),
        lambda: Memory(8, bus=-1),
        lambda: Memory(8, granule=(0, 1)),
        lambda: Memory(8, layout="hwc"),
        lambda: Words(input=0),
        lambda: Words(scale=-1),
    ],
)
def test_memories_that_make_no_sense_are_refused(make):
    with pytest.raises(MachineError):
        make()


def test_a_layer_larger_than_any_buffer_says_how_much_it_needs():
    with pytest.raises(CapacityError, match=r"huge: no tile fits .* 8 bytes; .* needs \d+ bytes"):
        plan(conv("huge", (512, 512), (64, 64), 11), Memory(64))


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="traffic"):
        plan(matmul("x", 2, 2, 2), Memory(KIB), "latency")


def test_lower_bound_counts_every_operand_at_least_once():
    layer = conv("x", (3, 8), (16, 16))
    assert lower_bound(layer, Memory(10**9)) == 16 * (3 * 256 + 3 * 8 * 9 + 8 * 256)
