"""Factors between a norm and a weight: powers of two, chosen where they lower the error."""

from __future__ import annotations

import pytest
import torch
from zoomc.kernels.weights import Encoding, decode, encode, prune
from zoomc.kernels.weights.op import ENCODE
from zoomc.kernels.weights.smoothing import divided, factors, multiplied
from zoomc.passes.calibrate import gram

INT8, INT4 = Encoding.parse("int8"), Encoding.parse("int4")


def layer(channels: int = 200, outliers: int = 3, gain: float = 30.0, rows: int = 300):
    """A weight, and what it reads: pieces of one row, some of its channels larger."""
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(96, channels, generator=generator) / channels**0.5
    read = torch.randn(rows, 1, channels, generator=generator)
    read[..., :outliers] *= gain
    return weight, read


def lost(weight, read, encoding, by=None) -> float:
    """Relative error of the product of codes."""
    x, s = read[:, 0], torch.ones(read.shape[-1]) if by is None else by
    scale = (x / s).abs().amax(dim=1, keepdim=True) / 127
    codes = (x / s / scale).round() * scale
    got = codes @ decode(encode(weight, encoding, gram=gram(x), factors=by)).t()
    return float((got - x @ weight.t()).norm() / (x @ weight.t()).norm())


@pytest.mark.parametrize("channels", [70, 200, 320])
@pytest.mark.parametrize(("encoding", "part"), [(INT8, 0.5), (INT4, 0.85)])
def test_outliers_are_shared_out(channels, encoding, part):
    weight, read = layer(channels)
    by = factors(weight, read, encoding)
    assert by.shape == (channels,) and by.dtype is torch.float32
    assert (torch.frexp(by).mantissa == 0.5).all()
    assert (by[:3] >= 2).all() and by.max() <= 32 and (by[3:] <= 1).all()
    assert lost(weight, read, encoding, by) < part * lost(weight, read, encoding)


def test_a_channel_that_the_weight_weakens_is_made_good_altogether():
    weight, read = layer(outliers=3, gain=64)
    weight[:, :3] /= 64
    by = factors(weight, read, INT4)
    assert (by[:3] >= 32).all() and (by[3:].log2().abs() <= 1).all()
    assert lost(weight, read, INT8, by) < 0.2 * lost(weight, read, INT8)


@pytest.mark.parametrize("encoding", [INT8, INT4, Encoding.parse("shared:4")])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_well_behaved_channels_are_left_alone(encoding, spread):
    weight, read = layer(outliers=0)
    read = read * (1 + spread * torch.rand(200))
    assert factors(weight, read, encoding) is None


def test_channels_that_do_nothing_keep_a_factor_of_one():
    weight, read = layer()
    weight[:, 5] = 0
    read[..., 6] = 0
    by = factors(weight, read, INT8)
    assert by[5] == by[6] == 1 and (by[:3] > 1).all()


@pytest.mark.parametrize("gain", [1e-6, 1e6])
def test_factors_have_an_end(gain):
    weight, read = layer(gain=gain)
    weight[:, :3] /= gain
    by = factors(weight, read, INT8)
    assert (by[:3] == (256 if gain > 1 else 1 / 256)).all() and (by[3:].log2().abs() <= 8).all()
    # sizes whose squares fp32 has no numbers for
    weight, read = layer()
    assert torch.equal(factors(weight * 1e30, read * 1e-30, INT8), factors(weight, read, INT8))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_or_nothing_gives_none(value):
    weight, read = layer()
    assert factors(weight, torch.zeros_like(read), INT8) is None
    assert factors(torch.zeros_like(weight), read, INT8) is None
    assert factors(weight, read[:0], INT8) is None
    spoilt = read.clone()
    spoilt[0, 0, 7] = value
    assert factors(weight, spoilt, INT8) is None
    weight[0, 7] = value
    assert factors(weight, read, INT8) is None


def test_convolutions_have_a_factor_for_all_taps():
    torch.manual_seed(0)
    weight, read = torch.randn(40, 70, 3, 3), torch.randn(2, 64, 70)
    read[..., 9] *= 50
    by = factors(weight, read, INT8)
    assert by.shape == (70,) and by[9] >= 4 and by.sum() < 2 * 70
    assert torch.equal(multiplied(weight, by), weight * by.view(1, -1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["int8", "int4", "shared", "int4+2:4"])
def test_codes_are_those_of_the_product(dtype, weights):
    weight, read = layer(70)
    weight = weight.to(dtype)
    by = factors(weight, read, INT4)
    moments, encoding = gram(read), Encoding.parse(weights)
    torch.testing.assert_close(divided(moments, by), gram(read / by))
    got = ENCODE(weight, weights, moments, by)
    if encoding.pruning:  # before, so that the weights that go are the smallest of the model's own
        weight = prune(weight, encoding.pruning)
    want = encode(multiplied(weight, by), encoding, gram=divided(moments, by), pruned=True)
    assert torch.equal(got[0], want.codes) and torch.equal(got[3], want.channel_scale)
