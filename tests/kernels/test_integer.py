"""The references of coded linears and convolutions, against arithmetic written out."""

from __future__ import annotations

import pytest
import torch
import zoomc.kernels.conv2d.op
import zoomc.kernels.linear.op  # noqa: F401
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from zoomc.kernels import integer
from zoomc.kernels.activation import ACTIVATIONS, DIPS
from zoomc.kernels.operator import OPERATORS

from .coded import coded, exact, exact_codes, exact_maps

LINEAR, CONV = torch.ops.zoomc.linear, torch.ops.zoomc.conv2d


@pytest.mark.parametrize("bits", [0, 2, 4, 8])
def test_linear_sums_are_the_integers(bits):
    x = exact((5, 100), torch.float32)
    weight, extra = coded((7, 100), bits)
    w8 = integer.integer_weight(weight, extra.get("table"), extra.get("group_scale"))
    expected = x.long() @ w8.long().T
    assert expected.abs().max() > 1000
    extra["channel_scale"] = torch.ones(7)
    assert torch.equal(LINEAR(x, weight, **extra), expected.float())


def test_group_scales_cover_64_channels_each():
    weight, table = torch.zeros(2, 130, 3, 3, dtype=torch.uint8), torch.tensor([3, 1, 2, 5])
    scale = torch.arange(1, 2 * 3 * 9 + 1).view(2, 3, 3, 3).to(torch.int8)
    w8 = integer.integer_weight(weight, table.to(torch.int8), scale)
    for channel, group in ((0, 0), (63, 0), (64, 1), (127, 1), (128, 2), (129, 2)):
        assert torch.equal(w8[:, channel], scale[:, group] * 3)


def test_conv_sums_are_the_integers():
    inputs = [exact_maps((3, 5, 6, 70), torch.float32), exact_maps((3, 5, 6, 9), torch.float32)]
    weight, extra = coded((8, 79, 3, 3), 4)
    extra["channel_scale"] = torch.arange(1, 9).float()
    y = CONV(inputs, weight, padding=[1, 1, 1, 1], stride=[2, 1], **extra)
    w8 = integer.integer_weight(weight, extra["table"], extra["group_scale"])
    x = torch.cat(inputs, -1).permute(0, 3, 1, 2).long()
    rows = F.unfold(F.pad(x, (1, 1, 1, 1)).double(), 3, stride=(2, 1)).long()
    sums = torch.einsum("nkp,ok->npo", rows, w8.flatten(1).long()).view(y.shape)
    assert torch.equal(y, sums.float() * extra["channel_scale"])


def test_every_row_and_image_has_its_own_scale():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 4, 64) * torch.tensor([1e-9, 1.0, 1e9]).view(3, 1, 1, 1)
    weight, extra = coded((5, 64, 1, 1), 0)
    y = CONV([x], weight, **extra)
    for i in range(3):
        assert torch.equal(y[i : i + 1], CONV([x[i : i + 1]], weight, **extra))
    rows = x.flatten(0, 2)
    y = LINEAR(rows, weight.flatten(1), **extra)
    assert torch.equal(y[17], LINEAR(rows[17], weight.flatten(1), **extra))
    w = weight.flatten(1) * extra["channel_scale"][:, None]
    assert (y - rows @ w.T).norm() / y.norm() < 0.01


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_nonfinite_values_reach_everything_that_depends_on_them(bad, activation):
    x = torch.randn(3, 4, 4, 8)
    x[1, 2, 3, 4] = bad
    weight, extra = coded((5, 8, 1, 1), 0)
    y = CONV([x], weight, pre_activation=activation, **extra)
    assert not y[1].isfinite().any() and y[0].isfinite().all() and y[2].isfinite().all()
    rows = x.flatten(0, 2)
    y = LINEAR(rows, weight.flatten(1), pre_activation=activation, **extra)
    hit = ~rows.isfinite().all(1)
    assert torch.equal(y.isfinite(), ~hit[:, None].expand(-1, 5))


def test_zeros_stay_zero():
    weight, extra = coded((5, 8), 4)
    assert torch.equal(LINEAR(torch.zeros(2, 8), weight, **extra), torch.zeros(2, 5))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extent_is_what_an_activation_takes(activation):
    fn = ACTIVATIONS[activation]
    for low, high in ((-8, 5), (-8, -3), (-0.5, 0.1), (-0.3, 0.2), (0.5, 3), (-2, -1), (-1.5, 0)):
        x = torch.linspace(min(low, 0), max(high, 0), 100001)
        got = integer.extent(torch.tensor(float(low)), torch.tensor(float(high)), activation)
        torch.testing.assert_close(got, (fn(x).min(), fn(x).max()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", DIPS)
def test_dips_are_where_they_are_said_to_be(activation):
    where, depth = DIPS[activation]
    x = torch.linspace(-4, 0, 400001, dtype=torch.float64)
    y = ACTIVATIONS[activation](x)
    assert abs(x[y.argmin()] - where) < 1e-4
    assert abs(y.min() + depth) < 1e-7


def test_codes_round_to_even_and_never_reach_minus_128():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -127.0, -126.5]])
    codes, scale = integer.quantise(x, x.abs().amax(-1, keepdim=True))
    assert codes.tolist() == [[127, 0, 2, 2, 0, -127, -126]] and scale == 1
    codes, _ = integer.quantise(torch.full((1, 4), -3e38), torch.tensor([[3e38]]))
    assert (codes == -127).all()


