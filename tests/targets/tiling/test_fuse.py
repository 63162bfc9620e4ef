"""Plans across layers: their counts against sets of rows, their cuts against every cut."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.targets.tiling import KIB, W4A8, Memory, Step, Words, conv, matmul, plan, plan_network
from zoomc.targets.tiling.fuse import fuse

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from networks import chain, mobilenet, unet_steps, vgg16

W8 = Words(8, 8, 8, 32)


def pair(size=16, channels=8, stride=1):
    a = conv("a", (channels, channels), (size, size))
    b = conv("b", (channels, channels), (size, size), stride=stride)
    return [Step(a), Step(b, follows=True)]


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 20), st.integers(1, 2), st.sampled_from([3 * KIB, 4 * KIB, 6 * KIB]))
def test_a_group_moves_what_its_rows_say(size, stride, near):
    steps = pair(size, 8, stride)
    group = fuse(steps, Memory(near, W8))
    if group is None:
        return
    first, last = (step.layer for step in steps)

    def needed(axis, rows):
        reach = {r * axis.stride - axis.padding[0] + k for r in rows for k in range(axis.kernel)}
        return {y for y in reach if 0 <= y < axis.size}

    rows_out = last.rows.outputs
    tile = -(-rows_out // group.parts)
    read = most = 0
    for start in range(0, rows_out, tile):
        middle = needed(last.rows, range(start, min(start + tile, rows_out)))
        source = needed(first.rows, middle)
        read += len(source)
        most = max(most, len(middle) * 8 * size * 8)
    weights = 8 * 8 * 9 * 8
    passes = [1 if n in group.stays else group.parts for n in ("a", "b")]
    assert group.bits[0] == read * size * 8 * 8
    assert group.bits[1] == sum(weights * n for n in passes)
    assert group.bits[2] == last.output_elements * 8
    assert most < group.near <= near


def test_a_group_that_fits_moves_its_ends_alone():
    steps = pair()
    group = fuse(steps, Memory(64 * KIB, W8))
    assert group.parts == 1
    ends = 8 * 16 * 16 * 8 * 2 + 2 * 8 * 8 * 9 * 8
    assert group.total == ends
    kept = [Step(steps[0].layer, kept=True), steps[1]]
    assert fuse(kept, Memory(64 * KIB, W8)).total == ends + 8 * 16 * 16 * 8


def test_what_needs_the_whole_map_is_not_split():
    steps = pair(64, 8)
    near = 24 * KIB  # the map between takes 32
    split = fuse(steps, Memory(near, W8))
    assert split.parts > 1
    assert split.macs > sum(step.layer.macs for step in steps)  # halo rows are computed anew
    whole = [steps[0], Step(steps[1].layer, follows=True, whole=True)]
    assert fuse(whole, Memory(near, W8)) is None


def test_buffers_of_their_own_fuse_nothing():
    third = 64 * KIB
    found = plan_network(pair(), Memory((third, third, third), W8))
    assert len(found.groups) == 2
    assert found.saving == 0


def test_the_cuts_are_the_best_of_all_cuts():
    layers = [
        matmul("a", 64, 64, 32),
        matmul("b", 64, 128, 64),
        matmul("c", 64, 32, 128),
        matmul("d", 64, 256, 32),
    ]
    steps = [Step(layer, follows=k > 0, kept=k == 1) for k, layer in enumerate(layers)]
    for kib in (8, 12, 20, 40, 200):
        memory = Memory(kib * KIB, W8)
        least = None
        for cuts in itertools.product((False, True), repeat=3):
            edges = [0, *(k + 1 for k, cut in enumerate(cuts) if cut), 4]
            total = 0
            for low, high in itertools.pairwise(edges):
                if high - low == 1:
                    total += plan(layers[low], memory).bits
                else:
                    group = fuse(steps[low:high], memory)
                    total = float("inf") if group is None else total + group.total
            least = total if least is None else min(least, total)
        found = plan_network(steps, memory)
        assert found.bits == least
        assert [s.layer.name for g in found.groups for s in g.steps] == list("abcd")


def test_the_unet_moves_a_fifth_less_than_the_sum_of_its_layers():
    memory = Memory(2048 * KIB, W4A8, double_buffered=True, granule=(64, 64), bus=128)
    found = plan_network(unet_steps(), memory)
    assert found.saving > 0.2
    assert found.bits < found.bound  # fusing goes below the sum of the layers' bounds
    row = found.to_dict()
    assert row["bytes"] == sum(group["bytes"] for group in row["groups"])
    assert f"{len(found.groups)} groups" in str(found)
    assert all(group.near <= memory.near for group in found.groups)


@pytest.mark.parametrize(("network", "least"), [(vgg16, 0.1), (mobilenet, 0.6)])
def test_chains_gain_at_256_kib(network, least):
    assert plan_network(chain(network()), Memory(256 * KIB, W8)).saving > least
