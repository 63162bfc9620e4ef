from __future__ import annotations

import pytest
import torch
import zoomc.kernels.conv2d.op  # noqa: F401
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from zoomc.kernels.tir.isa import isa
from zoomc.kernels.tir.kernel import Unsupported, lower
from zoomc.kernels.tir.run import bind, run

from ..coded import MACHINES, block_pruned, check_close, check_exact, coded, exact_maps

CONV = "zoomc::conv2d"
SAME = [1, 1, 1, 1]


def operands(size, channels, out, kernel, bits):
    """Inputs, of images in ranges far apart, and weights whose results are the integer sums."""
    ranges = 2.0 ** torch.tensor([0, 20, -20])[: size[0], None, None, None]
    inputs = [exact_maps((*size, c), torch.float32, s) * ranges for s, c in enumerate(channels)]
    weight, extra = coded((out, sum(channels), *kernel), bits)
    extra["channel_scale"] = torch.ones(out)
    return inputs, weight, extra


CASES = {
    "same": ((1, 16, 16), (64,), 64, (3, 3), 4, {"padding": SAME}),
    "batch of odd maps": ((3, 7, 9), (70, 9), 33, (3, 3), 4, {"padding": SAME}),
    "one tap": ((2, 9, 7), (65,), 20, (1, 1), 0, {}),
    "wide": ((1, 9, 9), (9,), 40, (7, 7), 2, {"padding": [3, 3, 3, 3], "stride": [2, 2]}),
    "all uneven": (
        (2, 8, 9),
        (130,),
        33,
        (2, 3),
        8,
        {"padding": [0, 2, 1, 0], "stride": [2, 1], "dilation": [1, 2]},
    ),
    "upsample": ((1, 5, 6), (32,), 32, (3, 3), 4, {"padding": SAME, "upsample": True}),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("case", CASES)
def test_sums_are_exact(machine, case):
    size, channels, out, kernel, bits, kwargs = CASES[case]
    inputs, weight, extra = operands(size, channels, out, kernel, bits)
    check_exact(machine, CONV, inputs, weight, **extra, **kwargs)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("case", "share"), [("batch of odd maps", 50), ("wide", 90), ("all uneven", 20)]
)
def test_steps_left_out_change_no_sum(machine, case, share):
    size, channels, out, kernel, bits, kwargs = CASES[case]
    inputs, _, _ = operands(size, channels, out, kernel, bits)
    weight, extra = block_pruned((out, sum(channels), *kernel), bits, share)
    extra["channel_scale"] = torch.ones(out)
    assert extra["kept_steps"] > 0
    check_exact(machine, CONV, inputs, weight, **extra, **kwargs)


@settings(max_examples=6, deadline=None)
@given(
    machine=st.sampled_from(list(MACHINES)),
    bits=st.sampled_from([0, 2, 4, 8]),
    size=st.tuples(st.integers(1, 3), st.integers(1, 18), st.integers(1, 18)),
    channels=st.lists(st.integers(1, 140), min_size=1, max_size=2),
    out=st.integers(1, 70),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    padding=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    stride=st.lists(st.integers(1, 3), min_size=2, max_size=2),
    dilation=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    upsample=st.booleans(),
)
def test_sums_are_exact_for_any_geometry(
    machine, bits, size, channels, out, kernel, padding, stride, dilation, upsample
):
    scale = 2 if upsample else 1
    assume(size[1] * scale + sum(padding[:2]) > dilation[0] * (kernel[0] - 1))
    assume(size[2] * scale + sum(padding[2:]) > dilation[1] * (kernel[1] - 1))
    inputs, weight, extra = operands(size, tuple(channels), out, kernel, bits)
    geometry = {"padding": padding, "stride": stride, "dilation": dilation}
    check_exact(machine, CONV, inputs, weight, **geometry, upsample=upsample, **extra)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_at_once(machine, dtype):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 8, 8, c).to(dtype) for c in (70, 26)]
    inputs[0][1] *= 100
    weight, extra = coded((36, 96, 3, 3), 4)
    extra["channel_scale"] *= 1e-3
    check_close(
        machine,
        CONV,
        inputs,
        weight,
        torch.randn(36).to(dtype),
        padding=SAME,
        norm_groups=4,
        norm_weight=torch.randn(96).to(dtype),  # either sign: extremes change places
        norm_bias=torch.randn(96).to(dtype),
        pre_activation="silu",
        shift=torch.randn(2, 36).to(dtype),
        residual=torch.randn(2, 8, 8, 36).to(dtype),
        **extra,
    )


