"""Group norm and layer norm kernels against their references in double precision."""

import pytest
import torch
import zoomc.kernels.norm.op  # noqa: F401 - declares the operators
from zoomc.kernels.activation import ACTIVATIONS
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.tir import isa as paths
from zoomc.kernels.tir.run import run

ISAS = [name for name in ("amx", "avx512", "avx2", "portable") if name in paths.supported()]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 8e-4}


def close(name: str, y: torch.Tensor, *args, **kwargs) -> None:
    """Compare with the reference run in fp64, relative to the largest value."""
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    expected = OPERATORS[name].reference(*wide, **kwargs)
    error = (y.double() - expected).abs().max() / expected.abs().max()
    assert y.dtype == args[0].dtype
    assert error <= TOLERANCE[y.dtype], float(error)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("shape", "groups"), [((1, 8, 8, 32), 8), ((2, 5, 7, 21), 7), ((3, 11, 10), 1), ((2, 6), 2)]
)
def test_group_norm(isa, dtype, shape, groups):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    weight, bias = torch.randn(shape[-1]).to(dtype), torch.randn(shape[-1]).to(dtype)
    path = paths.isa(isa, 2)
    for affine, activation in (((weight, bias), "silu"), ((None, None), "none")):
        args = (x, groups, *affine)
        y = run(path, "zoomc::group_norm", *args, activation=activation, eps=1e-5)
        close("zoomc::group_norm", y, *args, activation=activation, eps=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(4, 64), (2, 3, 37), (5,), (3, 1025)])
def test_layer_norm(isa, dtype, shape):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    weight, bias = torch.randn(shape[-1]).to(dtype), torch.randn(shape[-1]).to(dtype)
    for affine in ((weight, bias), (None, None), (weight, None)):
        y = run(paths.isa(isa, 2), "zoomc::layer_norm", x, *affine, eps=1e-5)
        close("zoomc::layer_norm", y, x, *affine, eps=1e-5)


def test_mean_far_from_zero():
    """E[x²] - E[x]² would lose everything here."""
    torch.manual_seed(0)
    path = paths.isa("auto", 2)
    x = torch.randn(1, 16, 16, 32) + 1e4
    y = run(path, "zoomc::group_norm", x, 4, None, None)
    expected = OPERATORS["zoomc::group_norm"].reference(x.double(), 4)
    assert (y - expected).abs().max() < 2e-3
    x = torch.randn(16, 320) + 1e4
    y = run(path, "zoomc::layer_norm", x, None, None)
    expected = OPERATORS["zoomc::layer_norm"].reference(x.double())
    assert (y - expected).abs().max() < 2e-3


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 24) * 3
    y = run(paths.isa("auto", 2), "zoomc::group_norm", x, 3, None, None, activation=activation)
    close("zoomc::group_norm", y, x, 3, None, None, activation=activation)
