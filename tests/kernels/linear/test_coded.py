from __future__ import annotations

import dataclasses

import pytest
import torch
import zoomc.kernels.linear.op  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.kernels.integer import LONGEST
from zoomc.kernels.tir.isa import isa
from zoomc.kernels.tir.kernel import Call, TensorSpec, Unsupported, Value, lower
from zoomc.kernels.tir.run import bind, run
from zoomc.kernels.weights.pruning import PruningError

from ..coded import MACHINES, block_pruned, check_close, check_exact, coded, exact

LINEAR = "zoomc::linear"


def unit(extra):
    """The arguments with channel scales of 1: results are the integer sums themselves."""
    return {**extra, "channel_scale": torch.ones_like(extra["channel_scale"])}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("rows", "k", "n", "bits"),
    [
        ((5,), 100, 7, 0),
        ((2, 40), 640, 96, 4),
        ((77,), 1000, 33, 2),
        ((1,), 63, 40, 4),
        ((3, 3, 9), 130, 100, 8),
        ((33,), 65, 1, 4),
    ],
)
def test_sums_are_exact(machine, rows, k, n, bits):
    weight, extra = coded((n, k), bits)
    check_exact(machine, LINEAR, exact((*rows, k), torch.float32), weight, **unit(extra))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("rows", "k", "n", "bits", "share"),
    [(5, 200, 70, 4, 50), (33, 1500, 33, 0, 30), (1, 130, 128, 2, 70), (40, 65, 40, 8, 50)],
)
def test_steps_left_out_change_no_sum(machine, rows, k, n, bits, share):
    weight, extra = block_pruned((n, k), bits, share)
    assert 0 < extra["kept_steps"] < -(-k // 64)
    check_exact(machine, LINEAR, exact((rows, k), torch.float32), weight, **unit(extra))


@pytest.mark.parametrize("machine", MACHINES)
def test_pruned_panels_are_smaller_and_do_less(machine):
    weight, extra = block_pruned((256, 1280), 4, 75)
    plain = {**extra, "kept_steps": 0}
    pruned, dense = (
        lower(bind(LINEAR, torch.randn(9, 1280), weight, **some), MACHINES[machine])
        for some in (extra, plain)
    )
    assert pruned.flops * 4 == dense.flops
    sizes = [sum(o.spec.nbytes for o in kernel.operands[1:]) for kernel in (pruned, dense)]
    assert sizes[0] < 0.28 * sizes[1]
    assert len(dense.operands) == len(pruned.operands) - 1


def test_weights_that_keep_more_than_they_say_are_refused():
    weight, extra = block_pruned((64, 256), 4, 50)
    extra["kept_steps"] -= 1
    with pytest.raises(PruningError, match=r"kept_steps=1 .*prune it by blocks"):
        run(isa(threads=1), LINEAR, torch.randn(2, 256), weight, **extra)


@pytest.mark.skipif("amx" not in MACHINES, reason="a path with tiles")
@pytest.mark.parametrize(
    ("k", "l1", "chunk", "halves"),
    [(1664, 48 << 10, 9, 2), (1000, 1 << 20, 16, 2), (1664, 16 << 10, 4, 1)],
    ids=["several chunks", "one chunk", "no room"],
)
def test_codes_decoded_beside_other_products_change_no_sum(k, l1, chunk, halves, monkeypatch):
    machine = dataclasses.replace(MACHINES["amx"], l1=l1)
    monkeypatch.setitem(MACHINES, "small", machine)
    weight, extra = coded((200, k), 4)
    x = exact((64, k), torch.float32)
    kernel = lower(bind(LINEAR, x, weight, **unit(extra)), machine)
    assert kernel.plan.chunk == chunk
    assert kernel.scratch[-1].numel == machine.threads * halves * chunk * 64 * 32
    check_exact("small", LINEAR, x, weight, **unit(extra))


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(list(MACHINES)),
    st.sampled_from([0, 2, 4, 8]),
    st.integers(1, 70),
    st.integers(1, 300),
    st.integers(1, 70),
)
def test_sums_are_exact_for_any_shape(machine, bits, rows, k, n):
    weight, extra = coded((n, k), bits)
    check_exact(machine, LINEAR, exact((rows, k), torch.float32), weight, **unit(extra))


