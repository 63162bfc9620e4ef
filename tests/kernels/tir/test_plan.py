"""Plans tuning may choose: each gives the planner's result, and none that does not fit runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import zoomc.passes.ops  # noqa: F401 - registers operators
from hypothesis import given
from hypothesis import strategies as st
from zoomc.kernels.tir.isa import isa, supported
from zoomc.kernels.tir.kernel import lower
from zoomc.kernels.tir.plan import Extent, Plan, StalePlan, chosen
from zoomc.kernels.tir.run import bind, load

from tests.kernels.coded import coded


def _calls():
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator).bfloat16()

    yield "linear", bind("zoomc::linear", randn(150, 96), randn(130, 96), randn(130))
    x, w = randn(100, 70).float(), randn(40, 70).float()
    yield "linear fp32", bind("zoomc::linear", x, w)
    image = randn(1, 9, 8, 96)
    pad = {"padding": [1, 1, 1, 1]}
    yield "conv2d", bind("zoomc::conv2d", [image], randn(40, 96, 3, 3), **pad)
    codes, extra = coded((40, 96, 3, 3), 4)
    yield "conv2d int4", bind("zoomc::conv2d", [image], codes, **pad, **extra)
    q, k = randn(1, 100, 64), randn(1, 90, 64)
    heads = {"heads": 2, "head_dim": 32, "scale": 0.2}
    yield "attention", bind("zoomc::attention", q, k, k, **heads)


CALLS = dict(_calls())


@pytest.mark.parametrize("name", CALLS)
def test_every_plan_nearby_gives_the_same_result(name):
    machine, call = isa(supported()[0], 2), CALLS[name]
    planned = lower(call, machine)
    expected = load(planned, machine)().float()
    plans = list(planned.nearby())
    assert plans and planned.plan not in plans and len(plans) == len(set(plans))
    for plan in plans:
        kernel = lower(dataclasses.replace(call, plan=dataclasses.asdict(plan)), machine)
        assert kernel.plan == plan and kernel.key != planned.key
        result = load(kernel, machine)().float()
        # Sums in another order, then rounded: an element may land on the neighbouring value.
        assert (result - expected).norm() <= 2e-3 * expected.norm(), plan
        torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2 * expected.abs().max())


PLANS = st.builds(
    Plan,
    *[st.integers(1, 3)] * 3,
    blocks=st.integers(1, 40),
    chunk=st.integers(1, 6).map(lambda n: 32 * n),
    fetch=st.booleans(),
)


@given(
    PLANS,
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(1, 9),
    st.booleans(),
)
def test_plans_nearby_cut_the_same_product(plan, products, blocks, panels, steps, fetches):
    threads = plan.batch_workers * plan.row_workers * plan.column_workers
    extent = Extent(threads, products, blocks, panels, 32 * steps, 32, fetches)
    try:
        extent.check(plan)
    except StalePlan:
        return
    for other in extent.nearby(plan):
        assert extent.check(other) != plan


def test_a_plan_of_another_product_is_refused():
    machine, call = isa(supported()[0], 2), CALLS["linear fp32"]
    fields = dataclasses.asdict(lower(call, machine).plan)
    for change, reason in (
        ({"row_workers": 5}, "workers"),
        ({"blocks": 1000}, "row blocks"),
        ({"blocks": 0}, "row blocks"),
        ({"chunk": 10_000}, "chunks of 10000"),
        ({"chunk": "a"}, "are needed"),
    ):
        with pytest.raises(StalePlan, match=reason):
            lower(dataclasses.replace(call, plan=fields | change), machine)
    attention = dataclasses.replace(CALLS["attention"], plan={"queries": 33, "keys": 32})
    with pytest.raises(StalePlan, match="whole units"):
        lower(attention, machine)
    with pytest.raises(StalePlan, match="queries, keys"):
        lower(dataclasses.replace(attention, plan=fields), machine)
    assert chosen(Plan(1, 1, 2, 3, 32, True), None).blocks == 3
