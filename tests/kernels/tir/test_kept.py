"""Blocks that pruning set to zero are neither stored nor multiplied, in floats either."""

from __future__ import annotations

import pytest
import torch
import zoomc.kernels.conv2d.op
import zoomc.kernels.linear.op  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.tir.isa import isa
from zoomc.kernels.tir.kernel import lower
from zoomc.kernels.tir.run import bind, run
from zoomc.kernels.weights import Encoding, prune
from zoomc.kernels.weights.pruning import PruningError, kept_steps

from ..products import PATHS, check, wide

CONV, LINEAR = "zoomc::conv2d", "zoomc::linear"
SAME = [1, 1, 1, 1]
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def small(shape, dtype, seed=0):
    """Small integers: no sum of their products is rounded."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).to(dtype)


def pruned(shape, share, dtype, gated=False):
    """A weight of small integers without that many percent of its blocks, and what to say of it."""
    pruning = Encoding.parse(f"keep+blocks{share}%").pruning
    weight = prune(small(shape, torch.float32, 1), pruning).to(dtype)
    return weight, {"kept_steps": kept_steps(shape, pruning, gated)}


def check_exact(path, op, *args, **kwargs):
    """Every sum must be the reference's, rounded once."""
    machine = isa(path, 2)
    result = run(machine, op, *args, **kwargs)
    expected = OPERATORS[op].reference(*map(wide, args), **{k: wide(v) for k, v in kwargs.items()})
    expected = expected.to(result.dtype)
    assert torch.equal(result, expected), f"{path}: {(result != expected).sum()} sums differ"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("rows", "k", "n", "share", "dtype"),
    [
        ((5,), 200, 70, 50, BF16),
        ((33,), 1500, 33, 30, FP32),
        ((1,), 130, 128, 70, FP32),
        ((2, 20), 640, 96, 50, BF16),
        ((40,), 65, 40, 50, FP16),
        ((35,), 256, 64, 75, FP32),
        ((40,), 9000, 33, 20, BF16),
    ],
)
def test_linear(path, rows, k, n, share, dtype):
    weight, extra = pruned((n, k), share, dtype)
    assert 0 < extra["kept_steps"] < -(-k // 64)
    check_exact(path, LINEAR, small((*rows, k), dtype), weight, small((n,), dtype), **extra)


CONVS = {
    "same": ((1, 16, 16), (64,), 64, (3, 3), 50, FP32, {"padding": SAME}),
    "batch of odd maps": ((3, 7, 9), (70, 9), 33, (3, 3), 50, BF16, {"padding": SAME}),
    "one tap in place": ((2, 9, 7), (192,), 20, (1, 1), 50, BF16, {}),
    "one tap, padded channels": ((2, 9, 7), (130,), 20, (1, 1), 50, FP32, {}),
    "stride": ((2, 9, 8), (65,), 40, (3, 3), 50, BF16, {"padding": SAME, "stride": [2, 2]}),
    "all uneven": (
        (2, 8, 9),
        (130,),
        33,
        (2, 3),
        20,
        FP32,
        {"padding": [0, 2, 1, 0], "stride": [2, 1], "dilation": [1, 2]},
    ),
    "enlarged": ((2, 9, 8), (70,), 40, (3, 3), 75, BF16, {"padding": SAME, "upsample": True}),
    "enlarged, in phases": (
        (2, 9, 8),
        (70,),
        40,
        (3, 3),
        20,
        FP32,
        {"padding": SAME, "upsample": True},
    ),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CONVS)
def test_convolution(path, case):
    size, channels, out, kernel, share, dtype, kwargs = CONVS[case]
    inputs = [small((*size, c), dtype, i) for i, c in enumerate(channels)]
    weight, extra = pruned((out, sum(channels), *kernel), share, dtype)
    assert extra["kept_steps"] > 0
    check_exact(path, CONV, inputs, weight, small((out,), dtype), **extra, **kwargs)


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(PATHS),
    st.sampled_from([FP32, BF16]),
    st.integers(1, 70),
    st.integers(65, 300),
    st.integers(1, 130),
    st.integers(1, 99),
)
def test_any_shape(path, dtype, rows, k, n, share):
    weight, extra = pruned((n, k), share, dtype)
    check_exact(path, LINEAR, small((rows, k), dtype), weight, **extra)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_everything_at_once(path, dtype):
    torch.manual_seed(0)
    weight, extra = pruned((192, 160), 50, dtype, gated=True)
    assert extra["kept_steps"] == 2
    check(
        path,
        LINEAR,
        torch.randn(37, 160).to(dtype),
        weight / 30,
        torch.randn(192).to(dtype),
        prepared=True,
        norm=True,
        norm_weight=torch.randn(160).to(dtype),
        norm_bias=torch.randn(160).to(dtype),
        activation="geglu",
        residual=torch.randn(37, 96).to(dtype),
        **extra,
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(256, 1280), (96, 320, 3, 3)])
def test_kernels_store_and_do_less(path, shape):
    weight, extra = pruned(shape, 80, BF16)
    op, x = (
        (CONV, [torch.zeros(1, 9, 9, 320)]) if len(shape) > 2 else (LINEAR, torch.zeros(9, 1280))
    )
    x = [t.to(BF16) for t in x] if isinstance(x, list) else x.to(BF16)
    sparse, dense = (
        lower(bind(op, x, weight, **some), isa(path, 2)) for some in (extra, {"kept_steps": 0})
    )
    assert sparse.flops * 5 == dense.flops
    sizes = [sum(o.spec.nbytes for o in kernel.operands[1:]) for kernel in (sparse, dense)]
    assert sizes[0] < 0.21 * sizes[1]


def test_enlarged_maps_are_multiplied_the_shorter_way():
    flops = {}
    for share in (20, 75):
        weight, extra = pruned((64, 128, 3, 3), share, BF16)
        x = torch.zeros(1, 16, 16, 128, dtype=BF16)
        kernel = lower(bind(CONV, [x], weight, padding=SAME, upsample=True, **extra), isa())
        flops[share] = kernel.notes["phases"]
    assert flops == {20: 4, 75: 1}


def test_weights_that_keep_more_than_they_say_are_refused():
    weight, extra = pruned((64, 256), 50, FP32)
    extra["kept_steps"] -= 1
    with pytest.raises(PruningError, match=r"kept_steps=1 .*prune it by blocks"):
        run(isa(threads=1), LINEAR, torch.randn(2, 256), weight, **extra)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_nonfinite_values_reach_what_is_multiplied_by_them(path, bad):
    weight, extra = pruned((96, 256), 50, FP32)
    x = small((40, 256), FP32)
    x[3, 70], x[9, 255] = bad, bad
    finite = run(isa(path, 2), LINEAR, x, weight, **extra).isfinite()
    assert finite[[i for i in range(40) if i not in (3, 9)]].all()
    for row, column in ((3, 70), (9, 255)):
        # Whole steps of 64 are kept, in which zeros of the weight count.
        step = weight[:, column // 64 * 64 :][:, :64]
        assert torch.equal(~finite[row], (step != 0).any(1))


def test_weights_with_nan_are_kept():
    weight, extra = pruned((64, 256), 50, FP32)
    weight[5] = torch.where(weight[5] != 0, float("nan"), weight[5])
    result = run(isa(threads=1), LINEAR, small((40, 256), FP32), weight, **extra)
    assert result[:, 5].isnan().all() and result[:, :5].isfinite().all()
