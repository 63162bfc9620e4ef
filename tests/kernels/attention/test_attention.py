"""``zoomc::attention`` on the CPU against fp64, on every path this machine can run."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.kernels.attention import op  # noqa: F401 - registers the operator
from zoomc.kernels.tir import run as tir_run
from zoomc.kernels.tir.isa import isa, supported
from zoomc.kernels.tir.kernel import Unsupported, lower

NAME = "zoomc::attention"
PATHS = supported()
# Masks and edges are one code for all paths: the best and the plainest stand for the rest.
ENDS = [PATHS[0], PATHS[-1]]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Relative error of the whole result (Frobenius). fp32: a few roundings of 2^-24 and sums of up to
# a block of terms. fp16: the result's own rounding, 2^-11 at most, 2^-12 on average. bf16: the
# result's rounding, 2^-8 at most, and where bf16 products are used the weights' rounding too.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 5e-3}


def inputs(shape: tuple[int, ...], dtype: torch.dtype, spread: float = 1.0, seed: int = 0):
    """q, k and v for (batch, heads, queries, keys, dim), heads side by side."""
    batch, heads, queries, keys, dim = shape
    generator = torch.Generator().manual_seed(seed)

    def make(rows: int, factor: float) -> torch.Tensor:
        x = torch.randn(batch, rows, heads * dim, generator=generator) * factor
        return x.to(dtype)

    return make(queries, spread), make(keys, spread), make(keys, 1.0)


def reference(q, k, v, **kwargs):
    mask = kwargs.get("mask")
    if mask is not None and mask.dtype is not torch.bool:
        kwargs["mask"] = mask.double()
    return torch.ops.zoomc.attention(q.double(), k.double(), v.double(), **kwargs)


def check(path: str, q, k, v, threads: int = 2, **kwargs) -> torch.Tensor:
    got = tir_run.run(isa(path, threads=threads), NAME, q, k, v, **kwargs)
    want = reference(q, k, v, **kwargs)
    assert got.dtype is q.dtype and got.shape == want.shape
    error = (got.double() - want).norm() / want.norm().clamp_min(1e-30)
    assert error <= TOLERANCE[q.dtype], f"relative error {error:.3g}"
    return got


def arguments(shape: tuple[int, ...], **kwargs):
    _, heads, _, _, dim = shape
    return {"heads": heads, "head_dim": dim, "scale": dim**-0.5} | kwargs


SHAPES = [
    (1, 1, 1, 1, 8),
    (2, 3, 1, 5, 40),
    (2, 2, 77, 77, 64),
    (1, 3, 50, 131, 80),
    (1, 1, 40, 200, 512),
    (1, 2, 37, 97, 24),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(path: str, shape, dtype: torch.dtype) -> None:
    check(path, *inputs(shape, dtype), **arguments(shape))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dim", [1, 20, 33])
def test_odd_heads(path: str, dim: int) -> None:
    shape = (1, 2, 21, 43, dim)
    check(path, *inputs(shape, torch.bfloat16), **arguments(shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_many_blocks(path: str, dtype: torch.dtype) -> None:
    shape = (1, 1, 300, 1100, 40)
    check(path, *inputs(shape, dtype, spread=1.5), **arguments(shape))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_projection(path: str, dtype: torch.dtype) -> None:
    """Columns of one wide row, with other columns that must not matter around them."""
    heads, dim = 3, 40
    size = heads * dim
    fused = torch.randn(2, 61, 3 * size + 11, generator=torch.Generator().manual_seed(1)).to(dtype)
    fused[..., 3 * size + 5 :] = math.nan
    fused[..., :5] = math.nan
    kwargs = {"heads": heads, "head_dim": dim, "scale": 0.2}
    check(path, fused, fused, fused, offsets=(5, 5 + size, 5 + 2 * size), **kwargs)


MASKS = [(50, 45), (50, 1), (1, 1, 45), (3, 50, 45), (2, 1, 1, 45), (2, 1, 50, 45)]
MASKS += [(1, 3, 1, 45), (2, 3, 50, 45), (2, 1, 50, 1)]


@pytest.mark.parametrize("path", ENDS)
@pytest.mark.parametrize("mask_shape", MASKS, ids=str)
def test_mask_shapes(path: str, mask_shape: tuple[int, ...]) -> None:
    shape = (2, 3, 50, 45, 16)
    generator = torch.Generator().manual_seed(2)
    q, k, v = inputs(shape, torch.float32)
    added = torch.randn(mask_shape, generator=generator) * 3
    check(path, q, k, v, mask=added, **arguments(shape))
    seen = torch.rand(mask_shape, generator=generator) > 0.4
    check(path, q, k, v, mask=seen, **arguments(shape))


@pytest.mark.parametrize("path", ENDS)
@pytest.mark.parametrize("mask_dtype", DTYPES, ids=str)
def test_mask_dtypes(path: str, mask_dtype: torch.dtype) -> None:
    shape = (1, 2, 20, 45, 16)
    mask = (torch.randn(20, 45, generator=torch.Generator().manual_seed(3)) * 3).to(mask_dtype)
    check(path, *inputs(shape, mask_dtype), mask=mask, **arguments(shape))


@pytest.mark.parametrize("path", ENDS)
@pytest.mark.parametrize("sizes", [(77, 77), (300, 300), (40, 150), (150, 40)], ids=str)
def test_causal(path: str, sizes: tuple[int, int]) -> None:
    shape = (1, 3, *sizes, 32)
    for dtype in DTYPES:
        check(path, *inputs(shape, dtype), causal=True, **arguments(shape))


@pytest.mark.parametrize("path", ENDS)
def test_causal_and_padding(path: str) -> None:
    """CLIP: causal, and keys after each prompt's end masked by the lowest finite number."""
    shape = (2, 2, 77, 77, 64)
    lowest = torch.finfo(torch.float32).min
    mask = torch.triu(torch.full((77, 77), lowest), 1).expand(2, 1, 77, 77).clone()
    mask[0, ..., 9:] = lowest
    for dtype in (torch.float32, torch.bfloat16):
        check(path, *inputs(shape, dtype), mask=mask, **arguments(shape))


