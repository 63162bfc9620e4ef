"""The algebra of views on random programs: exact results, and always an end."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from zoomc.passes import run
from zoomc.passes.views import dimension_groups, inverse

from tests.passes.util import assert_meta_is_true

SIZE = (2, 3, 4, 2)
ORDERS = [*itertools.permutations(range(4)), (0, 2, 3, 1), (0, 3, 1, 2)] * 2
STEPS = ["permute", "relu", "add", "twin", "pad", "slice", "cat", "merge", "broadcast", "softmax"]
programs = st.lists(
    st.tuples(st.sampled_from(STEPS), st.sampled_from(ORDERS)), min_size=1, max_size=8
)


def play(x: torch.Tensor, y: torch.Tensor, program: list[tuple[str, tuple[int, ...]]]):
    for step, order in program:
        if step == "permute":
            x = x.permute(order)
        elif step == "relu":
            x = F.relu(x)
        elif step == "add" and x.shape == y.shape:
            x = x + y
        elif step == "twin":
            x = x + x.softmax(1)
        elif step == "pad":
            x = F.pad(x, (*order[:3], 0))
        elif step == "slice" and x.shape[order[0]] > 1:
            x = x.narrow(order[0], 1, x.shape[order[0]] - 1)
        elif step == "cat" and x.numel() < 2000:
            x = torch.cat([x, x.permute(order).permute(inverse(order)).sigmoid()], order[0])
        elif step == "merge":
            axis = min(order[0], 2)
            x = x.flatten(axis, axis + 1).permute(*range(2, -1, -1)).contiguous()
            x = x.unflatten(order[1] % 3, (1, -1))
        elif step == "broadcast":
            x = x * x.amax(order[:2], keepdim=True)
        elif step == "softmax":
            x = x.softmax(order[0])
    return (x, x * 2)


@settings(max_examples=40, deadline=None)
@given(programs)
def test_random_programs(program: list[tuple[str, tuple[int, ...]]]) -> None:
    x, y = torch.randn(SIZE), torch.randn(SIZE)
    gm = make_fx(lambda x, y: play(x, y, program), tracing_mode="fake")(x, y)
    want = gm(x, y)
    run(gm)
    gm.graph.lint()
    assert_meta_is_true(gm)
    for a, b in zip(gm(x, y), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(1, 4), max_size=4), st.randoms())
def test_dimension_groups_cover_both_shapes(before: list[int], random) -> None:
    after: list[int] = []
    for size in before:  # split some axes, merge others
        parts = [2, size // 2] if size % 2 == 0 and random.random() < 0.5 else [size]
        if after and random.random() < 0.5:
            after[-1] *= parts.pop(0)
        after += parts
    groups = dimension_groups(before, after)
    assert groups is not None
    assert [d for left, _ in groups for d in left] == list(range(len(before)))
    assert [d for _, right in groups for d in right] == list(range(len(after)))
    for left, right in groups:
        assert math.prod(before[d] for d in left) == math.prod(after[d] for d in right)


def test_an_empty_tensor_has_no_groups() -> None:
    assert dimension_groups([0, 3], [3, 0]) is None
