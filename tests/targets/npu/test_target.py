"""``target="npu"`` end to end: the CPU target's numbers, and the bytes the planner predicts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zoomc
from zoomc.errors import OptionValueError, ZoomcError
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