@pytest.mark.parametrize("path", ENDS)
def test_rows_without_keys(path: str) -> None:
    """Zero where every key is masked by -inf; uniform where by the lowest finite number."""
    shape = (1, 2, 40, 70, 16)
    q, k, v = inputs(shape, torch.float32)
    seen = torch.ones(40, 70, dtype=torch.bool)
    seen[[3, 39]] = False
    got = check(path, q, k, v, mask=seen, **arguments(shape))
    assert (got[0, [3, 39]] == 0).all()
    mask = torch.zeros(40, 70).masked_fill(~seen, torch.finfo(torch.float32).min)
    want = torch.ops.zoomc.attention(q, k, v, mask=mask, **arguments(shape))
    got = tir_run.run(isa(path, threads=2), NAME, q, k, v, mask=mask, **arguments(shape))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[0, 3], v[0].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", ENDS)
@pytest.mark.parametrize("scale", [0.0, -0.3, 40.0, 1e-30])
def test_scales(path: str, scale: float) -> None:
    shape = (1, 2, 40, 300, 16)
    # Scores of hundreds: their own rounding, 2^-24 of their size, shows in the exponent.
    q, k, v = inputs(shape, torch.float32)
    got = tir_run.run(isa(path, threads=2), NAME, q, k, v, heads=2, head_dim=16, scale=scale)
    want = reference(q, k, v, heads=2, head_dim=16, scale=scale)
    assert (got - want).norm() / want.norm() <= 1e-6 * max(1.0, abs(scale) * 4)


