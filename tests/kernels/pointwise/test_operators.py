"""Every single ATen operator against torch, NaN and infinities included, on every path."""

import pytest
import torch
from zoomc.kernels.tir import isa as paths
from zoomc.kernels.tir.run import overload, run

ISAS = [name for name in ("amx", "avx2", "portable") if name in paths.supported()]

torch.manual_seed(0)
a, b = torch.randn(5, 37), torch.randn(37)
i = torch.randint(-9, 9, (5, 37))
c = torch.randn(4, 8, 16)
a[0, 0], a[1, 1], a[2, 2] = float("nan"), float("inf"), -float("inf")
finite = torch.randn(5, 37)
CASES = [
    ("aten::add.Tensor", (a, b)),
    ("aten::add.Tensor", (a, i)),
    ("aten::mul.Tensor", (a, 2.5)),
    ("aten::sub.Tensor", (i, 3), {"alpha": 2}),
    ("aten::div.Tensor", (i, 4)),
    ("aten::exp", (a,)),
    ("aten::exp", (i,)),
    ("aten::relu", (a,)),
    ("aten::gt.Scalar", (a, 0.1)),
    ("aten::isnan", (a,)),
    ("aten::where.self", (a > 0, a, b)),
    ("aten::clamp", (a, -0.5, 0.5)),
    ("aten::permute", (c, [2, 0, 1])),
    ("aten::slice.Tensor", (c, 1, 2, 7, 2)),
    ("aten::cat", ([c, c * 2], 1)),
    ("aten::cat", ([a, a], -1)),
    ("aten::cat", ([c, c], 2)),
    ("aten::stack", ([c, c], 0)),
    ("aten::constant_pad_nd", (c, [1, 2, 0, 1], 3.0)),
    ("aten::flip", (c, [0, 2])),
    ("aten::roll", (c, [1, 2], [0, 2])),
    ("aten::repeat", (c, [2, 1, 1, 2])),
    ("aten::arange.start_step", (0, 10, 1)),
    ("aten::arange.start_step", (0, 5, 0.5)),
    ("aten::arange.start", (2, 9)),
    ("aten::arange", (7,)),
    ("aten::full", ([3, 5], 1.5)),
    ("aten::tril", (c,)),
    ("aten::triu", (c, 1)),
    ("aten::eye", (5,)),
    ("aten::embedding", (torch.randn(11, 32), torch.randint(0, 11, (2, 7)))),
    ("aten::index_select", (c, 1, torch.tensor([1, 0, 3]))),
    ("aten::gather", (c, 2, torch.randint(0, 16, (4, 8, 3)))),
    ("aten::index.Tensor", (c, [torch.tensor([0, 2]), torch.tensor([1, -1])])),
    ("aten::index.Tensor", (c, [None, torch.tensor([1, -1, 2])])),
    ("aten::upsample_nearest2d.vec", (torch.randn(1, 3, 4, 5), None, [2.0, 2.0])),
    ("aten::upsample_nearest2d.vec", (torch.randn(1, 3, 9, 7), [13, 20], None)),
    ("aten::upsample_nearest2d.vec", (torch.randn(1, 3, 5, 5), None, [3.1, 2.1])),
    ("aten::view", (c, [32, 16])),
    ("aten::view", (c, [8, 64])),
    ("aten::sum.dim_IntList", (c, [1])),
    ("aten::sum.dim_IntList", (c, [2])),
    ("aten::sum.dim_IntList", (c, [0, 2], True)),
    ("aten::sum", (i,)),
    ("aten::mean", (c,)),
    ("aten::mean.dim", (c, [-1])),
    ("aten::amax", (a, [1])),
    ("aten::amin", (a, [0])),
    ("aten::prod.dim_int", (c, 1)),
    ("aten::argmax", (a, 1)),
    ("aten::argmax", (c,)),
    ("aten::argmin", (c, 0)),
    ("aten::var.correction", (c, [2])),
    ("aten::std.correction", (c, [0, 1])),
    ("aten::any.dim", (i > 5, 1)),
    ("aten::all", (i > 5,)),
    ("aten::softmax.int", (c, -1)),
    ("aten::_softmax", (c, 1, False)),
    ("aten::_log_softmax", (c, 2, False)),
    ("aten::cumsum", (c, 1)),
    ("aten::cumsum", (i, 1)),
    ("aten::linalg_vector_norm", (c, 2, [1])),
    ("aten::pow.Tensor_Scalar", (a, 2)),
    ("aten::pow.Tensor_Scalar", (a, 1.7)),
    ("aten::pow.Scalar", (3.0, a)),
    ("aten::remainder.Scalar", (a, 0.7)),
    ("aten::remainder.Scalar", (i, 4)),
    ("aten::fmod.Scalar", (i, -4)),
    ("aten::div.Tensor_mode", (a, b), {"rounding_mode": "floor"}),
    ("aten::div.Tensor_mode", (i, 4), {"rounding_mode": "floor"}),
    ("aten::div.Tensor_mode", (i, -4), {"rounding_mode": "trunc"}),
    ("aten::_to_copy", (a.nan_to_num(0, 5, -5),), {"dtype": torch.bfloat16}),
    ("aten::_to_copy", (i,), {"dtype": torch.float32}),
    ("aten::masked_fill.Scalar", (a, a > 0, -1.0)),
    ("aten::bitwise_not", (i,)),
    ("aten::logical_and", (a, i)),
    ("aten::gelu", (finite,)),
    ("aten::exp", (a.double(),)),
    ("aten::gelu", (finite.double(),)),
    ("aten::add.Tensor", (a.bfloat16(), b.bfloat16())),
    ("aten::sign", (i,)),
    ("aten::round", (a * 3,)),
    ("aten::tan", (a,)),
    ("aten::select.int", (c, 1, 2)),
    ("aten::unsqueeze", (c, 1)),
    ("aten::expand", (b, [5, 37])),
    ("aten::neg", (i,)),
    ("aten::abs", (i,)),
    ("aten::softplus", (a,)),
    ("aten::elu", (a,)),
    ("aten::lerp.Scalar", (a, b, 0.3)),
    ("aten::hardtanh", (a,)),
    ("aten::scalar_tensor", (2.0,)),
    ("aten::ones_like", (a,)),
    ("aten::full_like", (i, 4)),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda n: f"{n}-{CASES[n][0][6:]}")
