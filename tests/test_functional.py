"""Decomposing only where needed: the shortcut gives what the whole way gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoomc.passes import run

from tests.models import MODELS
from tests.passes.util import assert_close, captured, counts, outputs
from zoomc import functional


@pytest.fixture
def decomposed(monkeypatch):
    """How often a program was decomposed."""
    calls = []
    whole = torch.export.ExportedProgram.run_decompositions

    def counted(self, table=None):
        calls.append(self)
        return whole(self, table)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
    return calls


@pytest.mark.parametrize("name", MODELS)
def test_models_are_functional_as_exported(name, decomposed, monkeypatch):
    gm, inputs = captured(*MODELS[name](1))
    assert not decomposed
    monkeypatch.setattr(functional, "_is_settled", lambda node: False)
    slow, _ = captured(*MODELS[name](1))
    assert len(decomposed) == 1
    assert_close(outputs(gm, inputs), outputs(slow, inputs), 1e-6)
    run(gm)
    run(slow)
    assert counts(gm) == counts(slow)
    assert_close(outputs(gm, inputs), outputs(slow, inputs), 1e-6)


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        nn.ReflectionPad2d(1),
        Lambda(lambda x: torch.einsum("nchw,ndhw->ncd", x, x)),
        Lambda(lambda x: x + torch.tensor(2.0)),
    ],
)
def test_everything_else_is_decomposed(model, decomposed):
    model.eval().requires_grad_(False)
    x = torch.randn(2, 3, 6, 5)
    gm, inputs = captured(model, [x])
    assert len(decomposed) == 1
    assert_close(outputs(gm, inputs), [model(x)])
    run(gm)
    assert_close(outputs(gm, inputs), [model(x)])
