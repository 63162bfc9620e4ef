"""GPU attention in the interpreter, against the reference."""

from __future__ import annotations

import math

import pytest
import torch
import zoomc.kernels.attention.op  # noqa: F401
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.triton.kernel import Unsupported, candidates
from zoomc.kernels.triton.run import bind, evaluate

from .compare import DTYPES, GPU, wide

ATTENTION = "zoomc::attention"
#: Scores are rounded to fp32, weights of the values to their dtype, the result once more.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}


def inputs(batch, heads, queries, keys, dim, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (queries, keys, keys)
    return [torch.randn(batch, n, heads * dim, generator=generator).to(dtype) for n in sizes]


def check(*operands, **kwargs):
    results = []
    expected = OPERATORS[ATTENTION].reference(*map(wide, operands), **kwargs | {
        "mask": wide(kwargs["mask"]) if kwargs.get("mask") is not None else None
    })  # fmt: skip
    for kernel in candidates(bind(ATTENTION, *operands, **kwargs), GPU):
        got = evaluate(kernel)
        error = (got.double() - expected).norm() / expected.norm()
        assert got.shape == expected.shape and got.dtype == operands[0].dtype
        assert error <= TOLERANCE[got.dtype], f"{dict(kernel.notes)}: {error:.2e}"
        results.append(got)
    return results


SHAPES = [(1, 1, 1, 1, 32), (2, 3, 5, 77, 40), (1, 2, 70, 33, 64), (1, 1, 65, 130, 80)]
SHAPES += [(1, 1, 9, 100, 160), (1, 1, 20, 40, 512), (1, 2, 7, 9, 5)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype):
    check(*inputs(*shape, dtype), heads=shape[1], head_dim=shape[4], scale=shape[4] ** -0.5)


def projection():
    """Columns of one wide row, with other columns that must not matter around them."""
    size = 3 * 40
    fused = torch.randn(2, 61, 3 * size + 11).half()
    fused[..., 3 * size + 5 :] = math.nan
    fused[..., :5] = math.nan
    offsets = [5, 5 + size, 5 + 2 * size]
    return [fused] * 3, {"heads": 3, "head_dim": 40, "scale": 0.2, "offsets": offsets}


def test_fused_projection():
    rows, arguments = projection()
    check(*rows, **arguments)


MASKS = [(50, 45), (50, 1), (1, 1, 45), (3, 50, 45), (2, 1, 1, 45), (2, 3, 50, 45), (2, 1, 50, 1)]


@pytest.mark.parametrize("mask_shape", MASKS, ids=str)
def test_masks(mask_shape):
    operands = inputs(2, 3, 50, 45, 32, torch.float32)
    arguments = {"heads": 3, "head_dim": 32, "scale": 0.2}
    check(*operands, mask=torch.randn(mask_shape) * 3, **arguments)
    check(*operands, mask=torch.rand(mask_shape) > 0.3, **arguments)


@pytest.mark.parametrize("sizes", [(77, 77), (130, 130), (20, 150), (150, 20)], ids=str)
def test_causal(sizes):
    operands = inputs(1, 2, *sizes, 32, torch.float32)
    check(*operands, heads=2, head_dim=32, scale=0.2, causal=True)


def test_rows_without_keys():
    """Zero where every key is masked by -inf; uniform where by the lowest finite number."""
    q, k, v = inputs(1, 2, 40, 70, 16, torch.float32)
    seen = torch.ones(40, 70, dtype=torch.bool)
    seen[[3, 39]] = False
    arguments = {"heads": 2, "head_dim": 16, "scale": 0.25}
    for got in check(q, k, v, mask=seen, **arguments):
        assert (got[0, [3, 39]] == 0).all()
    mask = torch.zeros(40, 70).masked_fill(~seen, torch.finfo(torch.float32).min)
    want = OPERATORS[ATTENTION].reference(q, k, v, mask=mask, **arguments)
    for kernel in candidates(bind(ATTENTION, q, k, v, mask=mask, **arguments), GPU):
        torch.testing.assert_close(evaluate(kernel), want, rtol=1e-5, atol=1e-6)


def test_large_scores_in_half():
    """Scores beyond fp16's 65504 stay in fp32."""
    q, k, v = inputs(1, 1, 40, 50, 64, torch.float16)
    for got in check(q * 60, k * 60, v, heads=1, head_dim=64, scale=1e-3):
        assert got.isfinite().all()


def test_growing_scores():
    """Every block of keys beats the last by far: the sums must be rescaled each time."""
    q, k, v = inputs(1, 1, 20, 300, 16, torch.float32)
    q[...], k[...] = 1.0, (torch.arange(300) / 16)[None, :, None]
    for keys in (k, k.flip(1), -k):
        check(q, keys, v, heads=1, head_dim=16, scale=1.0)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_stays_in_its_head(which):
    operands = inputs(1, 2, 40, 90, 16, torch.float16)
    operands[which][0, 7, 3] = math.nan
    arguments = {"heads": 2, "head_dim": 16, "scale": 0.25}
    want = OPERATORS[ATTENTION].reference(*map(wide, operands), **arguments).isnan()
    for kernel in candidates(bind(ATTENTION, *operands, **arguments), GPU):
        got = evaluate(kernel).isnan()
        assert got.any() and bool((got >= want).all()) and not got[..., 16:].any()
        if which == 0:
            assert torch.equal(got, want)


# --- products of bf16 and of int8 ------------------------------------------------------------


def check_arithmetic(operands, tolerance, arithmetic="int8", **kwargs):
    """Every candidate beside the reference of the same arithmetic."""
    kwargs |= {"arithmetic": arithmetic}
    want = OPERATORS[ATTENTION].reference(*operands, **kwargs)
    results = []
    for kernel in candidates(bind(ATTENTION, *operands, **kwargs), GPU):
        got = evaluate(kernel)
        error = (got.double() - want.double()).norm() / want.double().norm()
        assert got.shape == want.shape and got.dtype is want.dtype
        assert error <= tolerance, f"{dict(kernel.notes)}: {error:.2e}"
        assert kernel.notes["arithmetic"] == arithmetic
        results.append(got)
    return results


def test_fp32_in_bf16():
    """Weights are truncated to bf16 here, and operands: these are as if they were rounded."""
    operands = [
        x.bfloat16().float() * (1 + 2**-10) for x in inputs(2, 2, 40, 77, 40, torch.float32)
    ]
    arguments = {"heads": 2, "head_dim": 40, "scale": 0.2}
    mask = torch.randn(40, 77)
    for got in check_arithmetic(operands, 6e-3, "bf16", mask=mask, **arguments):
        kept = OPERATORS[ATTENTION].reference(*operands, mask=mask, **arguments)
        assert not torch.equal(got, kept)


#: Sums in another order, exponentials' last places. bf16 is truncated, not rounded, here.
INT8 = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 6e-3}
INT8_SHAPES = [(1, 1, 1, 1, 32), (2, 3, 5, 77, 40), (1, 2, 70, 33, 64), (1, 1, 65, 300, 80)]
INT8_SHAPES += [(1, 1, 9, 257, 160), (1, 2, 7, 9, 5), (1, 1, 3, 2200, 24), (1, 1, 5, 130, 256)]