@pytest.mark.parametrize("activation", ["none", "silu", "gelu", "relu"])
@pytest.mark.parametrize("spread", [0.02, 0.5, 40.0])
def test_scales_without_a_norm(activation, spread):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 6, 5, c) * spread for c in (33, 64)]
    inputs[1][1] = -inputs[1][1].abs() - 1
    weight, extra = coded((40, 97, 1, 1), 0)
    check_close(next(iter(MACHINES)), CONV, inputs, weight, pre_activation=activation, **extra)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("bounds", [None, [-1.0, 2.0]], ids=["own", "given"])
@pytest.mark.parametrize("kwargs", [{}, {"pre_activation": "silu"}, {"norm_groups": 4}], ids=str)
def test_nonfinite_images_stay_nonfinite_and_alone(machine, kwargs, bounds):
    x = torch.randn(4, 6, 6, 64)
    x[0, 2, 3, 5], x[1, 0, 0, 63], x[3, 5, 5, 17] = float("inf"), -float("inf"), float("nan")
    weight, extra = coded((33, 64, 1, 1), 4)
    extra["bounds"] = None if bounds is None else torch.tensor(bounds)
    y = run(MACHINES[machine], CONV, [x], weight, **kwargs, **extra)
    finite = y.isfinite().flatten(1)
    assert finite[2].all() and not finite[[0, 1, 3]].any()


@pytest.mark.parametrize("machine", MACHINES)
def test_sums_are_exact_at_the_corners(machine):
    x = torch.full((3, 4, 4, 200), 127.0)
    x[1] = -127
    x[2] = 0
    x[2, 1, 1, 7] = 127  # an outlier alone
    weight = torch.full((6, 200, 3, 3), 127, dtype=torch.int8)
    weight[1], weight[2], weight[3, ::2], weight[4, :, 1] = -127, 0, -127, 0
    check_exact(machine, CONV, [x], weight, padding=SAME, channel_scale=torch.ones(6))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("case", ["batch of odd maps", "all uneven", "upsample"])
def test_given_bounds_are_every_image_s(machine, case):
    size, channels, out, kernel, bits, kwargs = CASES[case]
    inputs = [exact_maps((*size, c), torch.float32, s) for s, c in enumerate(channels)]
    inputs[0][-1] *= 1e30  # beyond what fp32 can multiply
    weight, extra = coded((out, sum(channels), *kernel), bits)
    extra |= {"channel_scale": torch.ones(out), "bounds": torch.tensor([-54.0, 200.0])}
    assert check_exact(machine, CONV, inputs, weight, **extra, **kwargs).isfinite().all()


@pytest.mark.parametrize("machine", MACHINES)
def test_given_bounds_behind_norm_and_activation(machine):
    torch.manual_seed(0)
    inputs = [torch.randn(3, 7, 5, c).bfloat16() for c in (70, 26)]
    weight, extra = coded((36, 96, 3, 3), 4)
    extra["channel_scale"] *= 1e-3
    check_close(
        machine,
        CONV,
        inputs,
        weight,
        padding=SAME,
        norm_groups=4,
        norm_weight=torch.randn(96).bfloat16(),
        pre_activation="silu",
        bounds=torch.tensor([-0.2785, 1.5]),  # about a tenth of the values lie beyond
        **extra,
    )


def test_refusals():
    weight, extra = coded((4, 2, 1, 1), 4)
    with pytest.raises(Unsupported, match="groups"):
        lower(bind(CONV, [torch.randn(1, 4, 4, 4)], weight, groups=2, **extra), isa())
    mixed = [torch.randn(1, 4, 4, 1), torch.randn(1, 4, 4, 1).bfloat16()]
    with pytest.raises(Unsupported, match="bfloat16"):
        lower(bind(CONV, mixed, weight, **extra), isa())
