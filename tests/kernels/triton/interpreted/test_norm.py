"""GPU norms in the interpreter, against the reference."""

from __future__ import annotations

import pytest
import torch
import zoomc.kernels.norm.op  # noqa: F401
from zoomc.kernels.activation import ACTIVATIONS

from .compare import DTYPES, check


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 8, 8, 32), 8), ((2, 5, 7, 21), 7), ((3, 11, 10), 1), ((2, 6), 2), ((1, 41, 37, 10), 5)],
    ids=str,
)
def test_group_norm(dtype, shape, groups):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s).to(dtype) for s in (shape, shape[-1:], shape[-1:]))
    check("zoomc::group_norm", x, groups, weight, bias, activation="silu")
    check("zoomc::group_norm", x, groups)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 64), (2, 3, 37), (5,), (3, 1025)], ids=str)
def test_layer_norm(dtype, shape):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s).to(dtype) for s in (shape, shape[-1:], shape[-1:]))
    for affine in ((weight, bias), (None, None), (weight, None)):
        check("zoomc::layer_norm", x, *affine)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    torch.manual_seed(0)
    check("zoomc::group_norm", torch.randn(1, 4, 4, 24) * 3, 3, activation=activation)


def test_mean_far_from_zero():
    """E[x²] - E[x]² would lose everything here."""
    torch.manual_seed(0)
    check("zoomc::group_norm", torch.randn(1, 16, 16, 32) + 1e3, 4, loose=30)
    check("zoomc::layer_norm", torch.randn(16, 320) + 1e3, loose=30)


def test_views():
    x = torch.randn(2, 12, 6, 10).permute(0, 2, 3, 1)[:, ::2]
    check("zoomc::group_norm", x, 3)
    check("zoomc::layer_norm", x)
