"""Weight changes: everything torch counts at once, hidden writes when calls pause."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoomc import backend, watch
from zoomc.errors import StaleWeightsError
from zoomc.watch import WeightWatch


@pytest.fixture
def weights():
    return [nn.Parameter(torch.randn(40, 30)), torch.randn(7), torch.zeros(0), torch.ones(3, 5).t()]


def test_unchanged(weights):
    assert not WeightWatch(weights).changed(weights)


def test_in_place_update_is_seen_at_once(weights):
    seen = WeightWatch(weights)
    with torch.no_grad():
        weights[0][3, 4] += 1
    assert seen.changed(weights)


def test_replaced_tensor_is_seen_at_once(weights):
    seen = WeightWatch(weights)
    assert seen.changed([weights[0].detach().clone(), *weights[1:]])


def test_new_data_is_seen_at_once(weights):
    seen = WeightWatch(weights)
    weights[0].data = torch.randn(40, 30)
    assert seen.changed(weights)


def test_any_write_through_data_to_a_small_model_is_seen_at_once(weights):
    seen = WeightWatch(weights)
    weights[0].data[17, 13] += 1e-3
    assert seen.changed(weights)


def test_dense_write_through_data_is_seen_at_once(weights, monkeypatch):
    monkeypatch.setattr(watch, "SMALL", 0)
    seen = WeightWatch(weights)
    weights[0].data += 1e-3 * torch.randn(40, 30)
    assert seen.changed(weights)


def test_single_element_written_through_data_is_seen_after_a_pause(weights, monkeypatch):
    monkeypatch.setattr(watch, "SMALL", 0)
    monkeypatch.setattr(watch, "READ_AFTER", 0.01)
    seen = WeightWatch(weights)
    weights[0].data[17, 13] += 1e-3
    time.sleep(0.02)
    assert seen.changed(weights)


def test_a_pause_alone_changes_nothing(weights, monkeypatch):
    monkeypatch.setattr(watch, "READ_AFTER", 0.01)
    seen = WeightWatch(weights)
    time.sleep(0.02)
    assert not seen.changed(weights)


class Waits(TorchDispatchMode):
    """Counts operations that wait for a device's answer."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.count += func.overloadpacket in (aten._local_scalar_dense, aten.equal, aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("small", [watch.SMALL, 0])
def test_a_call_waits_for_a_device_once_and_copies_nothing(weights, monkeypatch, small):
    monkeypatch.setattr(watch, "SMALL", small)
    weights += [torch.randn(50).half(), torch.zeros(3, dtype=torch.int64), torch.ones(5).bool()]
    seen = WeightWatch(weights)

    def copy(*_):
        raise AssertionError("copied from a device")

    for name in ("cpu", "numpy", "tolist", "to"):
        monkeypatch.setattr(torch.Tensor, name, copy)
    with Waits() as waits:
        assert not seen.changed(weights)
    assert waits.count == 1
    weights[4].data += 1
    with Waits() as waits:
        assert seen.changed(weights)
    assert waits.count == 1


@pytest.mark.parametrize("small", [watch.SMALL, 0])
def test_a_model_without_weights_never_changes(monkeypatch, small):
    monkeypatch.setattr(watch, "SMALL", small)
    assert not WeightWatch([]).changed([])


def test_nan_equals_itself():
    weights = [torch.full((4,), float("nan"))]
    assert not WeightWatch(weights).changed(weights)


def test_weights_without_versions_are_refused():
    with torch.inference_mode():
        weight = torch.ones(3)
    with pytest.raises(StaleWeightsError, match="inference_mode"):
        WeightWatch([weight])


def test_nothing_waits_for_values_while_a_caller_records(monkeypatch):
    weights = [torch.randn(8)]
    seen = WeightWatch(weights)
    weights[0].data.add_(1)
    monkeypatch.setattr(watch, "recording", lambda: True)
    assert not seen.changed(weights)
    assert seen.changed([torch.randn(8)])
    monkeypatch.setattr(watch, "recording", lambda: False)
    assert seen.changed(weights)


def test_a_gpu_is_given_the_step_before_it_has_answered(monkeypatch):
    """And if weights turn out to have changed, what it made of the old ones is thrown away."""
    order = []
    differ, call = watch._differ, backend.Variant.__call__

    def late(now, then):
        found = differ(now, then)
        return lambda: order.append("answer") or found

    def step(self, *args):
        order.append("step")
        return call(self, *args)

    model = nn.Linear(6, 5).requires_grad_(False)
    compiled = torch.compile(model, backend="zoomc")
    x = torch.randn(3, 6)
    compiled(x)
    monkeypatch.setattr(watch, "_differ", late)
    monkeypatch.setattr(backend.Variant, "__call__", step)
    torch.testing.assert_close(compiled(x), model(x))
    assert order == ["step", "answer"]
    model.weight.data.mul_(2)
    torch.testing.assert_close(compiled(x), model(x))
    assert order[2:] == ["step", "answer", "step"]
    torch.testing.assert_close(compiled(x), model(x))
    assert order[5:] == ["step", "answer"]


def test_a_step_that_changes_its_arguments_waits_for_the_answer(monkeypatch):
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4), requires_grad=False)

        def forward(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
            total.add_(x * self.weight)
            return total * 2

    model = Counts()
    compiled = torch.compile(model, backend="zoomc")
    differ = watch._differ

    def late(now, then):
        found = differ(now, then)
        return lambda: found

    monkeypatch.setattr(watch, "_differ", late)
    x, total, expected = torch.randn(4), torch.zeros(4), torch.zeros(4)
    for _ in range(3):
        torch.testing.assert_close(compiled(x, total), model(x, expected))
        model.weight.data.mul_(2)
    torch.testing.assert_close(total, expected)
