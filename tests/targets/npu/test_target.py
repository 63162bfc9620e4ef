"""``target="npu"`` end to end: the CPU target's numbers, and the bytes the planner predicts."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from zoomc.passes.ops import MLP
from zoomc.targets import create

import zoomc
from zoomc.errors import OptionValueError, ZoomcError
from zoomc.options import Options
from zoomc.record import collect

from ...models import sd2_unet


class Small(nn.Module):
    """A convolution, a linear, and what only the host can do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 64, 3, padding=1)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=2)
        self.linear = nn.Linear(64, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.grouped(torch.relu(self.conv(x)))
        return self.linear(y.flatten(2).transpose(1, 2)).sort(-1)[0]


def options(target, **more):
    return {"target": target, "weights": "int4", **more}


def test_the_npu_computes_what_the_cpu_does_and_moves_what_was_predicted():
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(2, 32, 12, 12)
    with torch.no_grad(), collect() as records:
        on_cpu = torch.compile(model, backend="zoomc", options=options("cpu"))(x)
        torch._dynamo.reset()
        on_npu = torch.compile(model, backend="zoomc", options=options("npu", npu="eyeriss"))(x)
    torch.testing.assert_close(on_npu, on_cpu, rtol=1e-5, atol=1e-5)
    report = records[-1].executable.report
    npu = report["npu"]
    assert npu["machine"] == "eyeriss"
    assert len(npu["layers"]) == 2
    assert [row["counted"]["bytes"] for row in npu["layers"]] == [
        row["bytes"] for row in npu["layers"]
    ]
    assert len(npu["on_cpu"]) == 1  # the grouped convolution
    assert {f["operator"] for f in report["fallbacks"]} >= {"aten.sort.default"}


def test_an_sd2_unet_runs_on_the_mobile_npu_and_explain_says_what_it_moved():
    model, inputs = sd2_unet()
    report = zoomc.explain(model, *inputs, options=options("npu"))
    layers = [layer for graph in report.to_dict()["graphs"] for layer in graph["npu"]["layers"]]
    assert len(layers) > 20
    assert all(layer["counted"]["bytes"] == layer["bytes"] for layer in layers)
    assert report.error < 0.5
    text = str(report)
    assert "npu          mobile" in text and "MB moved" in text
    assert "on the CPU: norm, activation and quantisation before each layer" in text


def test_linears_stay_apart_for_the_machine():
    graph = fx.Graph()
    x, up, down = (graph.placeholder(name) for name in ("x", "up", "down"))
    node = graph.call_function(MLP, (x, up, None, down))
    target = create("npu", Options.resolve(options=options("npu")))
    assert target.refuses(node, {up, down}) == "the machine takes its linears one by one"


def test_full_precision_weights_stay_on_the_cpu_and_the_reason_is_said():
    model, x = Small().eval(), torch.randn(1, 32, 6, 6)
    report = zoomc.explain(model, x, options={"target": "npu"})
    npu = report.to_dict()["graphs"][0]["npu"]
    assert npu["layers"] == []
    assert all("not coded" in row["reason"] for row in npu["on_cpu"])
    assert report.error < 1e-4
    assert "on the CPU: its weights are not coded" in str(report)


def test_changed_weights_are_packed_again():
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(1, 32, 6, 6)
    compiled = torch.compile(model, backend="zoomc", options=options("npu"))
    with torch.no_grad():
        before = compiled(x)
        model.conv.weight.neg_()
        after = compiled(x)
        torch._dynamo.reset()
        fresh = torch.compile(model, backend="zoomc", options=options("npu"))(x)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh)


def test_unknown_machines_are_refused():
    model = nn.Linear(64, 64).eval()
    with pytest.raises(Exception, match="no machine 'pocket'") as caught, torch.no_grad():
        torch.compile(model, backend="zoomc", options={"target": "npu", "npu": "pocket"})(
            torch.randn(1, 64)
        )
    assert isinstance(caught.value, ZoomcError) or caught.value.__cause__ is not None
    with pytest.raises(OptionValueError, match="npu"):
        zoomc.Options(npu="")


def powers(report):
    """Milliwatts of each layer."""
    (graph,) = report.to_dict()["graphs"]
    counted = [row["counted"] for row in graph["npu"]["layers"]]
    return [sum(c["nanojoules"].values()) / c["nanoseconds"] * 1e3 for c in counted]


def test_a_power_limit_is_kept_by_slower_clocks_and_changes_nothing_else():
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(2, 32, 12, 12)
    free = zoomc.explain(model, x, options=options("npu", npu="eyeriss"))
    torch._dynamo.reset()
    limit = 0.8 * max(powers(free))
    limited = zoomc.explain(model, x, options=options("npu", npu="eyeriss", power_limit=limit))
    assert max(powers(limited)) <= limit < max(powers(free))
    assert limited.error == free.error
    before, after = (r.to_dict()["graphs"][0]["npu"] for r in (free, limited))
    assert after["limit_mw"] == limit and before["limit_mw"] is None
    slower = [b["mhz"] < a["mhz"] for a, b in zip(before["layers"], after["layers"], strict=True)]
    assert any(slower)
    for a, b in zip(before["layers"], after["layers"], strict=True):
        assert b["counted"]["bytes"] == a["counted"]["bytes"] == b["bytes"]
        assert b["commands"] == a["commands"] + 1  # set-frequency
    energy = limited.to_dict()["energy"]
    assert energy["source"].startswith("modelled") and energy["watts"] * 1e3 <= limit
    assert "energy (modelled" in str(limited) and "mJ a zoom second" in str(limited)


def test_limits_that_cannot_be_kept_are_refused():
    model, x = Small().eval(), torch.randn(1, 32, 6, 6)
    for limit, words in ((29.0, "doing nothing"), (98.0, "takes at least")):
        torch._dynamo.reset()
        with pytest.raises(Exception, match=words):
            zoomc.explain(model, x, options=options("npu", npu="eyeriss", power_limit=limit))
    for wrong in (0, -5, "much", True, float("inf")):
        with pytest.raises(OptionValueError, match="milliwatts"):
            zoomc.Options(target="npu", power_limit=wrong)
    with pytest.raises(OptionValueError, match="only with target"):
        zoomc.Options(power_limit=100)


class Empty(nn.Module):
    """One layer of no rows, one of a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.none, self.one = nn.Linear(64, 64), nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.none(x), self.one(y)


def test_layers_of_nothing_and_of_one_number():
    model, inputs = Empty().eval(), (torch.ones(0, 64), torch.ones(1, 1, 1, 1))
    report = zoomc.explain(model, *inputs, options={"target": "npu", "weights": "int8"})
    (graph,) = report.to_dict()["graphs"]
    assert len(graph["npu"]["layers"]) + len(graph["npu"]["on_cpu"]) == 2
    assert report.error < 0.02
