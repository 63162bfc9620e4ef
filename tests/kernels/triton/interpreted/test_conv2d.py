"""GPU convolutions in the interpreter, against the reference."""

from __future__ import annotations

import pytest
import torch
import zoomc.kernels.conv2d.op  # noqa: F401
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.triton.kernel import Unsupported, candidates
from zoomc.kernels.triton.run import bind, evaluate

from ...coded import coded, exact, exact_maps
from .compare import DTYPES, GPU, check, check_exactly, routes

CONV = "zoomc::conv2d"
SAME = [1, 1, 1, 1]


def maps(shape: tuple[int, ...], *channels: int, dtype: torch.dtype = torch.float16):
    torch.manual_seed(sum(shape) + sum(channels))
    return [torch.randn(*shape, c).to(dtype) for c in channels]


def weights(n: int, c: int, kernel: int = 3, dtype: torch.dtype = torch.float16):
    return (torch.randn(n, c, kernel, kernel) / (c**0.5 * kernel)).to(dtype), torch.randn(n).to(
        dtype
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(16,), (9,), (24, 40), (3, 8, 5)])
def test_inputs(dtype, channels):
    weight, bias = weights(20, sum(channels), dtype=dtype)
    check(CONV, maps((2, 4, 7), *channels, dtype=dtype), weight, bias, padding=SAME)


@pytest.mark.parametrize(
    ("kernel", "extra"),
    [
        (1, {}),
        (1, {"stride": [2, 2]}),
        (3, {}),
        (3, {"stride": [2, 1], "padding": [0, 1, 2, 0]}),
        (3, {"dilation": [2, 1], "padding": [2, 2, 1, 1]}),
        (3, {"upsample": True, "padding": SAME}),
        (3, {"upsample": True, "padding": SAME, "stride": [2, 2]}),
        (5, {"padding": [2, 2, 2, 2]}),
    ],
)
def test_geometry(kernel, extra):
    weight, bias = weights(12, 16, kernel)
    check(CONV, maps((2, 6, 5), 16), weight, bias, **extra)
    weight, bias = weights(12, 24, kernel)
    check(CONV, maps((1, 6, 5), 16, 8), weight, bias, **extra)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(2, 8, 8), (3, 3, 5), (1, 1, 1)], ids=str)
def test_norm_shift_and_residual(dtype, size):
    weight, bias = weights(24, 32, dtype=dtype)
    (residual,) = maps(size, 24, dtype=dtype)
    norm = {
        "norm_groups": 4,
        "norm_weight": torch.randn(32).to(dtype),
        "norm_bias": torch.randn(32).to(dtype),
        "pre_activation": "silu",
    }
    after = {"shift": torch.randn(size[0], 24).to(dtype), "residual": residual}
    inputs = maps(size, 16, 16, dtype=dtype)
    check(CONV, inputs, weight, bias, padding=SAME, loose=1.5, **norm, **after)
    check(CONV, inputs[:1], weight[:, :16].contiguous(), norm_groups=2, padding=SAME, loose=1.5)


def test_a_norm_runs_before_the_product_or_in_its_load():
    weight, _ = weights(16, 32)

    def ways(*size: int) -> set[str]:
        inputs = maps(size, 32)
        return {k.notes["route"] for k in routes(CONV, inputs, weight, padding=SAME, norm_groups=4)}

    assert ways(2, 8, 8) == {"prepared", "normalised in the load"}
    # An image of 15 pixels shares blocks of rows with others, whose norms differ.
    assert ways(2, 3, 5) == {"prepared"}


def test_k_is_split_where_blocks_are_few():
    weight, bias = weights(16, 192)
    inputs = maps((1, 4, 4), 64, 128)
    assert any(k.notes["split"] > 1 for k in routes(CONV, inputs, weight, bias, padding=SAME))
    check(CONV, inputs, weight, bias, padding=SAME, shift=torch.randn(1, 16).half())


def test_maps_that_are_views():
    x = torch.randn(2, 16, 6, 10).half().permute(0, 2, 3, 1)[:, :, ::2]
    weight, bias = weights(8, 16)
    assert not x.is_contiguous()
    check(CONV, [x], weight, bias, padding=SAME)


def test_a_mean_far_from_zero():
    """A norm whose squares are gathered before its mean is known loses everything here."""
    (x,) = maps((1, 8, 8), 32, dtype=torch.float32)
    weight, _ = weights(8, 32, 1, torch.float32)
    check(CONV, [x + 1e3], weight, norm_groups=4, loose=100)


def test_large_activations_stay_finite():
    """SD2's images turn black where fp16 holds sums or squares."""
    (x,) = maps((1, 8, 8), 64)
    x = (x * 5000).clamp(-60000, 60000)
    weight, bias = weights(16, 64)
    for kernel in routes(CONV, [x], weight, bias, padding=SAME, norm_groups=8):
        assert evaluate(kernel).isfinite().all()
    check(CONV, [x], weight, bias, padding=SAME, norm_groups=8, pre_activation="silu", loose=1.5)


