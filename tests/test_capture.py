"""Capture: weights bound, numbers folded, results rebuilt, training refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zoomc.capture import capture, check_device, check_inference, weight_names
from zoomc.errors import DeviceError, TrainingError


def captured(model, *args):
    """The program of a model, and a function that runs it like the model."""
    program = names = None

    def backend(gm, inputs):
        nonlocal program, names
        names = weight_names(gm, inputs)
        program = capture(gm, inputs, names)

        def run(*values):
            with torch.no_grad():
                outputs = program.graph(*[values[i] for i in program.inputs])
                for position, update in zip(program.mutated, outputs, strict=False):
                    values[position].copy_(update)
            return program.pick(outputs[len(program.mutated) :])

        return run

    with torch.no_grad():
        result = torch.compile(model, backend=backend)(*args)
    return program, names, result


class Everything(nn.Module):
    """Parameters, buffers, plain tensors, literals, results of several kinds."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("position", torch.arange(4.0), persistent=False)
        self.plain = torch.full((4,), 2.0)

    def forward(self, x):
        y = self.norm(self.linear(x)) + self.position * self.plain + torch.tensor([1.0, 2, 3, 4])
        return {"y": y, "same": y, "number": 3, "none": None, "sum": y.sum()}


def test_everything_is_bound_and_rebuilt():
    model = Everything().eval().requires_grad_(False)
    x = torch.randn(3, 4)
    program, names, result = captured(model, x)
    expected = model(x)
    assert result.keys() == expected.keys()
    assert result["number"] == 3 and result["none"] is None
    torch.testing.assert_close(result["y"], expected["y"])
    torch.testing.assert_close(result["sum"], expected["sum"])
    assert len(program.graph.graph.find_nodes(op="placeholder")) == 1
    assert set(names.values()) == {
        *("linear.weight", "linear.bias", "norm.weight", "norm.bias"),
        *("norm.running_mean", "norm.running_var", "position", "plain"),
    }


def test_batch_norm_becomes_one_multiply_add():
    model = nn.BatchNorm2d(3).eval().requires_grad_(False)
    program, _, _ = captured(model, torch.randn(2, 3, 4, 4))
    placeholder = program.graph.graph.find_nodes(op="placeholder")[0]
    (multiply,) = placeholder.users
    assert multiply.target is torch.ops.aten.mul.Tensor


def test_in_place_updates_of_inputs_are_reported():
    x = torch.zeros(3)
    program, _, result = captured(lambda x: x.add_(1) * 2, x)
    assert program.mutated == [0]
    torch.testing.assert_close(x, torch.ones(3))
    torch.testing.assert_close(result, torch.full((3,), 2.0))


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), nn.BatchNorm1d(3)]
)
def test_training_mode_is_refused(model):
    model.requires_grad_(False).train()
    with pytest.raises(Exception, match=r"model\.eval\(\)"):
        captured(model, torch.randn(4, 3))


def test_dropout_in_eval_mode_is_not_training():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).requires_grad_(False).eval()
    x = torch.randn(4, 3)
    torch.testing.assert_close(captured(model, x)[2], model(x))


def test_gradients_are_refused_only_where_they_would_be_recorded():
    x = torch.ones(1, requires_grad=True)
    with pytest.raises(TrainingError, match="no_grad"):
        check_inference([x])
    with torch.no_grad():
        check_inference([x])
    check_inference([torch.ones(1), 3])


def test_other_devices_are_named():
    with pytest.raises(DeviceError, match="'cpu' got a tensor on meta"):
        check_device([torch.ones(1, device="meta")], "cpu")


def test_weights_have_the_names_a_user_knows():
    """Wherever the model is called from, and also where it looks attributes up in its own way."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4, bias=False))
            self.gain = nn.Parameter(torch.ones(4))
            self.register_buffer("offset", torch.zeros(4))

        def __getattr__(self, name):
            return super().__getattr__(name)

        def forward(self, x):
            return self.layers(x) * self.gain + self.offset

    model = Own().requires_grad_(False)
    holder = SimpleNamespace(unet=model)
    mine = {"layers.0.weight", "gain", "offset"}
    for call, prefix in (
        (model, ""),
        (lambda x: model(x) + 1, ""),
        (lambda x: holder.unet(x) + 1, "unet."),
        (nn.Sequential(model), "0."),
    ):
        torch._dynamo.reset()
        assert set(captured(call, torch.ones(2, 4))[1].values()) == {prefix + n for n in mine}
