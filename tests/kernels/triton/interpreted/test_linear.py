"""GPU linears in the interpreter, against the reference."""

from __future__ import annotations

import pytest
import torch
import zoomc.kernels.linear.op  # noqa: F401
from zoomc.kernels.activation import ACTIVATIONS
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.triton.kernel import Unsupported, candidates
from zoomc.kernels.triton.run import bind, evaluate

from ...coded import coded, exact
from .compare import DTYPES, GPU, check, check_exactly, routes

LINEAR = "zoomc::linear"


def operands(rows: tuple[int, ...], k: int, n: int, dtype: torch.dtype):
    torch.manual_seed(sum(rows) + k + n)
    x = torch.randn(*rows, k).to(dtype)
    return x, (torch.randn(n, k) / k**0.5).to(dtype), torch.randn(n).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "k", "n"), [((2, 40), 64, 96), ((1,), 65, 33), ((5,), 7, 1), ((3, 3, 9), 72, 100)]
)
def test_shapes(dtype, rows, k, n):
    x, weight, bias = operands(rows, k, n, dtype)
    check(LINEAR, x, weight, bias)
    check(LINEAR, x, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [40, 37])
def test_everything_at_once(dtype, k):
    x, weight, bias = operands((2, 35), k, 72, dtype)
    norm = {"norm_weight": torch.randn(k).to(dtype), "norm_bias": torch.randn(k).to(dtype)}
    extra = {"pre_activation": "silu", "activation": "relu"}
    residual = torch.randn(2, 35, 72).to(dtype)
    check(LINEAR, x, weight, bias, norm=True, residual=residual, **norm, **extra)
    check(LINEAR, x, weight, bias, norm=True, norm_eps=1e-3)


def test_a_norm_runs_before_the_product_or_in_its_load():
    x, weight, bias = operands((70,), 64, 32, torch.float16)
    ways = {k.notes["route"] for k in routes(LINEAR, x, weight, bias, norm=True)}
    assert ways == {"prepared", "normalised in the load"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_geglu(dtype):
    x, weight, bias = operands((65,), 48, 76, dtype)
    check(LINEAR, x, weight, bias, activation="geglu", residual=torch.randn(65, 38).to(dtype))
    check(LINEAR, x, weight, activation="geglu", norm=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    x, weight, bias = operands((9,), 32, 24, torch.float32)
    check(LINEAR, x * 3, weight, bias, activation=activation)
    check(LINEAR, x * 3, weight, bias, pre_activation=activation)


def test_k_is_split_where_blocks_are_few():
    x, weight, bias = operands((3,), 512, 40, torch.float16)
    kernels = routes(LINEAR, x, weight, bias)
    assert any(k.notes["split"] > 1 for k in kernels)
    check(LINEAR, x, weight, bias, activation="silu", residual=torch.randn(3, 40).half())
    check(LINEAR, x, weight, activation="geglu")


def test_rows_that_are_views():
    x = torch.randn(6, 7, 80).half()[:, ::2, 8:72]
    _, weight, _ = operands((1,), 64, 40, torch.float16)
    assert not x.is_contiguous()
    check(LINEAR, x, weight, residual=torch.randn(40, 6, 4).half().permute(1, 2, 0))


def test_large_activations_stay_finite():
    """fp16 holds 65504: sums beyond it must live in fp32, as must a norm's squares."""
    x, weight, _ = operands((8,), 256, 32, torch.float16)
    x = (x * 4000).clamp(-60000, 60000)
    for kernel in routes(LINEAR, x, weight / 16, norm=True):
        assert evaluate(kernel).isfinite().all()
    check(LINEAR, x, weight / 16)
    check(LINEAR, x, weight, norm=True)


def test_nan_reaches_its_row_alone():
    x, weight, bias = operands((9,), 64, 24, torch.float16)
    x[4, 10] = float("nan")
    for kernel in routes(LINEAR, x, weight, bias, norm=True, pre_activation="relu"):
        bad = evaluate(kernel).isnan().any(1)
        assert bad.tolist() == [i == 4 for i in range(9)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [0, 2, 4, 8])
@pytest.mark.parametrize(("rows", "k", "n"), [((5,), 100, 7), ((2, 33), 64, 40), ((3,), 330, 9)])
def test_coded_weights_bit_for_bit(dtype, bits, rows, k, n):
    weight, extra = coded((n, k), bits)
    check_exactly(LINEAR, exact((*rows, k), dtype), weight, **extra)
    bias = torch.randn(n).to(dtype)
    check_exactly(LINEAR, torch.randn(*rows, k).to(dtype), weight, bias, **extra)


def test_coded_geglu_and_residual_bit_for_bit():
    weight, extra = coded((40, 96), 4)
    extra["channel_scale"] /= 127 * 96
    x, bias = torch.randn(7, 96), torch.randn(40)
    check(LINEAR, x, weight, bias, activation="geglu", residual=torch.randn(7, 20), **extra)


@pytest.mark.parametrize("bounds", [None, [-0.2785, 1.6]], ids=["own", "given"])
def test_coded_after_a_norm(bounds):
    """A code may fall on the other side of a half: one step of many."""
    weight, extra = coded((24, 96), 4)
    extra["bounds"] = None if bounds is None else torch.tensor(bounds)
    x = torch.randn(50, 96)
    args = {"norm": True, "norm_weight": torch.randn(96), "pre_activation": "silu"}
    expected = OPERATORS[LINEAR].reference(x, weight, **args, **extra)
    for kernel in routes(LINEAR, x, weight, **args, **extra):
        error = (evaluate(kernel) - expected).norm() / expected.norm()
        assert error < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "k", "bits"), [((3, 11), 130, 4), ((1,), 63, 0)])
