"""What attention multiplies: the choice, its reasons, and the budget's part in it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from zoomc.passes import Context, Trace, run
from zoomc.passes.ops import ATTENTION
from zoomc.passes.rewrite import arguments

from tests.passes.util import captured, outputs

#: What arithmetics cost on machines that are fast at one thing each.
BYTES = {"int8": 1.0, "bf16": 3.0, "keep": 4.0}
HALVES = {"int8": 2.0, "bf16": 1.0, "keep": 4.0}
NEITHER = {"int8": 3.9, "bf16": 5.0, "keep": 4.0}


class Attends(nn.Module):
    """A linear, attention, and attention under a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3 * 64)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.layer(x).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return y + nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def chosen(costs=None, dtype=torch.float32, **settings):
    """What the attentions multiply, the trace, and the error of the outputs."""
    torch.manual_seed(0)
    module = Attends().to(dtype)
    gm, inputs = captured(
        module, (torch.randn(2, 50, 64, dtype=dtype), torch.zeros(50, 50, dtype=dtype))
    )
    want = outputs(gm, inputs)[0].double()

    def refuses(node, _):
        if node.target is not ATTENTION:
            return None
        values = arguments(node)
        masked = values["arithmetic"] == "int8" and values["mask"] is not None
        return "no masks" if masked else None

    def cost(node, _):
        return (costs or BYTES)[arguments(node)["arithmetic"]]

    context = Context(inputs=inputs, refuses=refuses, cost=cost, **{"weights": "int8"} | settings)
    trace = run(gm, context)
    record = trace.of("encode weights")
    gm.graph.lint()
    got = outputs(gm, inputs)[0].double()
    found = [arguments(n)["arithmetic"] for n in gm.graph.nodes if n.target is ATTENTION]
    recorded = [attention.arithmetic for attention in record.attentions]
    assert recorded == found[: len(recorded)]
    return found, trace, float((got - want).norm() / want.norm())


def reasons(trace: Trace) -> list[str]:
    return [attention.reason for attention in trace.of("encode weights").attentions]


@pytest.mark.parametrize(
    ("costs", "found"),
    [(BYTES, ["int8", "bf16"]), (HALVES, ["bf16", "bf16"]), (NEITHER, ["keep", "keep"])],
)
def test_auto_takes_the_fastest_unless_that_is_hardly_faster(costs, found) -> None:
    got, trace, _ = chosen(costs, attention="auto")
    assert got == found
    assert reasons(trace) == ["nothing less exact is faster" if a == "keep" else "" for a in found]
    assert sum(
        n for rule, n in trace.of("encode weights").hits.items() if "attention" in rule
    ) == 2 - found.count("keep")
    assert trace.of("encode weights").attentions[0].shape == (2, 2, 50, 50, 32)


def test_auto_keeps_what_a_model_with_kept_weights_computes() -> None:
    found, trace, error = chosen(weights="keep", attention="auto")
    assert found == ["keep", "keep"] and not trace.of("encode weights").attentions and error < 1e-6


@pytest.mark.parametrize(("asked", "least", "most"), [("int8", 2e-3, 0.02), ("bf16", 5e-4, 5e-3)])
def test_what_is_asked_for_is_taken_where_it_runs(asked, least, most) -> None:
    found, trace, error = chosen(NEITHER, weights="keep", attention=asked)
    assert found == [asked, "bf16"] if asked == "int8" else [asked, asked]
    assert least < error < most
    assert reasons(trace)[1] == ("not in int8: no masks" if asked == "int8" else "")


@pytest.mark.parametrize(("dtype", "found"), [(torch.bfloat16, "int8"), (torch.float64, "keep")])
def test_other_dtypes(dtype, found) -> None:
    assert chosen(dtype=dtype, attention="int8")[0] == [found, "keep"]
    _, trace, _ = chosen(dtype=dtype, attention="bf16")
    assert all("not in bf16: " in reason for reason in reasons(trace))


def test_keep_keeps() -> None:
    assert chosen(attention="keep")[0] == ["keep", "keep"]


def test_fuel_stops_the_choice() -> None:
    before = chosen(attention="keep", weights="keep")[1].rewrites
    for more, found in enumerate((["keep", "keep"], ["bf16", "keep"], ["bf16", "bf16"])):
        assert chosen(attention="bf16", weights="keep", fuel=before + more)[0] == found


def test_the_budget_climbs_until_the_error_is_within_it() -> None:
    def within(budget: float) -> tuple[list[str], float]:
        found, trace, error = chosen(attention="int8", weights="keep", max_error=budget)
        last = trace.of("encode weights")
        assert error <= budget and last.measured <= budget
        assert math.isclose(last.measured, error, rel_tol=0.1, abs_tol=1e-7)
        assert all(attention.error is not None for attention in last.attentions)
        return found, error

    found, error = within(0.5)
    assert found == ["int8", "bf16"]
    assert within(error / 2)[0][0] != "int8"
    assert within(1e-6)[0] == ["keep", "keep"]
