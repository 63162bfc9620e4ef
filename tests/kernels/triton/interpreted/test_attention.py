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


def test_fused_projection():
    """Columns of one wide row, with other columns that must not matter around them."""
    size = 3 * 40
    fused = torch.randn(2, 61, 3 * size + 11).half()
    fused[..., 3 * size + 5 :] = math.nan
    fused[..., :5] = math.nan
    offsets = [5, 5 + size, 5 + 2 * size]
    check(fused, fused, fused, heads=3, head_dim=40, scale=0.2, offsets=offsets)


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


def test_says_why_not():
    q, k, v = inputs(1, 1, 4, 4, 8, torch.float64)
    with pytest.raises(Unsupported, match="float64"):
        candidates(bind(ATTENTION, q, k, v, heads=1, head_dim=8, scale=1.0), GPU)
    q, k, v = inputs(1, 1, 4, 4, 520, torch.float32)
    with pytest.raises(Unsupported, match="520"):
        candidates(bind(ATTENTION, q, k, v, heads=1, head_dim=520, scale=1.0), GPU)
