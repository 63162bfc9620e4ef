"""Groups of calls in one kernel, against the same calls in eager."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.kernels.pointwise.fuse import fuse, kind
from zoomc.kernels.tir import isa as paths
from zoomc.kernels.tir.kernel import Call, TensorSpec, Unsupported, Value
from zoomc.kernels.tir.run import bind, load, overload


class Group:
    """Records calls on tensors: eager results, and the same calls linked by their results."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, Call]] = []

    def __call__(self, op: str, *args, **kwargs) -> torch.Tensor:
        result = overload(op)(*args, **kwargs).clone()
        self.calls.append((result, bind(op, *args, **kwargs)))
        return result

    def check(self, isa: str = "auto", tolerance: float = 2e-5) -> None:
        path = paths.isa(isa, 2)
        kernel = fuse(self.calls, path)
        expected = self.calls[-1][0]
        got = load(kernel, path)()
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_timestep_embedding():
    group = Group()
    t = torch.tensor([3, 871])
    steps = group("aten::arange", 160, dtype=torch.float32)
    scaled = group("aten::mul.Tensor", steps, -9.21034 / 160)
    wave = group("aten::exp", scaled)
    column = group("aten::unsqueeze", t, 1)
    wide = group("aten::_to_copy", column, dtype=torch.float32)
    product = group("aten::mul.Tensor", wide, wave)
    sine, cosine = group("aten::sin", product), group("aten::cos", product)
    group("aten::cat", [cosine, sine], -1)
    kernel = fuse(group.calls, paths.isa("auto", 2))
    assert [o.spec for o in kernel.operands] == [TensorSpec((2,), torch.int64)]
    # One unit in the last place of an angle near 871 is 6e-5.
    group.check(tolerance=2e-4)


def test_causal_mask():
    group = Group()
    full = group("aten::full", [77, 77], float("-inf"))
    group("aten::triu", full, 1)
    group.check()


def test_pooled_token():
    group = Group()
    ids = torch.randint(0, 49, (2, 77))
    hidden = torch.randn(2, 77, 64)
    last = ids.argmax(-1)
    group("aten::index.Tensor", hidden, [torch.arange(2), last])
    group.check()


def test_a_reduction_ends_a_group():
    group = Group()
    x = torch.randn(6, 5, 33)
    y = group("aten::mul.Tensor", x, 2.0)
    y = group("aten::permute", y, [0, 2, 1])
    group("aten::sum.dim_IntList", y, [1])
    group.check()


def test_nhwc_to_nchw_in_bf16():
    group = Group()
    x = torch.randn(2, 16, 16, 21).bfloat16()
    group("aten::permute", x, [0, 3, 1, 2])
    group.check()


def test_equal_arguments_of_other_types_make_other_keys():
    x = torch.randint(0, 9, (8,))
    path = paths.isa("auto", 2)
    keys = {
        fuse([(object(), bind("aten::add.Tensor", x, value))], path).key for value in (1, 2, 1.0)
    }
    keys |= {fuse([(object(), bind("aten::mul.Tensor", x, 1))], path).key}
    assert len(keys) == 4


def test_a_shared_value_is_not_two_values():
    """x - x and x - y have the same shapes but not the same code."""
    x, y = torch.randn(8), torch.randn(8)
    path = paths.isa("auto", 2)
    one = fuse([(object(), bind("aten::sub.Tensor", x, x))], path)
    two = fuse([(object(), bind("aten::sub.Tensor", x, y))], path)
    assert one.key != two.key


def test_kinds():
    assert kind("aten::add.Tensor") == "pointwise"
    assert kind("aten::permute") == "movement"
    assert kind("aten::view") == "view"
    assert kind("aten::arange") == "creator"
    assert kind("aten::sum.dim_IntList") == "reduction"
    assert kind("aten::convolution") is None
    assert kind("zoomc::conv2d") is None


def test_unknown_options_are_refused_when_lowering():
    x = torch.randn(4)
    spec = TensorSpec((4,), torch.float32)
    for op, args in (
        ("aten::round.decimals", {"self": Value(spec, source=x), "decimals": 2}),
        ("aten::linalg_vector_norm", {"self": Value(spec, source=x), "ord": 3, "dim": None}),
    ):
        with pytest.raises(Unsupported):
            fuse([(object(), Call(op, args, spec))], paths.isa("auto", 2))


UNARY = ["neg", "abs", "relu", "tanh", "sigmoid", "silu", "leaky_relu"]
BINARY = ["add.Tensor", "sub.Tensor", "mul.Tensor", "maximum", "minimum"]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_graphs(data):
    draw = data.draw
    shape = draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    torch.manual_seed(draw(st.integers(0, 99)))
    row = [1] * (len(shape) - 1) + shape[-1:]
    pool = [torch.randn(shape), torch.randn(row)]
    group = Group()
    for _ in range(draw(st.integers(1, 7))):
        x = pool[draw(st.integers(0, len(pool) - 1))]
        rank = x.dim()
        move = draw(st.sampled_from(["unary", "binary", "flip", "permute", "slice", "pad", "cat"]))
        if move == "unary":
            y = group(f"aten::{draw(st.sampled_from(UNARY))}", x)
        elif move == "binary":
            fits = [p for p in pool if p.shape == x.shape] + [torch.randn(x.shape[-1:])]
            other = fits[draw(st.integers(0, len(fits) - 1))]
            y = group(f"aten::{draw(st.sampled_from(BINARY))}", x, other)
        elif move == "flip":
            y = group("aten::flip", x, [draw(st.integers(0, rank - 1))])
        elif move == "permute":
            y = group("aten::permute", x, draw(st.permutations(range(rank))))
        elif move == "slice":
            d = draw(st.integers(0, rank - 1))
            y = group("aten::slice.Tensor", x, d, draw(st.integers(0, x.shape[d] - 1)))
        elif move == "pad":
            y = group("aten::constant_pad_nd", x, [draw(st.integers(0, 3)), 1], 0.5)
        else:
            y = group("aten::cat", [x, x], draw(st.integers(0, rank - 1)))
        pool.append(y)
    group.check(draw(st.sampled_from(paths.supported())))