def test_operator(case, isa):
    op, args, *options = CASES[case]
    kwargs = options[0] if options else {}
    expected = overload(op)(*args, **kwargs)
    got = run(paths.isa(isa, 2), op, *args, **kwargs)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, equal_nan=True)


DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
]


def sample(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    values = torch.randint(0 if dtype in (torch.bool, torch.uint8) else -5, 6, shape)
    return (values + 0.25).to(dtype) if dtype.is_floating_point else values.to(dtype)


@pytest.mark.parametrize("left", DTYPES)
@pytest.mark.parametrize("right", DTYPES)
def test_promotion(left, right):
    """Sums, products and comparisons of every pair of dtypes, with a broadcast operand."""
    x, y = sample(left, 3, 17), sample(right, 17)
    for op in ("aten::add.Tensor", "aten::mul.Tensor", "aten::lt.Tensor"):
        expected = overload(op)(x, y)
        got = run(paths.isa("auto", 2), op, x, y)
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_conversion(source, target):
    x = sample(source, 3, 17)
    if source.is_floating_point and not target.is_floating_point:
        x = x.abs()  # what a negative float becomes in an unsigned integer is undefined
    got = run(paths.isa("auto", 2), "aten::_to_copy", x, dtype=target)
    assert torch.equal(got, x.to(target))


def test_large_enough_to_run_in_parallel():
    torch.manual_seed(0)
    path = paths.isa("auto", 2)
    x, y = torch.randn(3, 17, 1031), torch.randn(17, 1)
    assert torch.equal(run(path, "aten::add.Tensor", x, y), x + y)
    assert torch.equal(run(path, "aten::permute", x, [2, 0, 1]), x.permute(2, 0, 1))
    flat = torch.randn(100_003)
    assert torch.equal(run(path, "aten::neg", flat), -flat)
    torch.testing.assert_close(run(path, "aten::sum.dim_IntList", x, [0]), x.sum(0))
    torch.testing.assert_close(run(path, "aten::softmax.int", x, 2), x.softmax(2))
