from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from zoomc.kernels.tir import pack
from zoomc.kernels.tir.gemm import Depth, Rows, plan
from zoomc.kernels.tir.isa import PATHS, isa, supported
from zoomc.kernels.tir.layout import Layout
from zoomc.kernels.tir.micro import fetching, micro
from zoomc.kernels.tir.pack import panel_count, panels

ALL = [dataclasses.replace(path, threads=threads) for path in PATHS for threads in (1, 2, 6)]


@given(
    st.sampled_from(ALL),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(1, 5000),
    st.integers(1, 200),
    st.integers(1, 300),
    st.integers(1, 20),
)
def test_plan_uses_every_worker_once_and_whole_steps(path, dtype, count, steps, columns, products):
    kernel = micro(path, dtype, count)
    rows = Rows(1, 1, count, count, count, exact=False)
    depth = Depth(1, steps * kernel.kstep, lambda run: 0)
    cut = plan(path, kernel, rows, depth, Layout(path, values=depth.length), columns, products)
    assert cut.batch_workers * cut.row_workers * cut.column_workers == path.threads
    assert cut.chunk % kernel.kstep == 0
    assert 0 < cut.chunk <= depth.length
    assert cut.blocks >= 1


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 40), st.integers(0, 5))
def test_groups_cover_every_pixel(images, height, width, pad):
    rows = Rows(images, height, width, width + pad, height * (width + pad), exact=False)
    for group in (1, 4, 16):
        covered = rows.groups(group) * group
        assert covered >= rows.count
        # Whichever way is chosen, it is no worse than groups that end with each row.
        assert rows.groups(group) <= images * height * -(-width // group)


def packed(weight, kernel, channels, gated=False):
    depth = channels * weight[0, 0].numel() // kernel.kpack
    count = panel_count(len(weight), kernel, gated)
    out = torch.empty(count, depth, kernel.columns * kernel.kpack, dtype=kernel.panel)
    panels(out, weight, kernel, channels, gated)
    return out


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_panels_do_not_depend_on_the_number_of_rows(path, dtype):
    few, many = micro(path, dtype, 1), micro(path, dtype, 4096)
    weight = torch.randn(50, 7, 3)
    channels = -(-7 // many.kstep) * many.kstep
    assert torch.equal(packed(weight, few, channels), packed(weight, many, channels))


def test_panel_layout():
    kernel = micro(isa(supported()[0], 2), torch.bfloat16, 1)
    weight = torch.arange(40 * 64 * 2).view(40, 64, 2).float()
    all_panels = packed(weight, kernel, 64).float()
    n, k = kernel.columns, kernel.kpack
    for column, tap, at in ((0, 0, 0), (5, 0, 3), (7, 1, 2), (39, 1, 63)):
        value = all_panels[column // n, (tap * 64 + at) // k, (column % n) * k + at % k]
        assert value == weight[column, at, tap].bfloat16().float()


@pytest.mark.parametrize("gated", [False, True])
def test_panels_packed_in_pieces(monkeypatch, gated):
    """However few panels fit at a time, and with weights that do not lie densely."""
    kernel = micro(isa(supported()[0], 2), torch.bfloat16, 1)
    weight = torch.randn(10 * kernel.columns + 6, 9, 40).transpose(1, 2)
    whole = packed(weight, kernel, 64, gated)
    monkeypatch.setattr(pack, "_PART", 1)
    assert torch.equal(packed(weight, kernel, 64, gated), whole)


def test_gated_panels_put_a_gate_beside_its_value():
    kernel = micro(isa(supported()[0], 2), torch.float32, 1)
    half = kernel.columns // 2
    weight = torch.arange(4 * half).float().view(-1, 1, 1)
    first = packed(weight, kernel, kernel.kstep, gated=True)[:, 0]
    assert first[0, 0] == 0
    assert first[0, half] == 2 * half
    assert first[1, 0] == half


def test_fetching_covers_the_next_panel():
    tiles = next(path for path in PATHS if path.amx)
    for dtype in (torch.float32, torch.bfloat16):
        base = micro(tiles, dtype, 4096)
        lines = base.kstep * base.columns * base.panel.itemsize // 64
        for blocks in (1, 3, 8):
            assert fetching(base, blocks).ahead * blocks >= lines
        assert fetching(base, 4096).ahead == 0
    plain = micro(dataclasses.replace(tiles, amx=False, bf16_dot=False), torch.float32, 64)
    assert fetching(plain, 2) is plain
