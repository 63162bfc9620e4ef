"""Attention plans against exhaustive search and against a walk over their tiles."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.kernels.tiling.attention import ORDERS, measure_attention
from zoomc.targets.errors import CapacityError, LayerError
from zoomc.targets.tiling import KIB, W4A8, Attention, Memory, Words, plan
from zoomc.targets.tiling.attention import unfused

SMALL = st.builds(
    Attention,
    st.just("x"),
    st.integers(1, 2),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 4),
)


@settings(max_examples=80, deadline=None)
@given(SMALL, st.integers(50, 5000), st.booleans())
def test_equals_exhaustive_search(layer, near, twice):
    memory = Memory(near, Words(8, 8, 8, 32), double_buffered=twice)
    least = math.inf
    for waits in ORDERS:
        for tq in range(1, layer.queries + 1):
            for tk in range(1, layer.keys + 1):
                counts = measure_attention(layer, memory, waits, (tq, tk))
                if memory.fits(counts.footprint):
                    least = min(least, counts.total)
    if least == math.inf:
        with pytest.raises(CapacityError, match="one row"):
            plan(layer, memory)
    else:
        found = plan(layer, memory)
        assert found.bits == least >= found.bound


@settings(max_examples=60, deadline=None)
@given(SMALL, st.sampled_from(ORDERS), st.integers(1, 9), st.integers(1, 9))
def test_counts_are_those_of_walked_tiles(layer, waits, tq, tk):
    tq, tk = min(tq, layer.queries), min(tk, layer.keys)
    counts = measure_attention(layer, Memory(1, Words(8, 8, 8, 32)), waits, (tq, tk))
    q_rows = kv_rows = back = out = 0
    queries, keys = range(0, layer.queries, tq), range(0, layer.keys, tk)
    for _ in range(layer.heads):
        held_q = held_kv = None
        seen: dict[int, int] = {}
        for a in queries if waits == "queries" else keys:
            for b in keys if waits == "queries" else queries:
                q, k = (a, b) if waits == "queries" else (b, a)
                rows = min(tq, layer.queries - q)
                if held_q != q:
                    q_rows += rows
                    if held_q is not None and seen[held_q] < len(keys):
                        back += min(tq, layer.queries - held_q)  # its sums leave unfinished
                    held_q = q
                if held_kv != k:
                    kv_rows += min(tk, layer.keys - k)
                    held_kv = k
                seen[q] = seen.get(q, 0) + 1
        out += layer.queries
        assert set(seen.values()) == {len(keys)}
    spilled = back * (layer.value_dim + 2) * 32
    assert counts.reads == (
        q_rows * layer.head_dim * 8,
        kv_rows * (layer.head_dim + layer.value_dim) * 8,
        spilled,
    )
    assert counts.writes == (0, 0, out * layer.value_dim * 8 + spilled)


def test_scores_that_never_travel_save_most_of_the_traffic():
    layer = Attention("self", 5, 4096, 4096, 64)
    memory = Memory(2048 * KIB, W4A8)
    found = plan(layer, memory)
    assert found.distance == 1
    assert found.bits < 0.02 * unfused(layer, memory)
    assert "wait" in found.loops()


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(LayerError, match="bad"):
        Attention("bad", 0, 4, 4, 4)