@pytest.mark.parametrize(
    ("values", "zero"),
    [
        ((-27.0, 0.5, 1.5, 227.0), -100),
        ((0.0, 254.0, 127.5), -127),  # none is negative
        ((-254.0, -100.0), 127),  # all are
        ((-0.5, 253.5), -127),  # both ends lie half-way between codes
        ((-1.5, 252.5), -126),
        ((0.0, 0.0), -127),
    ],
)
def test_codes_of_images_reach_both_ends_and_0_is_a_code(values, zero):
    x = torch.tensor([(*values, 0.0)])  # as of padding
    ends = integer.extent(x.amin(1, keepdim=True), x.amax(1, keepdim=True), "none")
    codes, zeros, scale = integer.quantise_between(x, *ends)
    assert zeros.tolist() == [[zero]]
    back = scale * (codes.float() - zeros)
    assert ((back - x).abs() <= scale / 2).all()
    assert codes.int().max() - codes.int().min() >= (253 if x.any() else 0)


def test_codes_never_wrap_at_the_ends():
    """What rounds up at the top or down at the bottom is no code without a clamp either."""
    torch.manual_seed(0)
    low, high = -(torch.rand(100000) ** 4), torch.rand(100000) ** 4
    codes = torch.stack([integer.quantise_between(x, low, high)[0] for x in (low, high)])
    span = high - low
    inverse = span.new_tensor(254) / span
    zero = torch.floor(-low * inverse) - 127
    unclamped = torch.stack([x * inverse for x in (low, high)]).double() + zero
    assert torch.equal(unclamped.round(), codes.double())
    assert ((unclamped > -128.4) & (unclamped < 127.4)).all()


def test_an_image_behind_silu_loses_less_than_by_one_scale_alone():
    torch.manual_seed(0)
    x = F.silu(torch.randn(2, 32, 32, 64))
    weight = torch.randint(-127, 128, (16, 64, 3, 3), dtype=torch.int8)
    wanted = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), padding=1)
    y = CONV([x], weight, padding=[1, 1, 1, 1], channel_scale=torch.ones(16))
    codes, scale = integer.quantise(x, x.abs().amax((1, 2, 3), keepdim=True))
    symmetric = (codes * scale).permute(0, 3, 1, 2).double()
    before = F.conv2d(symmetric, weight.double(), padding=1) - wanted
    after = y.permute(0, 3, 1, 2) - wanted
    assert after.norm() < 0.6 * before.norm()


def test_shapes_and_flops_of_coded_calls():
    with FakeTensorMode():
        x, weight = torch.empty(2, 5, 6, 70), torch.empty(8, 70, 3, 3, dtype=torch.uint8)
        extra = {
            "table": torch.empty(16, dtype=torch.int8),
            "group_scale": torch.empty(8, 2, 3, 3, dtype=torch.int8),
            "channel_scale": torch.empty(8),
        }
        y = CONV([x.bfloat16()], weight, padding=[1, 1, 1, 1], **extra)
        assert y.shape == (2, 5, 6, 8) and y.dtype is torch.bfloat16
    args = {"x": torch.empty(4, 70), "weight": exact_codes((8, 70), 4)}
    assert OPERATORS["zoomc::linear"].flops(args) == 2 * 4 * 70 * 8


def test_what_lies_beyond_given_bounds_is_clamped():
    x = exact_maps((3, 5, 6, 70), torch.float32) * 2 + 0.25
    weight, extra = coded((7, 70, 3, 3), 4)
    extra["channel_scale"] = torch.ones(7)
    w8 = integer.integer_weight(weight, extra["table"], extra["group_scale"])
    read = x.round().clamp(-55, 200)  # below, codes have one to spare
    sums = F.conv2d(read.permute(0, 3, 1, 2).double(), w8.double(), padding=1)
    given = CONV([x], weight, padding=[1, 1, 1, 1], bounds=torch.tensor([-54.0, 200.0]), **extra)
    assert (x.round() != read).any(3).any() and torch.equal(given, sums.permute(0, 2, 3, 1).float())

    x = exact((5, 70), torch.float32) * 1.7
    weight, extra = coded((7, 70), 4)
    given = LINEAR(x, weight, bounds=torch.tensor([-100.0, 20.0]), **extra)
    x = x.clamp(-100, 100)
    assert torch.equal(given, LINEAR(x, weight, **extra)) and (x.abs().amax(1) == 100).all()


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_given_bounds_hide_nothing_that_is_not_finite(activation, value):
    x = torch.randn(3, 4, 4, 64)
    x[1, 2, 3, 5] = value
    extra = {"pre_activation": activation, "bounds": torch.tensor([-1.0, 1.0])}
    weight, scales = coded((7, 64), 4)
    rows = LINEAR(x, weight, **scales, **extra).isfinite()
    assert not rows[1, 2, 3].any() and rows.sum() == 47 * 7
    weight, scales = coded((7, 64, 1, 1), 4)
    images = CONV([x], weight, **scales, **extra).isfinite().flatten(1).any(1)
    assert images.tolist() == [True, False, True]