@pytest.mark.parametrize("machine", MACHINES)
def test_sums_are_exact_at_the_corners(machine):
    k = 9000  # several chunks of K; the largest sum is 145 million
    x = torch.full((6, k), 127.0)
    x[1], x[2] = -127, 0
    x[3, 1:], x[4, ::2] = 0, -127  # an outlier alone, alternating signs
    x[5, 64:128] = 0
    weight = torch.full((5, k), 127, dtype=torch.int8)
    weight[1], weight[2], weight[3, ::2] = -127, 0, -127
    extra = {"channel_scale": torch.ones(5)}
    result = check_exact(machine, LINEAR, x, weight, **extra)
    assert result.abs().max() == 127 * 127 * k
    codes = torch.zeros(5, k, dtype=torch.uint8)
    codes[0], codes[1], codes[2, ::2] = 15, 0, 15
    extra["table"] = torch.arange(-8, 8, dtype=torch.int8)
    extra["group_scale"] = torch.full((5, -(-k // 64)), 15, dtype=torch.int8)
    extra["group_scale"][3] = 1
    check_exact(machine, LINEAR, x, codes, **extra)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_at_once(machine, dtype):
    torch.manual_seed(0)
    weight, extra = coded((72, 140), 4)
    extra["channel_scale"] *= 2e-3
    check_close(
        machine,
        LINEAR,
        torch.randn(2, 25, 140).to(dtype),
        weight,
        torch.randn(72).to(dtype),
        norm=True,
        norm_weight=torch.randn(140).to(dtype),
        norm_bias=torch.randn(140).to(dtype),
        pre_activation="silu",
        activation="relu",
        residual=torch.randn(2, 25, 72).to(dtype),
        **extra,
    )


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("n", "bits"), [(128, 4), (14, 0)])
def test_geglu(machine, n, bits):
    torch.manual_seed(0)
    weight, extra = coded((n, 96), bits)
    extra["channel_scale"] *= 1e-3
    x, bias = torch.randn(37, 96).bfloat16(), torch.randn(n).bfloat16()
    residual = torch.randn(37, n // 2).bfloat16()
    check_close(machine, LINEAR, x, weight, bias, activation="geglu", residual=residual, **extra)


@pytest.mark.parametrize("machine", MACHINES)
def test_pruned_geglu(machine):
    weight, extra = block_pruned((192, 160), 4, 50, gated=True)
    assert extra["kept_steps"] == 2
    extra["channel_scale"] *= 1e-5
    x = exact((37, 160), torch.float32)
    check_close(machine, LINEAR, x, weight, activation="geglu", **extra)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("rows", "k", "n", "bits"), [((3, 11), 130, 33, 4), ((1,), 63, 40, 0)])
def test_given_bounds_are_every_row_s(machine, rows, k, n, bits):
    weight, extra = coded((n, k), bits)
    x = exact((*rows, k), torch.float32)
    x[0] *= 1e36  # beyond what fp32 can multiply
    extra["bounds"] = torch.tensor([-63.5, 20])  # the scale is 1/2: many values lie beyond
    assert check_exact(machine, LINEAR, x, weight, **unit(extra)).isfinite().all()


@pytest.mark.parametrize("machine", MACHINES)
def test_given_bounds_behind_a_norm_and_before_geglu(machine):
    torch.manual_seed(0)
    weight, extra = coded((128, 70), 4)
    extra |= {"channel_scale": extra["channel_scale"] * 1e-3, "bounds": torch.tensor([-1.0, 1.6])}
    x, gain = torch.randn(3, 13, 70).bfloat16(), torch.randn(70).bfloat16()
    check_close(
        machine, LINEAR, x, weight, norm=True, norm_weight=gain, activation="geglu", **extra
    )


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("bounds", [None, [-1.0, 2.0]], ids=["own", "given"])
def test_nonfinite_rows_stay_nonfinite_and_alone(machine, bounds):
    x = torch.randn(20, 64)
    x[3, 5], x[7, 63], x[9, 0] = float("inf"), -float("inf"), float("nan")
    weight, extra = coded((33, 64), 4)
    extra["bounds"] = None if bounds is None else torch.tensor(bounds)
    path = MACHINES[machine]
    finite = run(path, LINEAR, x, weight, **extra).isfinite()
    expected = torch.ones(20, 33, dtype=torch.bool)
    expected[[3, 7, 9]] = False
    assert torch.equal(finite, expected)


@pytest.mark.parametrize("machine", MACHINES)
def test_four_bits_take_four_bits(machine):
    weight, extra = coded((320, 1280), 4)
    call = bind(LINEAR, torch.randn(1, 1280), weight, **extra)
    kernel = lower(call, MACHINES[machine])
    panels = max(kernel.operands, key=lambda o: o.spec.nbytes).spec
    assert panels.nbytes * 8 / weight.numel() < 4.16


def test_refusals():
    weight, extra = coded((8, 64), 4)
    call = bind(LINEAR, torch.randn(4, 64), weight, **extra)
    free = Value(call["weight"].spec)
    with pytest.raises(Unsupported, match="constants"):
        lower(Call(LINEAR, {**call.args, "weight": free}, call.out), isa())
    wrong = Value(TensorSpec((4, 64), torch.float64))
    with pytest.raises(Unsupported, match="float64"):
        lower(Call(LINEAR, {**call.args, "x": wrong}, call.out), isa())
    k = LONGEST + 1
    long = bind(
        LINEAR, torch.empty(1, k), torch.empty(1, k, dtype=torch.int8), channel_scale=torch.ones(1)
    )
    with pytest.raises(Unsupported, match="int32"):
        lower(long, isa())
