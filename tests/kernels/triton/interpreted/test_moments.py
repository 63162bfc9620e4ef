"""Moments of a map that the kernel writing it gathers, and kernels that are given them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import zoomc.kernels.conv2d.op
import zoomc.kernels.linear.op
import zoomc.kernels.norm.op  # noqa: F401
from zoomc.kernels.triton.kernel import Call, Kernel, Value, candidates, gathering, given
from zoomc.kernels.triton.maps import moments_of
from zoomc.kernels.triton.run import bind, evaluate

from ...coded import coded
from .compare import GPU

SAME = [1, 1, 1, 1]


def ways(call: Call) -> list[Kernel]:
    """One kernel for every way there is to run a call."""
    found: dict[Any, Kernel] = {}
    for kernel in candidates(call, GPU):
        way = [kernel.notes.get(name) for name in ("route", "weights")]
        found.setdefault((*way, kernel.notes.get("split", 1) > 1, len(kernel.extras)), kernel)
    return list(found.values())


def conv(channels: int, out: int, size: tuple[int, ...] = (2, 8, 8), **kwargs: Any) -> Call:
    torch.manual_seed(channels + out)
    x = (torch.randn(*size, channels) + 3).half()
    weight = (torch.randn(out, channels, 3, 3) / (3 * channels**0.5)).half()
    kwargs |= {"shift": torch.randn(size[0], out).half()}
    kwargs |= {"residual": torch.randn(*size, out).half()}
    return bind("zoomc::conv2d", [x], weight, padding=SAME, **kwargs)


def geglu() -> Call:
    torch.manual_seed(0)
    x, weight = torch.randn(128, 32).half(), torch.randn(80, 32).half()
    return bind("zoomc::linear", x, weight, activation="geglu")


def quantised() -> Call:
    torch.manual_seed(0)
    weight, extra = coded((24, 16, 1, 1), 4)
    return bind("zoomc::conv2d", [torch.randn(2, 8, 8, 16)], weight, **extra)


@pytest.mark.parametrize(
    "call", [conv(16, 40), conv(192, 16), geglu(), quantised()], ids=["", "split", "geglu", "int"]
)
def test_gathered_beside_the_result(call):
    kernels = [k for k in ways(gathering(call, 64)) if k.extras]
    assert kernels
    for kernel in kernels:
        expected = kernel.extras["moments"].of(evaluate(kernel))
        got = evaluate(kernel, result="moments")
        assert got.shape == expected.shape and got.shape[1] % 2 == 0
        assert torch.equal(got[2:], expected[2:]), "least and greatest value are exact"
        for one, other in zip(got[:2], expected[:2], strict=True):
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_gathered_only_where_blocks_end_with_images():
    assert any(k.notes["split"] > 1 for k in ways(conv(192, 16)))
    blocks = {16: True, 64: False}
    for kernel in candidates(gathering(conv(192, 16, (2, 4, 4)), 16), GPU):
        assert bool(kernel.extras) == (kernel.notes["split"] > 1)
        assert not kernel.extras or blocks[128 // kernel.extras["moments"].spec.shape[1] // 4]
    assert not any(k.extras for k in candidates(gathering(conv(16, 40, (2, 5, 3)), 15), GPU))


def reading(kind: str, bits: int, size: tuple[int, ...]) -> Call:
    """A convolution that normalises, or quantises, or both; of one map or two."""
    torch.manual_seed(1)
    inputs = [(torch.randn(*size, c) + 2).half() for c in ((16,) if "one" in kind else (24, 40))]
    total = sum(x.shape[-1] for x in inputs)
    weight, extra = torch.randn(8, total, 1, 1).half() / total, {}
    if bits < 16:
        weight, extra = coded((8, total, 1, 1), bits)
        extra["channel_scale"] /= 1000
    if "norm" in kind:
        extra |= {"norm_groups": 4, "norm_weight": torch.randn(total), "pre_activation": "silu"}
    return bind("zoomc::conv2d", inputs, weight, **extra)


def moments(x: torch.Tensor, chunk: int) -> Value:
    blocks = x.numel() // x.shape[-1] // chunk
    spec = type(bind("zoomc::group_norm", x, 1).out)((4, blocks, x.shape[-1]), torch.float32)
    return Value(spec, source=moments_of(x, blocks))


@pytest.mark.parametrize("chunk", [4, 64])
@pytest.mark.parametrize(
    ("kind", "bits"), [("one norm", 16), ("norm", 16), ("norm", 8), ("one", 8), ("two", 4)]
)
def test_given_moments_take_the_place_of_a_pass(kind, bits, chunk):
    call = reading(kind, bits, (2, 8, 8))
    values = [moments(v.source, chunk) for v in call["inputs"]]
    for taken in [values] if len(values) == 1 else [values, [values[0], None], [None, values[1]]]:
        for before, after in zip(ways(call), ways(given(call, taken)), strict=True):
            passes = [[x.function.__name__ for x in k.launches] for k in (before, after)]
            names = [name.count("map_moments") for name in passes]
            assert names == [len(values), taken.count(None)]
            saved = sum(
                v.spec.nbytes for v, t in zip(call["inputs"], taken, strict=True) if t is not None
            )
            if chunk == 64:  # few moments: what is saved is the reading of the map
                assert before.activation_nbytes - after.activation_nbytes > saved / 2
            expected, got = evaluate(before), evaluate(after)
            if "norm" not in kind:
                assert torch.equal(got, expected), "the same extremes give the same codes"
            assert (got - expected).norm() <= 1e-3 * expected.norm()


def test_a_norm_of_its_own_takes_them_too():
    x = torch.randn(2, 64, 24) * 3 + 50
    call = bind("zoomc::group_norm", x, 4, torch.randn(24), torch.randn(24))
    (kernel,) = candidates(given(call, [moments(x, 16)]), GPU)
    assert [x.function.__name__ for x in kernel.launches] == ["map_affine", "prepare_map"]
    (alone,) = candidates(call, GPU)
    torch.testing.assert_close(evaluate(kernel), evaluate(alone), rtol=1e-4, atol=1e-4)


def test_many_blocks_are_merged_in_turns():
    x = torch.randn(1, 2048, 8) + torch.arange(2048)[:, None] / 100
    call = bind("zoomc::group_norm", x, 1)
    (kernel,) = candidates(given(call, [moments(x, 1)]), GPU)
    assert kernel.launches[0].arguments["BCHUNK"] < 2048
    expected = torch.nn.functional.group_norm(x.mT, 1).mT
    torch.testing.assert_close(evaluate(kernel), expected, rtol=1e-4, atol=1e-4)


def test_what_is_not_finite_spoils_its_image_alone():
    call = reading("two", 8, (3, 4, 4))
    x = call["inputs"][1].source
    for bad in (math.nan, math.inf):
        x[1, 2, 3, 4] = bad
        taken = given(call, [None, moments(x, 16)])
        for kernel in ways(taken):
            finite = evaluate(kernel).isfinite().flatten(1).all(1)
            assert finite.tolist() == [True, False, True]