@pytest.mark.parametrize("shape", INT8_SHAPES, ids=str)
def test_int8_shapes(shape):
    dtype = DTYPES[INT8_SHAPES.index(shape) % 3]
    scale = (-1) ** shape[1] * -(shape[4] ** -0.5)
    arguments = {"heads": shape[1], "head_dim": shape[4], "scale": scale}
    check_arithmetic(inputs(*shape, dtype), INT8[dtype], **arguments)


def test_int8_sums_are_the_references():
    """Integers as values and scales of one: nothing is left to differ but the last division.

    Keys come in pairs of opposite signs, whose mean is zero.
    """
    generator = torch.Generator().manual_seed(0)
    q, half, v = (
        torch.randint(-126, 127, (1, n, 2 * 48), generator=generator).float() for n in (70, 50, 100)
    )
    k = torch.cat([half, -half], 1)
    for x in (q.unflatten(-1, (2, 48))[..., 5], v[:, :1], k[:, :1].unflatten(-1, (2, 48))[..., 3]):
        x.fill_(127)
    arguments = {"heads": 2, "head_dim": 48, "arithmetic": "int8"}
    for scale in (1e-5, -1e-4):
        want = OPERATORS[ATTENTION].reference(q, k, v, scale=scale, **arguments)
        for kernel in candidates(bind(ATTENTION, q, k, v, scale=scale, **arguments), GPU):
            assert torch.equal(evaluate(kernel), want)


def test_int8_fused_projection():
    rows, arguments = projection()
    check_arithmetic(rows, INT8[torch.float16], **arguments)


def test_int8_of_growing_scores_and_of_equal_ones():
    """Every block of keys beats the last by far; and queries of zero, whose scale is the least."""
    q, k, v = inputs(1, 1, 20, 300, 16, torch.float32)
    arguments = {"heads": 1, "head_dim": 16, "scale": 1.0}
    q[...], k[...] = 1.0, (torch.arange(300) / 16)[None, :, None]
    for keys in (k, k.flip(1)):
        check_arithmetic([q, keys, v], INT8[torch.float32], **arguments)
    for got in check_arithmetic([q * 0, k, v], INT8[torch.float32], **arguments):
        assert (got - v.mean(1)).norm() < 0.05 * v.mean(1).norm() * 20**0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_int8_nan_stays(which, value):
    operands = inputs(1, 2, 40, 140, 16, torch.float16)
    operands[which][0, 7, 3] = value
    arguments = {"heads": 2, "head_dim": 16, "scale": 0.25, "arithmetic": "int8"}
    want = OPERATORS[ATTENTION].reference(*operands, **arguments)
    assert want.isnan().any() and not want.isnan().all()
    for kernel in candidates(bind(ATTENTION, *operands, **arguments), GPU):
        assert torch.equal(evaluate(kernel).isnan(), want.isnan())


def test_int8_says_why_not():
    q, k, v = inputs(1, 1, 4, 4, 264, torch.float16)
    arguments = {"head_dim": 264, "heads": 1, "scale": 1.0, "arithmetic": "int8"}
    with pytest.raises(Unsupported, match="264; the widest are 256"):
        candidates(bind(ATTENTION, q, k, v, **arguments), GPU)
    arguments |= {"head_dim": 8, "causal": True}
    with pytest.raises(Unsupported, match="not causal"):
        candidates(bind(ATTENTION, q, k, v, **arguments), GPU)


def test_says_why_not():
    q, k, v = inputs(1, 1, 4, 4, 8, torch.float64)
    with pytest.raises(Unsupported, match="float64"):
        candidates(bind(ATTENTION, q, k, v, heads=1, head_dim=8, scale=1.0), GPU)
    q, k, v = inputs(1, 1, 4, 4, 520, torch.float32)
    with pytest.raises(Unsupported, match="520"):
        candidates(bind(ATTENTION, q, k, v, heads=1, head_dim=520, scale=1.0), GPU)
