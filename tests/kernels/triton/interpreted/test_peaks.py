"""Largest magnitudes of rows that the kernel writing them gathers, and rows quantised by them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoomc.kernels.attention.op
import zoomc.kernels.linear.op
import zoomc.kernels.norm.op  # noqa: F401
from zoomc.kernels.triton.kernel import (
    Call,
    Kernel,
    TensorSpec,
    Value,
    candidates,
    gathering_peaks,
    given_peaks,
)
from zoomc.kernels.triton.maps import peaks_of
from zoomc.kernels.triton.run import bind, evaluate

from ...coded import coded
from .compare import GPU


def ways(call: Call) -> list[Kernel]:
    """One kernel for every way there is to run a call."""
    found: dict[Any, Kernel] = {}
    for kernel in candidates(call, GPU):
        way = [kernel.notes.get(name) for name in ("route", "weights")]
        found.setdefault((*way, kernel.notes.get("split", 1) > 1), kernel)
    return list(found.values())


@pytest.mark.parametrize("activation", ["none", "geglu"])
@pytest.mark.parametrize("k", [32, 256], ids=["", "split"])
def test_gathered_beside_the_result(activation, k):
    torch.manual_seed(0)
    x, weight = torch.randn(70, k).half(), torch.randn(144, k).half() / k**0.5
    x[3, 5] = float("nan")
    for kernel in ways(gathering_peaks(bind("zoomc::linear", x, weight, activation=activation))):
        expected = kernel.extras["peaks"].of(evaluate(kernel))
        got = evaluate(kernel, result="peaks")
        assert got[3].isnan().all() and got.isnan().sum() == got.shape[1]
        assert torch.equal(got.nan_to_num(), expected.nan_to_num()), dict(kernel.notes)
        if kernel.notes["split"] == 1:
            tile = int(kernel.notes["tile"].split("x")[1])
            assert got.shape[1] == -(-144 // tile)


def test_a_group_norm_gathers_them_too():
    torch.manual_seed(0)
    x = torch.randn(2, 37, 72).half()
    x[1, 5, 70] = float("nan")
    call = gathering_peaks(bind("zoomc::group_norm", x, 9, activation="silu"))
    (kernel,) = candidates(call, GPU)
    expected = kernel.extras["peaks"].of(evaluate(kernel))
    got = evaluate(kernel, result="peaks")
    assert got.shape == (74, 2) and got.isnan().any()
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("arithmetic", ["keep", "int8"])
@pytest.mark.parametrize(("queries", "dim"), [(70, 40), (3, 16)])
def test_attention_gathers_them_by_head(queries, dim, arithmetic):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 3 * dim).half() for n in (queries, 33, 33))
    q[1, 2, dim] = float("nan")  # of the second head
    q[0] *= 100
    kwargs = {"heads": 3, "head_dim": dim, "scale": 0.2, "arithmetic": arithmetic}
    for kernel in candidates(gathering_peaks(bind("zoomc::attention", q, k, v, **kwargs)), GPU):
        expected = kernel.extras["peaks"].of(evaluate(kernel))
        got = evaluate(kernel, result="peaks")
        assert got.shape == (2 * queries, 3)
        assert got.isnan().nonzero().tolist() == [[queries + 2, 1]]
        assert torch.equal(got.nan_to_num(), expected.nan_to_num()), dict(kernel.notes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "k", "bits"), [(70, 72, 8), (3, 256, 4)])
def test_codes_are_those_of_a_pass(dtype, rows, k, bits):
    torch.manual_seed(rows)
    x = torch.randn(rows, k).to(dtype)
    x[1] *= 1e4
    x[2] = 0
    weight, extra = coded((24, k), bits)
    extra["channel_scale"] /= 1000
    call = bind("zoomc::linear", x, weight, torch.randn(24).to(dtype), **extra)
    assert all(kernel.scaled == "x" for kernel in candidates(call, GPU))
    peaks = peaks_of(x, 4)  # more blocks than are read at a time
    value = Value(TensorSpec(tuple(peaks.shape), torch.float32), source=peaks)
    found = {k.notes["route"]: [] for k in candidates(given_peaks(call, value), GPU)}
    for kernel in ways(given_peaks(call, value)):
        found[kernel.notes["route"]].append(evaluate(kernel))
    first = found["prepared"][0]
    assert len(found["quantised in the load"]) > 0
    assert all(torch.equal(y, first) for ys in found.values() for y in ys)


def test_what_is_not_finite_spoils_its_row_alone():
    x = torch.randn(5, 64)
    x[2, 7] = float("nan")
    weight, extra = coded((16, 64), 8)
    peaks = peaks_of(x, 32)
    value = Value(TensorSpec((5, 2), torch.float32), source=peaks)
    for kernel in ways(given_peaks(bind("zoomc::linear", x, weight, **extra), value)):
        finite = evaluate(kernel).isfinite().all(1)
        assert finite.tolist() == [True, True, False, True, True]


def test_not_where_rows_change_before_they_are_quantised():
    weight, extra = coded((16, 64), 8)
    for more in ({"norm": True}, {"pre_activation": "silu"}):
        call = bind("zoomc::linear", torch.randn(5, 64), weight, **extra, **more)
        assert not any(kernel.scaled for kernel in candidates(call, GPU))