@pytest.mark.parametrize("path", ENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_growing_scores(path: str, dtype: torch.dtype) -> None:
    """Every key block beats the last by far: the sums must be rescaled each time."""
    shape = (1, 1, 64, 1200, 16)
    q, k, v = inputs(shape, dtype)
    q[...], k[...] = 1.0, (torch.arange(1200) / 64)[None, :, None].to(dtype)
    check(path, q, k, v, heads=1, head_dim=16, scale=1.0)
    check(path, q, k.flip(1), v, heads=1, head_dim=16, scale=1.0)
    check(path, q, k, v, heads=1, head_dim=16, scale=-1.0)


@pytest.mark.parametrize("path", ENDS)
@pytest.mark.parametrize("size", [1.0, 16.0, 4096.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_scores(path: str, size: float, dtype: torch.dtype) -> None:
    """Sizes at which the range of weights, then that of a 32-bit integer, is left behind."""
    shape = (1, 2, 45, 300, 64)
    generator = torch.Generator().manual_seed(4)
    q, k = (torch.randint(-8, 9, (1, n, 128), generator=generator) for n in (45, 300))
    q, k = (x.to(dtype) for x in (q, k * size))  # exact products, and so exact scores
    check(path, q, k, inputs(shape, dtype)[2], **arguments(shape))
    check(path, q, k.flip(1), inputs(shape, dtype)[2], **arguments(shape))


@pytest.mark.parametrize("path", ENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_largest_score_comes_last(path: str, dtype: torch.dtype) -> None:
    """So far above the rest that weights relative to the first keys would overflow."""
    shape = (1, 1, 300, 300, 16)
    q, k, v = (x.abs() for x in inputs(shape, dtype))
    for last in (1.0, 30.0, 3000.0):
        k[:, -1] = last
        check(path, q, k, v, heads=1, head_dim=16, scale=1.0)
        check(path, q, k, v, heads=1, head_dim=16, scale=-1.0)


@pytest.mark.parametrize("dim", [64, 120, 128, 136])
def test_wide_heads(dim: int) -> None:
    shape = (1, 2, 70, 140, dim)
    check(PATHS[0], *inputs(shape, torch.bfloat16), **arguments(shape))


@pytest.mark.parametrize("path", ENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("keys", [90, 300])
def test_nan_reaches_the_rows_it_touches(
    path: str, dtype: torch.dtype, which: int, keys: int
) -> None:
    if keys == 300 and path != PATHS[0]:
        pytest.skip("only the best path distinguishes many keys")
    shape = (1, 2, 40, keys, 16)
    operands = inputs(shape, dtype)
    operands[which][0, 7, 3] = math.nan
    want = torch.ops.zoomc.attention(*operands, **arguments(shape)).isnan()
    got = tir_run.run(isa(path, threads=2), NAME, *operands, **arguments(shape)).isnan()
    assert got.any() and bool((got >= want).all())
    assert not got[..., 16:].any(), "NaN crossed into another head"
    if which == 0:
        assert bool((got == want).all()), "NaN crossed into another query"


@pytest.mark.parametrize("path", ENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinity_is_never_hidden(path: str, dtype: torch.dtype) -> None:
    for which, keys in ((0, 90), (1, 90), (2, 90), (0, 300), (1, 300), (2, 300)):
        if keys == 300 and path != PATHS[0]:
            continue  # only the best path distinguishes many keys
        shape = (1, 2, 40, keys, 16)
        operands = inputs(shape, dtype)
        operands[which][0, 7, 3] = math.inf
        got = tir_run.run(isa(path, threads=2), NAME, *operands, **arguments(shape))
        want = torch.ops.zoomc.attention(*operands, **arguments(shape))
        assert bool((got.isfinite() <= want.isfinite()).all())
        assert got[..., 16:].isfinite().all()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads(threads: int) -> None:
    shape = (1, 3, 100, 90, 16)
    for path in PATHS:
        check(path, *inputs(shape, torch.float32), threads=threads, **arguments(shape))


@settings(max_examples=15, deadline=None)
@given(
    path=st.sampled_from(PATHS),
    dtype=st.sampled_from(DTYPES),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    queries=st.integers(1, 150),
    keys=st.integers(1, 400),
    dim=st.integers(1, 12).map(lambda n: 8 * n),
    causal=st.booleans(),
    masked=st.booleans(),
)
def test_random_shapes(path, dtype, batch, heads, queries, keys, dim, causal, masked) -> None:
    shape = (batch, heads, queries, keys, dim)
    kwargs = arguments(shape, causal=causal)
    if masked and not causal:  # torch takes one or the other
        kwargs["mask"] = torch.rand(batch, 1, queries, keys) > 0.3
    check(path, *inputs(shape, dtype, seed=queries), **kwargs)


def _kernel(path: str, *operands, threads: int = 2, **kwargs):
    return lower(tir_run.bind(NAME, *operands, **kwargs), isa(path, threads=threads))


def test_key_tells_kernels_apart() -> None:
    shape = (1, 2, 20, 30, 16)
    q, k, v = inputs(shape, torch.float32)
    base = arguments(shape)
    variants = [
        _kernel("portable", q, k, v, **base),
        _kernel("portable", q, k, v, **base | {"scale": 0.5}),
        _kernel("portable", q, k, v, **base | {"scale": -base["scale"]}),
        _kernel("portable", q, k, v, causal=True, **base),
        _kernel("portable", q, k, v, **base | {"heads": 1}),
        _kernel("portable", q, k, v, offsets=(0, 0, 0), mask=torch.zeros(30), **base),
        _kernel("portable", q, k, v, mask=torch.zeros(30, dtype=torch.bool), **base),
        _kernel("portable", q, k, v, threads=3, **base),
        _kernel("portable", q.half(), k.half(), v.half(), **base),
        _kernel("portable", *(torch.cat([x, x], -1) for x in (q, k, v)), **base),
        _kernel("portable", q, torch.cat([k, k], -1), v, offsets=(0, 32, 0), **base),
        _kernel("portable", q, torch.cat([k, k], -1), v, offsets=(0, 16, 0), **base),
    ]
    assert len({kernel.key for kernel in variants}) == len(variants)
    assert _kernel("portable", q, k, v, **base).key == variants[0].key


def test_says_why_not() -> None:
    shape = (1, 2, 20, 30, 16)
    q, k, v = inputs(shape, torch.float32)
    with pytest.raises(Unsupported, match="float64"):
        _kernel("portable", q.double(), k.double(), v.double(), **arguments(shape))
