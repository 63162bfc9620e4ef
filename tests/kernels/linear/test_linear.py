from __future__ import annotations

import pytest
import torch
import zoomc.kernels.linear.op  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.kernels.tir.isa import isa
from zoomc.kernels.tir.kernel import Call, Unsupported, Value, lower
from zoomc.kernels.tir.run import bind, load, run

from ..products import DTYPES, PATHS, check

LINEAR = "zoomc::linear"


def operands(rows: tuple[int, ...], k: int, n: int, dtype: torch.dtype):
    torch.manual_seed(sum(rows) + k + n)
    x = torch.randn(*rows, k).to(dtype)
    weight = (torch.randn(n, k) / k**0.5).to(dtype)
    return x, weight, torch.randn(n).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("rows", "k", "n"),
    [((2, 40), 64, 96), ((77,), 96, 40), ((1,), 65, 33), ((5,), 33, 7), ((3, 3, 9), 31, 100)],
)
def test_shapes(path, dtype, rows, k, n):
    x, weight, bias = operands(rows, k, n, dtype)
    check(path, LINEAR, x, weight, bias, prepared=dtype is not torch.float32)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("path", PATHS)
def test_no_bias(path, dtype):
    x, weight, _ = operands((33,), 64, 48, dtype)
    check(path, LINEAR, x, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_everything_at_once(path, dtype):
    x, weight, bias = operands((2, 25), 40, 72, dtype)
    check(
        path,
        LINEAR,
        x,
        weight,
        bias,
        prepared=True,
        norm=True,
        norm_weight=torch.randn(40).to(dtype),
        norm_bias=torch.randn(40).to(dtype),
        pre_activation="silu",
        activation="relu",
        residual=torch.randn(2, 25, 72).to(dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("n", [128, 66, 14])
@pytest.mark.parametrize("path", PATHS)
def test_geglu(path, n, dtype):
    x, weight, bias = operands((37,), 32, n, dtype)
    residual = torch.randn(37, n // 2).to(dtype)
    check(path, LINEAR, x, weight, bias, activation="geglu", residual=residual)


@pytest.mark.parametrize("path", PATHS)
def test_short_gelu(path):
    x = torch.linspace(-12, 12, 64 * 32).view(64, 32).bfloat16()
    y = run(isa(path, 2), LINEAR, x, torch.eye(32).bfloat16(), activation="gelu")
    expected = torch.nn.functional.gelu(x.double())
    # Its own error of 2e-4 and the result's rounding.
    assert ((y - expected).abs() <= 2e-4 + expected.abs() * 2**-8).all()
    assert (y[x > 5] == x[x > 5]).all() and (y[x < -5] == 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_long_k_spans_chunks(path):
    x, weight, bias = operands((48,), 9000, 33, torch.float32)
    check(path, LINEAR, x, weight, bias)


def unbound(call: Call) -> Call:
    """The call with weights known only at run time."""
    args = {
        k: Value(v.spec, False, v.source) if isinstance(v, Value) else v
        for k, v in call.args.items()
    }
    return Call(call.op, args, call.out)


@pytest.mark.parametrize("activation", ["none", "geglu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_runtime_weight_gives_the_same_bits(path, dtype, activation):
    x, weight, bias = operands((40,), 45, 70, dtype)
    machine = isa(path, 2)
    call = bind(LINEAR, x, weight, bias, activation=activation)
    packed = load(lower(call, machine), machine)()
    packing = load(lower(unbound(call), machine), machine)()
    assert torch.equal(packed, packing)


@pytest.mark.parametrize("path", PATHS)
def test_layer_norm_does_not_cancel(path):
    x, weight, _ = operands((40,), 64, 32, torch.float32)
    x = x + 3000  # E[x²] - E[x]² would leave half of nothing of the variance
    result = run(isa(path, 2), LINEAR, x, weight, norm=True)
    normal = torch.nn.functional.layer_norm(x.double(), (64,))
    expected = normal @ weight.double().T
    # What remains is the rounding of the mean: its size over the spread.
    assert (result - expected).norm() / expected.norm() < 3000 * 2**-23


@pytest.mark.skipif("amx" not in PATHS, reason="no tile registers")
def test_split_fp32_is_as_accurate_as_multiply_add():
    x, weight, _ = operands((64,), 2048, 64, torch.float32)
    expected = x.double() @ weight.double().T
    errors = {}
    for path in ("amx", "avx512"):
        errors[path] = (run(isa(path, 2), LINEAR, x, weight) - expected).norm() / expected.norm()
    assert errors["amx"] <= 2 * errors["avx512"]


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", ["input", "weight"])
@pytest.mark.parametrize("path", PATHS)
def test_nonfinite_values_stay_nonfinite_and_in_place(path, where, bad):
    x, weight, _ = operands((40,), 64, 32, torch.float32)
    target = x if where == "input" else weight
    target[3, 5] = bad
    result = run(isa(path, 2), LINEAR, x, weight)
    hit = ~torch.isfinite(result)
    expected = torch.zeros_like(hit)
    if where == "input":
        expected[3] = True
    else:
        expected[:, 3] = True
    assert torch.equal(hit, expected)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(PATHS),
    st.sampled_from(DTYPES),
    st.integers(1, 70),
    st.integers(1, 100),
    st.integers(1, 70),
)
def test_any_shape(path, dtype, rows, k, n):
    x, weight, bias = operands((rows,), k, n, dtype)
    check(path, LINEAR, x, weight, bias, prepared=dtype is not torch.float32)


def test_equal_layers_share_a_kernel():
    first, second = (bind(LINEAR, *operands((8,), 16, 16, torch.float32)) for _ in range(2))
    other = bind(LINEAR, *operands((8,), 16, 17, torch.float32))
    machine = isa()
    assert lower(first, machine).key == lower(second, machine).key
    assert lower(first, machine).key != lower(other, machine).key


def test_refusals():
    machine = isa()
    with pytest.raises(Unsupported, match="float64"):
        lower(bind(LINEAR, torch.randn(3, 4).double(), torch.randn(5, 4).double()), machine)
    with pytest.raises(Unsupported, match="empty"):
        lower(bind(LINEAR, torch.randn(0, 4), torch.randn(5, 4)), machine)
