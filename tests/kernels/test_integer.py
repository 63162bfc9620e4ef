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

from .coded import coded, exact, exact_codes

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
    inputs = [exact((2, 5, 6, 70), torch.float32), exact((2, 5, 6, 9), torch.float32)]
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
def test_extent_is_the_largest_magnitude(activation):
    fn = ACTIVATIONS[activation]
    for low, high in ((-8, 5), (-8, -3), (-0.5, 0.1), (-0.3, 0.2), (0.5, 3), (-2, -1), (-1.5, 0)):
        x = torch.linspace(low, high, 100001)
        got = integer.extent(torch.tensor(float(low)), torch.tensor(float(high)), activation)
        torch.testing.assert_close(got, fn(x).abs().max(), rtol=1e-5, atol=1e-6)


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
