"""Runs of row blocks: the counts behind them against a walk over the loops."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.kernels.tir.traffic import MOST_RUNS, Prices, Share

FREE = Prices(1, 1, 1)


def walked(share, blocks, stays):
    """Bytes of rows and of panels, by walking runs, panels and chunks as the kernel does."""
    run, halo = blocks * share.block, 2 * share.pitch
    rows = panels = 0.0
    last = None
    for start in range(0, share.blocks, blocks):
        for panel in range(share.panels):
            rows += (run + halo) * share.row_bytes if panel == 0 or not stays else 0
            for chunk in range(share.chunks):
                if last != (panel, chunk):
                    panels += share.panel_bytes / share.panels / share.chunks
                last = panel, chunk
    assert start + blocks >= share.blocks
    return rows, panels


SHARES = st.builds(
    Share,
    blocks=st.integers(1, 40),
    block=st.sampled_from([6, 16, 32]),
    pitch=st.sampled_from([0, 1, 10, 66]),
    row_bytes=st.sampled_from([64, 640]),
    chunks=st.integers(1, 3),
    panels=st.integers(1, 6),
    panel_bytes=st.just(6000.0),
    sums=st.sampled_from([0, 64]),
    result=st.sampled_from([0.0, 320.0]),
)


@settings(max_examples=80, deadline=None)
@given(SHARES, st.integers(1, 40), st.sampled_from([0.0, math.inf]))
def test_counts_are_those_of_the_loops(share, blocks, stay):
    blocks = min(blocks, share.blocks)
    rows, panels = walked(share, blocks, stay > 0)
    results = -(-share.blocks // blocks) * blocks * share.block * share.result
    cost = share.cost(blocks, FREE, stay, math.inf)
    assert cost == pytest.approx(rows + panels + results)
    priced = share.cost(blocks, Prices(4, 3, 2), stay, 0.0)
    again = 1 if stay else 4
    assert priced == pytest.approx(again * rows + 3 * panels + 2 * results)


@settings(max_examples=60, deadline=None)
@given(SHARES, st.integers(2000, 400000))
def test_no_other_number_of_blocks_costs_less(share, room):
    prices = Prices(4, 1, 4)
    best = share.best(prices, room, 1.5 * room)
    least = share.cost(best, prices, room, 1.5 * room)
    for runs in range(1, min(share.blocks, MOST_RUNS) + 1):
        assert least <= share.cost(-(-share.blocks // runs), prices, room, 1.5 * room) * (1 + 1e-9)


def test_runs_are_as_long_as_their_rows_stay():
    share = Share(64, 16, 0, 1000, 1, 20, 1e6, 0, 0.0)
    assert share.best(Prices(4, 1, 4), 500_000, 1e9) == 22  # three runs; 32 blocks are 512 kB
    assert share.best(Prices(4, 1, 4), 2e6, 1e9) == 64
