"""Attention in int8 and in bf16, on the paths that have them, against their references."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from zoomc.kernels.attention import op  # noqa: F401 - registers the operator
from zoomc.kernels.attention.integer import BLOCK
from zoomc.kernels.tir import run as tir_run
from zoomc.kernels.tir.isa import isa, supported
from zoomc.kernels.tir.kernel import Unsupported, lower
from zoomc.kernels.tir.plan import StalePlan

NAME = "zoomc::attention"
#: Paths with byte products, one for each length of vectors, and those with bf16 products.
BYTES = [path for path in ("avx512", "avx2") if path in supported() and isa(path).vnni]
HALVES = [path for path in ("amx", "avx512_bf16") if path in supported()]
#: A kernel's exponentials err by 1e-4, which puts one weight in a hundred one code of 255 off.
INT8 = 1.5e-3
#: Rounding of the weights to bf16, 2^-9 at most.
BF16 = 3e-3

needs_bytes = pytest.mark.skipif(not BYTES, reason="this CPU multiplies no bytes (VNNI)")


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """q, k and v for (batch, heads, queries, keys, dim)."""
    batch, heads, queries, keys, dim = shape
    generator = torch.Generator().manual_seed(queries)
    sizes = (queries, keys, keys)
    return [torch.randn(batch, n, heads * dim, generator=generator).to(dtype) for n in sizes]


def arguments(shape: tuple[int, ...], arithmetic: str = "int8", **kwargs):
    _, heads, _, _, dim = shape
    values = {"heads": heads, "head_dim": dim, "scale": dim**-0.5, "arithmetic": arithmetic}
    return values | kwargs


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def check(path: str, operands, tolerance: float, threads: int = 2, **kwargs) -> torch.Tensor:
    got = tir_run.run(isa(path, threads=threads), NAME, *operands, **kwargs)
    want = torch.ops.zoomc.attention(*operands, **kwargs)
    assert got.dtype is want.dtype and got.shape == want.shape
    assert error(got, want) <= tolerance
    return got


# --- the reference --------------------------------------------------------------------------


def exact(operands, kwargs) -> torch.Tensor:
    wide = (x.double() for x in operands)
    return torch.ops.zoomc.attention(*wide, **kwargs | {"arithmetic": "keep"})


@pytest.mark.parametrize(("arithmetic", "most"), [("int8", 0.016), ("bf16", 0.004)])
@pytest.mark.parametrize("keys", [1, 77, 300])
def test_references_err_as_little_as_their_bits_explain(arithmetic, most, keys) -> None:
    shape = (2, 2, 40, keys, 64)
    operands, kwargs = inputs(shape), arguments(shape, arithmetic)
    got = torch.ops.zoomc.attention(*operands, **kwargs)
    assert error(got, exact(operands, kwargs)) < most
    kept = torch.ops.zoomc.attention(*operands, **kwargs | {"arithmetic": "keep"})
    assert not torch.equal(got, kept)


def test_what_all_keys_share_costs_no_bits() -> None:
    shape = (1, 2, 40, 300, 64)
    q, k, v = inputs(shape)
    kwargs = arguments(shape)
    plain = error(torch.ops.zoomc.attention(q, k, v, **kwargs), exact((q, k, v), kwargs))
    k = k + torch.linspace(-40, 40, k.shape[-1])
    assert error(torch.ops.zoomc.attention(q, k, v, **kwargs), exact((q, k, v), kwargs)) < (
        1.2 * plain
    )


def test_an_outlier_spoils_its_own_block_and_column_only() -> None:
    shape = (1, 1, 40, 3 * BLOCK, 64)
    q, k, v = inputs(shape)
    kwargs = arguments(shape)
    plain = torch.ops.zoomc.attention(q, k, v, **kwargs)
    v[0, 5, 7] = 1e4
    got = torch.ops.zoomc.attention(q, k, v, **kwargs)
    others = [column for column in range(64) if column != 7]
    assert torch.equal(got[..., others], plain[..., others])


def test_fake_tensors_and_flops() -> None:
    shape = (2, 3, 7, 5, 40)
    with FakeTensorMode() as mode:
        q, k, v = (mode.from_tensor(x) for x in inputs(shape, torch.bfloat16))
        y = torch.ops.zoomc.attention(q, k, v, **arguments(shape))
    assert y.shape == (2, 7, 120) and y.dtype is torch.bfloat16 and y.is_contiguous()


def test_references_refuse_what_has_no_meaning() -> None:
    shape = (1, 1, 4, 4, 8)
    with pytest.raises(ValueError, match="one of int8, bf16, keep"):
        torch.ops.zoomc.attention(*inputs(shape), **arguments(shape, "int4"))
    with pytest.raises(ValueError, match="no mask"):
        torch.ops.zoomc.attention(*inputs(shape), causal=True, **arguments(shape))


# --- int8 kernels ---------------------------------------------------------------------------

SHAPES = [
    (1, 1, 1, 1, 8),
    (2, 3, 7, 5, 40),
    (1, 2, 100, 77, 64),
    (1, 1, 50, 131, 160),
    (1, 2, 33, 2 * BLOCK, 32),
    (1, 2, 9, 43, 33),
]


@needs_bytes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape) -> None:
    check(BYTES[0], inputs(shape), INT8, **arguments(shape))


@pytest.mark.parametrize("path", BYTES[1:])
@pytest.mark.parametrize("shape", [(2, 2, 21, 150, 40), (1, 1, 3, 7, 8)], ids=str)
def test_shorter_vectors(path: str, shape) -> None:
    check(path, inputs(shape), INT8, **arguments(shape))


@needs_bytes
def test_fused_projection_in_bf16_on_three_threads() -> None:
    """Columns of one wide row, with other columns that must not matter around them."""
    heads, dim = 3, 40
    size = heads * dim
    fused = torch.randn(2, 61, 3 * size + 11, generator=torch.Generator().manual_seed(1))
    fused = fused.bfloat16()
    fused[..., 3 * size + 5 :] = math.nan
    fused[..., :5] = math.nan
    kwargs = {"heads": heads, "head_dim": dim, "scale": -0.2, "arithmetic": "int8"}
    offsets = (5, 5 + size, 5 + 2 * size)
    check(BYTES[0], [fused] * 3, 5e-3, threads=3, offsets=offsets, **kwargs)


class Reused:
    """One kernel, run on many values of the same operands."""

    shape = (1, 2, 40, 300, 16)

    def __init__(self) -> None:
        self.operands = inputs(self.shape)
        self.fresh = [x.clone() for x in self.operands]
        assert all(x.data_ptr() % 64 == 0 for x in self.operands), "or the kernel gets copies"
        path = isa(BYTES[0], threads=2)
        self.kwargs = arguments(self.shape)
        self.call = tir_run.load(
            lower(tir_run.bind(NAME, *self.operands, **self.kwargs), path), path
        )

    def run(self, change) -> tuple[torch.Tensor, torch.Tensor]:
        """What the kernel and the reference make of changed operands."""
        for x, fresh in zip(self.operands, self.fresh, strict=True):
            x.copy_(fresh)
        change(*self.operands)
        return self.call().clone(), torch.ops.zoomc.attention(*self.operands, **self.kwargs)


@pytest.fixture(scope="module")
def reused() -> Reused:
    if not BYTES:
        pytest.skip("this CPU multiplies no bytes (VNNI)")
    return Reused()


CORNERS = {
    "as they are": lambda q, k, v: None,
    "zeros": lambda q, k, v: [x.zero_() for x in (q, k, v)],
    "constant keys": lambda q, k, v: k.fill_(3.7),
    "tiny": lambda q, k, v: [x.mul_(1e-33) for x in (q, k)],
    "one-hot weights": lambda q, k, v: q.mul_(1e4),
    "huge key": lambda q, k, v: k[0, 200].mul_(1e5),
    "huge query": lambda q, k, v: q[0, 3].mul_(1e6),
    "huge value": lambda q, k, v: v[0, 299, 5].fill_(-1e30),
    "growing keys": lambda q, k, v: k.mul_(torch.arange(300)[:, None] / 50),
    "falling keys": lambda q, k, v: k.mul_(torch.arange(300, 0, -1)[:, None] / 50),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_corners(reused: Reused, corner: str) -> None:
    got, want = reused.run(CORNERS[corner])
    assert got.isfinite().all()
    assert error(got, want) <= INT8
    if corner == "zeros":
        assert not got.any()


def test_scores_are_the_references_integers(reused: Reused) -> None:
    """Codes and means that are exact, and scores so far apart that one integer decides."""

    def codes(q, k, v) -> None:
        generator = torch.Generator().manual_seed(5)
        for x in (q, k):
            x.copy_(torch.randint(-127, 128, x.shape, generator=generator))
            x[..., ::16], x[..., 1::16] = 127, -127
        k[:, 150:] = -k[:, :150]  # whose mean is zero
        q.mul_(64.0)  # a power of two: codes stay, and one step of a score is many octaves

    got, want = reused.run(codes)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    scores = reused.operands[0][0, :, :16] / 64 @ reused.operands[1][0, :, :16].T
    found = got[0, :, :16]
    nearest = reused.operands[2][0, scores.argmax(1), :16]
    assert error(found, nearest) < 0.02


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_is_never_hidden(reused: Reused, which: int, bad: float) -> None:
    got, want = reused.run(lambda *operands: operands[which][0, 7, 3].fill_(bad))
    assert bool((got.isfinite() == want.isfinite()).all())
    assert got[..., 16:].isfinite().all(), "it crossed into another head"
    bad_rows, bad_columns = (~got[0].isfinite()).nonzero().unbind(1)
    assert len(bad_rows) and (which != 0 or set(bad_rows.tolist()) == {7})
    assert which != 2 or set(bad_columns.tolist()) == {3}


@needs_bytes
def test_int8_says_why_not() -> None:
    shape = (1, 2, 20, 30, 16)
    operands, kwargs = inputs(shape), arguments(shape)

    def kernel(path: str, operands=operands, plan=None, **more):
        call = tir_run.bind(NAME, *operands, **kwargs | {"arithmetic": "keep"} | more)
        call = type(call)(call.op, {**call.args, "arithmetic": "int8"}, call.out, plan)
        return lower(call, isa(path, threads=2))

    with pytest.raises(Unsupported, match="VNNI"):
        kernel("portable")
    with pytest.raises(Unsupported, match="mask"):
        kernel(BYTES[0], causal=True)
    with pytest.raises(Unsupported, match="heads of 600"):
        kernel(BYTES[0], inputs((1, 1, 2, 2, 600)), heads=1, head_dim=600)
    with pytest.raises(StalePlan, match="128 keys"):
        kernel(BYTES[0], plan={"queries": 32, "keys": 256})
    planned = kernel(BYTES[0], inputs((1, 2, 500, 500, 16)))
    for _ in range(2):
        nearby = list(planned.nearby())
        assert nearby and {plan.keys for plan in nearby} == {BLOCK}


# --- bf16 kernels ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", HALVES)
@pytest.mark.parametrize(
    ("shape", "causal"), [((2, 2, 77, 77, 40), True), ((1, 2, 50, 300, 64), False)], ids=str
)
def test_bf16_products(path: str, shape, causal: bool) -> None:
    operands = inputs(shape)
    got = check(path, operands, BF16, causal=causal, **arguments(shape, "bf16"))
    assert got.dtype is torch.float32
    # results are not rounded to bf16
    assert not torch.equal(got, got.bfloat16().float())


def test_bf16_says_why_not() -> None:
    shape = (1, 2, 20, 30, 16)
    call = tir_run.bind(NAME, *inputs(shape), **arguments(shape, "bf16"))
    with pytest.raises(Unsupported, match="no bf16 products"):
        lower(call, isa("portable"))


@pytest.mark.parametrize("path", HALVES[:1])
def test_less_exact_kernels_are_told_apart_and_cost_less(path: str) -> None:
    shape = (1, 2, 20, 300, 16)
    kernels = {
        arithmetic: lower(
            tir_run.bind(NAME, *inputs(shape), **arguments(shape, arithmetic)), isa(path, threads=2)
        )
        for arithmetic in ("keep", "bf16", "int8")
        if arithmetic != "int8" or isa(path).vnni
    }
    assert len({kernel.key for kernel in kernels.values()}) == len(kernels)
    assert kernels["bf16"].cost < kernels["keep"].cost