def test_given_bounds_are_every_row_s(dtype, rows, k, bits):
    weight, extra = coded((33, k), bits)
    x = exact((*rows, k), torch.float32)
    x[0] *= 1e36 if dtype is torch.float32 else 1e2  # in fp32 beyond what it can multiply
    # The scale is 1/2: many values lie beyond.
    extra |= {"channel_scale": torch.full((33,), 2.0**-9), "bounds": torch.tensor([-63.5, 20.0])}
    check_exactly(LINEAR, x.to(dtype), weight, **extra)
    call = bind(LINEAR, x.to(dtype), weight, **extra)
    assert not any(kernel.scaled for kernel in candidates(call, GPU))


@pytest.mark.parametrize("bounds", [None, [-1.0, 2.0]], ids=["own", "given"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_coded_rows_with_nonfinite_values_come_out_nonfinite(bad, bounds):
    weight, extra = coded((8, 96), 4)
    extra["bounds"] = None if bounds is None else torch.tensor(bounds)
    x = torch.randn(6, 96)
    x[2, 50] = bad
    for kernel in routes(LINEAR, x, weight, **extra):
        finite = evaluate(kernel).isfinite()
        assert not finite[2].any() and finite[[0, 1, 3, 4, 5]].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [0, 2, 4, 8])
def test_weight_only_multiplies_the_codes_integers(dtype, bits):
    """fp32 holds these sums exactly, so nothing is left to differ."""
    weight, extra = coded((24, 100), bits)
    extra |= {"weight_only": True, "channel_scale": torch.full((24,), 2.0**-15)}
    check_exactly(LINEAR, exact((35, 100), dtype), weight, **extra)
    check_exactly(LINEAR, exact((2, 100), dtype), weight, torch.ones(24).to(dtype), **extra)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_only_with_everything(dtype):
    weight, extra = coded((40, 128), 4)
    extra["channel_scale"] /= 127 * 128**0.5
    x, bias = torch.randn(33, 128).to(dtype) * 50, torch.randn(40).to(dtype)
    after = {"activation": "geglu", "residual": torch.randn(33, 20).to(dtype)}
    for norm in ({}, {"norm": True, "norm_weight": torch.randn(128).to(dtype)}):
        check(LINEAR, x, weight, bias, weight_only=True, loose=1.5, **norm, **after, **extra)


def test_zeros_stay_zero():
    weight, extra = coded((8, 96), 4)
    for kernel in routes(LINEAR, torch.zeros(2, 96), weight, **extra):
        assert (evaluate(kernel) == 0).all()


def test_says_why_not():
    x, weight, bias = operands((3,), 8, 5, torch.float32)
    with pytest.raises(Unsupported, match="float64"):
        candidates(bind(LINEAR, x.double(), weight.double(), bias.double()), GPU)
    with pytest.raises(Unsupported, match="codes for 32"):
        coded_weight, extra = coded((5, 8), 4)
        table = torch.zeros(32, dtype=torch.int8)
        candidates(bind(LINEAR, x, coded_weight, **(extra | {"table": table})), GPU)