def test_nan_stays_in_its_image():
    inputs = maps((3, 4, 4), 16)
    inputs[0][1, 2, 2, 5] = float("nan")
    weight, bias = weights(8, 16)
    for kernel in routes(CONV, inputs, weight, bias, padding=SAME, norm_groups=1):
        assert evaluate(kernel).isnan().flatten(1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("bits", [0, 2, 4, 8])
@pytest.mark.parametrize("channels", [(16,), (70, 9, 8)])
def test_coded_weights_bit_for_bit(bits, channels):
    weight, extra = coded((12, sum(channels), 3, 3), bits)
    inputs = [exact_maps((3, 5, 3, c), torch.float32, c) for c in channels]
    check_exactly(CONV, inputs, weight, padding=SAME, **extra)
    inputs = maps((2, 5, 3), *channels, dtype=torch.float32)
    check_exactly(CONV, inputs, weight, torch.randn(12), padding=SAME, stride=[2, 1], **extra)


@pytest.mark.parametrize(("channels", "activation"), [((16,), "relu"), ((9, 7), "none")])
def test_given_bounds_are_every_image_s(channels, activation):
    weight, extra = coded((12, sum(channels), 3, 3), 4)
    inputs = [exact_maps((3, 5, 3, c), torch.float32, c) for c in channels]
    inputs[0][-1] *= 1e30  # beyond what fp32 can multiply
    extra |= {"channel_scale": torch.ones(12), "bounds": torch.tensor([-54.0, 200.0])}
    check_exactly(CONV, inputs, weight, padding=SAME, pre_activation=activation, **extra)


def test_coded_with_everything():
    """A code may fall on the other side of a half: one step of many."""
    weight, extra = coded((12, 96, 3, 3), 4)
    inputs = maps((2, 3, 4), 32, 64)
    args = {
        "padding": SAME,
        "norm_groups": 8,
        "norm_weight": torch.randn(96).half(),
        "pre_activation": "silu",
        "upsample": True,
    }
    extra["channel_scale"] /= 1000
    expected = OPERATORS[CONV].reference(inputs, weight, **args, **extra).float()
    for kernel in routes(CONV, inputs, weight, **args, **extra):
        assert (evaluate(kernel).float() - expected).norm() / expected.norm() < 2e-3


@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("channels", [(16,), (64, 24), (70, 9)])
def test_weight_only_multiplies_the_codes_integers(bits, channels):
    """fp32 holds these sums exactly, so nothing is left to differ."""
    weight, extra = coded((12, sum(channels), 3, 3), bits)
    extra |= {"weight_only": True, "channel_scale": torch.full((12,), 0.5)}
    inputs = [(exact((2, 5, 3, c), torch.float32, c) / 16).round().half() for c in channels]
    check_exactly(CONV, [x.float() for x in inputs], weight, padding=SAME, **extra)
    extra["channel_scale"] /= 2.0**12
    check(CONV, inputs, weight, torch.randn(12).half(), padding=SAME, stride=[2, 1], **extra)
    ways = {k.notes["route"] for k in routes(CONV, inputs, weight, padding=SAME, **extra)}
    # A group of 64 input channels that two inputs share needs them in one map.
    assert ways == ({"prepared"} if channels == (70, 9) else {"as it is"})


@pytest.mark.parametrize("activation", ["none", "silu", "gelu", "relu"])
def test_an_image_does_not_depend_on_its_batch(activation):
    (x,) = maps((3, 4, 5), 24, dtype=torch.float32)
    x = x * torch.tensor([1e-6, 1.0, 1e6]).view(3, 1, 1, 1)
    weight, extra = coded((8, 24, 1, 1), 4)
    for i, kernel in enumerate(routes(CONV, [x], weight, pre_activation=activation, **extra)):
        y = evaluate(kernel)
        for image in range(3):
            alone = routes(CONV, [x[image : image + 1]], weight, pre_activation=activation, **extra)
            assert torch.equal(y[image : image + 1], evaluate(alone[min(i, len(alone) - 1)]))


@pytest.mark.parametrize("bounds", [None, [-1.0, 2.0]], ids=["own", "given"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_coded_images_with_nonfinite_values_come_out_nonfinite(bad, bounds):
    (x,) = maps((3, 4, 5), 24)
    x[1, 2, 3, 4] = bad
    weight, extra = coded((8, 24, 1, 1), 4)
    extra["bounds"] = None if bounds is None else torch.tensor(bounds)
    extra["channel_scale"] /= 1000
    for norm in (0, 4):
        for kernel in routes(CONV, [x], weight, norm_groups=norm, **extra):
            finite = evaluate(kernel).isfinite()
            assert finite[0].all() and not finite[1].any() and finite[2].all()


def test_says_why_not():
    weight, bias = weights(8, 4)
    with pytest.raises(Unsupported, match="grouped"):
        candidates(bind(CONV, maps((1, 4, 4), 8), weight, bias, groups=2), GPU)
    with pytest.raises(Unsupported, match="negative"):
        candidates(bind(CONV, maps((1, 6, 6), 4), weight, bias, padding=[-1, 0, 0, 0]), GPU)
