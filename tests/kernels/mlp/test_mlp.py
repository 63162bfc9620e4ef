"""Two linears as one: each kernel beside the reference, which is one linear after the other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import zoomc.kernels.linear.op
import zoomc.kernels.mlp.op  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.tir.kernel import Unsupported, lower
from zoomc.kernels.tir.run import bind, load

from ..coded import MACHINES, block_pruned, check_close, check_exact, coded, exact

MLP, LINEAR = "zoomc::mlp", "zoomc::linear"


def small(machine, l2=4096):
    """A path with so small a cache that few rows are a run, and what lies between does not fit."""
    return dataclasses.replace(MACHINES[machine], l2=l2, threads=2)


@pytest.fixture(autouse=True)
def _machines(monkeypatch):
    for name in list(MACHINES):
        monkeypatch.setitem(MACHINES, name, small(name))


def pair(k, hidden, n, bits, gated=False, make=coded):
    """Weights and scales of both linears, by the operator's names."""
    up, first = make((2 * hidden if gated else hidden, k), bits)
    down, second = make((n, hidden), bits)
    return up, down, first | {f"down_{name}": v for name, v in second.items()}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("bits", [0, 2, 4, 8])
def test_the_second_sums_are_exact(machine, bits):
    # Every value between is an integer up to 127, and each row's largest is 127.
    rows, k, hidden, n = 150, 40, 100, 33
    x = exact((3, rows // 3, k), torch.float32)
    up = torch.zeros(hidden, k, dtype=torch.int8)
    up[torch.arange(hidden), torch.arange(hidden) % k] = 1
    down, second = coded((n, hidden), bits)
    second["channel_scale"] = torch.ones(n)
    extra = {"channel_scale": torch.ones(hidden)}
    extra |= {f"down_{name}": value for name, value in second.items()}
    result = check_exact(machine, MLP, x, up, None, down, **extra)
    assert result.abs().max() > 127


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["geglu", "gelu", "none"])
def test_everything_at_once(machine, dtype, activation):
    torch.manual_seed(0)
    k, hidden, n = 72, 130, 50
    up, down, extra = pair(k, hidden, n, 4, activation == "geglu")
    extra["channel_scale"] = extra["channel_scale"] / 3e4
    extra["down_channel_scale"] = extra["down_channel_scale"] / 3e4
    x = torch.randn(2, 41, k).to(dtype)
    check_close(
        machine,
        MLP,
        x,
        up,
        torch.randn(len(up)).to(dtype),
        down,
        torch.randn(n).to(dtype),
        norm=True,
        norm_weight=torch.randn(k).to(dtype),
        norm_bias=torch.randn(k).to(dtype),
        activation=activation,
        residual=torch.randn(2, 41, n).to(dtype),
        **extra,
    )


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(list(MACHINES)),
    st.integers(1, 200),
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(1, 70),
)
def test_any_shape(machine, rows, k, hidden, n):
    rows = max(rows, 2 * 4096 // (4 * hidden) + 1)  # more than what stays near
    up, down, extra = pair(k, hidden, n, 4)
    x = exact((rows, k), torch.float32)
    kernel = lower(bind(MLP, x, up, None, down, **extra), small(machine))
    got = load(kernel, small(machine))()
    want = OPERATORS[MLP].reference(x, up, None, down, **extra)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("machine", MACHINES)
def test_pruned_blocks_are_left_out_of_both(machine):
    up, down, extra = pair(200, 320, 64, 4, make=lambda s, b: block_pruned(s, b, 50))
    x = exact((60, 200), torch.float32)
    kernel = lower(bind(MLP, x, up, None, down, **extra), MACHINES[machine])
    dense = {**extra, "kept_steps": 0, "down_kept_steps": 0}
    assert kernel.flops < lower(bind(MLP, x, up, None, down, **dense), MACHINES[machine]).flops
    got = load(kernel, MACHINES[machine])()
    want = OPERATORS[MLP].reference(x, up, None, down, **extra)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_not_finite_stays_in_its_rows(machine):
    up, down, extra = pair(64, 96, 40, 4)
    x = torch.randn(80, 64)
    x[7, 3], x[50, 0] = float("nan"), float("inf")
    kernel = lower(bind(MLP, x, up, None, down, **extra), MACHINES[machine])
    got = load(kernel, MACHINES[machine])()
    bad = ~got.isfinite().all(dim=1)
    assert bad.nonzero().flatten().tolist() == [7, 50]


def test_few_rows_are_left_apart():
    up, down, extra = pair(64, 128, 32, 4)
    machine = dataclasses.replace(next(iter(MACHINES.values())), l2=1 << 20)
    with pytest.raises(Unsupported, match="9 rows of 128 hidden values, which stay in the caches"):
        lower(bind(MLP, torch.randn(9, 64), up, None, down, **extra), machine)


def test_weights_without_codes_are_refused():
    machine = next(iter(MACHINES.values()))
    call = bind(MLP, torch.randn(99, 64), torch.randn(128, 64), None, torch.randn(32, 128))
    with pytest.raises(Unsupported, match="not in codes"):
        lower(call, machine)


def test_it_is_one_linear_after_the_other():
    up, down, extra = pair(64, 128, 32, 4, gated=True)
    x, bias, residual = torch.randn(3, 5, 64), torch.randn(256), torch.randn(3, 5, 32)
    first = {n: v for n, v in extra.items() if not n.startswith("down_")}
    second = {n[5:]: v for n, v in extra.items() if n.startswith("down_")}
    linear = OPERATORS[LINEAR].reference
    hidden = linear(x, up, bias, norm=True, activation="geglu", **first)
    want = linear(hidden, down, None, residual=residual, **second)
    got = torch.ops.zoomc.mlp(
        x, up, bias, down, None, norm=True, activation="geglu", residual=residual, **extra
    )
    assert torch.equal(got, want)
    assert OPERATORS[MLP].flops({"x": x, "weight": up, "down": down}) == 2 * 15 * (
        256 * 64 + 32 * 128
    )
