from __future__ import annotations

import pytest
import torch
import zoomc.kernels.conv2d.op  # noqa: F401
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from zoomc.kernels.conv2d import phases
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.tir.isa import isa
from zoomc.kernels.tir.kernel import Call, TensorSpec, Unsupported, Value, lower
from zoomc.kernels.tir.run import bind, load, run

from ..products import DTYPES, PATHS, check, wide

CONV = "zoomc::conv2d"
SAME = [1, 1, 1, 1]


def operands(size, channels, out, kernel, dtype, groups=1):
    torch.manual_seed(sum(size) + sum(channels) + out)
    inputs = [torch.randn(*size, c).to(dtype) for c in channels]
    k = sum(channels) // groups
    weight = (torch.randn(out, k, *kernel) / (k * kernel[0] * kernel[1]) ** 0.5).to(dtype)
    return inputs, weight, torch.randn(out).to(dtype)


def result_like(inputs, weight, **kwargs):
    y = OPERATORS[CONV].reference([t.float() for t in inputs], weight.float(), **kwargs)
    return torch.randn(y.shape).to(weight.dtype)


CASES = {
    "same": ((1, 16, 16), (64,), 64, (3, 3), {"padding": SAME}),
    "batch of narrow maps": ((2, 8, 8), (32,), 40, (3, 3), {"padding": SAME}),
    "odd channels": ((1, 9, 7), (9,), 4, (3, 3), {"padding": SAME}),
    "one tap in place": ((2, 9, 7), (32,), 20, (1, 1), {}),
    "one tap, two inputs": ((1, 9, 7), (32, 5), 20, (1, 1), {}),
    "stride": ((2, 8, 16), (32,), 32, (3, 3), {"padding": SAME, "stride": [2, 2]}),
    "uneven padding": ((1, 9, 9), (8,), 8, (3, 3), {"padding": [0, 1, 0, 1], "stride": [2, 2]}),
    "all uneven": (
        (1, 8, 9),
        (32,),
        33,
        (2, 3),
        {"padding": [0, 2, 1, 0], "stride": [2, 1], "dilation": [1, 2]},
    ),
    "stride and dilation": (
        (1, 12, 13),
        (6,),
        5,
        (3, 3),
        {"padding": [2, 2, 2, 2], "stride": [3, 2], "dilation": [2, 3]},
    ),
    "upsample": ((1, 5, 6), (32,), 32, (3, 3), {"padding": SAME, "upsample": True}),
    "upsample in phases": ((2, 9, 8), (32,), 40, (3, 3), {"padding": SAME, "upsample": True}),
    "depthwise": ((1, 6, 6), (33,), 33, (3, 3), {"padding": SAME, "groups": 33}),
    "groups": ((2, 6, 6), (32,), 64, (3, 3), {"padding": SAME, "groups": 2, "stride": [2, 2]}),
    "narrow groups": ((1, 6, 6), (12,), 8, (3, 3), {"groups": 4}),
}


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES)
def test_geometry(path, dtype, case):
    size, channels, out, kernel, kwargs = CASES[case]
    args = operands(size, channels, out, kernel, dtype, kwargs.get("groups", 1))
    check(path, CONV, *args, prepared=dtype is not torch.float32, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("channels", [(32, 16), (5, 7)])
def test_everything_at_once(path, dtype, channels):
    inputs, weight, bias = operands((2, 8, 8), channels, 36, (3, 3), dtype)
    total = sum(channels)
    check(
        path,
        CONV,
        inputs,
        weight,
        bias,
        prepared=True,
        padding=SAME,
        norm_groups=4,
        norm_weight=torch.randn(total).to(dtype),
        norm_bias=torch.randn(total).to(dtype),
        pre_activation="silu",
        shift=torch.randn(2, 36).to(dtype),
        residual=result_like(inputs, weight, padding=SAME),
    )


@pytest.mark.parametrize("path", PATHS)
def test_group_norm_does_not_cancel(path):
    inputs, weight, bias = operands((1, 16, 16), (16,), 8, (1, 1), torch.float32)
    inputs = [inputs[0] + 1000]  # E[x²] - E[x]² would leave nothing of the variance
    # What remains is the rounding of the input times its mean over its spread, 1000 · 2^-24.
    result = run(isa(path, 2), CONV, inputs, weight, bias, norm_groups=4)
    expected = OPERATORS[CONV].reference(wide(inputs), wide(weight), wide(bias), norm_groups=4)
    assert (result - expected).norm() / expected.norm() < 1000 * 2**-22


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_runtime_weight_gives_the_same_bits(path, dtype, groups):
    args = operands((1, 6, 7), (10,), 12, (3, 2), dtype, groups)
    machine = isa(path, 2)
    call = bind(CONV, *args, groups=groups)
    free = {
        k: Value(v.spec, False, v.source) if isinstance(v, Value) else v
        for k, v in call.args.items()
    }
    packed = load(lower(call, machine), machine)()
    packing = load(lower(Call(call.op, free, call.out), machine), machine)()
    assert torch.equal(packed, packing)


@settings(max_examples=12, deadline=None)
@given(
    path=st.sampled_from(PATHS),
    dtype=st.sampled_from(DTYPES),
    size=st.tuples(st.integers(1, 2), st.integers(1, 18), st.integers(1, 18)),
    channels=st.lists(st.integers(1, 40), min_size=1, max_size=2),
    out=st.integers(1, 40),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    stride=st.lists(st.integers(1, 3), min_size=2, max_size=2),
    dilation=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    upsample=st.booleans(),
)
def test_any_geometry(
    path, dtype, size, channels, out, kernel, padding, stride, dilation, upsample
):
    scale = 2 if upsample else 1
    assume(size[1] * scale + sum(padding[:2]) > dilation[0] * (kernel[0] - 1))
    assume(size[2] * scale + sum(padding[2:]) > dilation[1] * (kernel[1] - 1))
    args = operands(size, tuple(channels), out, kernel, dtype)
    check(
        path,
        CONV,
        *args,
        prepared=dtype is not torch.float32,
        padding=padding,
        stride=stride,
        dilation=dilation,
        upsample=upsample,
    )


def test_refusals():
    inputs, weight, bias = operands((1, 4, 4), (4,), 4, (1, 1), torch.float32)
    call = bind(CONV, inputs, weight, bias)
    with pytest.raises(Unsupported, match="float64"):
        wrong = Value(TensorSpec(call["weight"].spec.shape, torch.float64))
        lower(Call(CONV, {**call.args, "weight": wrong}, call.out), isa())
    with pytest.raises(Unsupported, match="padding"):
        lower(Call(CONV, {**call.args, "padding": [-1, 0, 0, 0]}, call.out), isa())


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (3, 4), (5, 2)])
@pytest.mark.parametrize("padding", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 1, 0, 3], [3, 2, 1, 0]])
def test_phases_of_any_kernel(monkeypatch, kernel, padding):
    """Where the result is even, four products of summed kernels; else one of the enlarged map."""
    monkeypatch.setattr(phases, "_PIXELS", 1)
    args = operands((2, 5, 6), (5, 4), 7, kernel, torch.float32)
    check(PATHS[-1], CONV, *args, prepared=False, padding=padding, upsample=True)
    call = bind(CONV, *args, padding=padding, upsample=True)
    even = not any(side % 2 for side in call.out.shape[1:3])
    assert lower(call, isa(PATHS[-1], 2)).notes["phases"] == (4 if even else 1)
