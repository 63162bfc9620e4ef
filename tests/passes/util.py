"""What the tests of passes share: capturing, running and checking graphs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence

import torch
from torch import fx, nn
from zoomc.passes.rewrite import fake_mode

from tests.models import MODELS
from zoomc.capture import capture

_CACHE: dict[tuple[str, int], tuple[fx.GraphModule, list[torch.Tensor]]] = {}


class _Functional(nn.Module):
    """A module whose parameters and buffers are inputs, as in the graphs Dynamo hands over."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.call = lambda args: torch.func.functional_call(
            module, dict(zip(names, args, strict=False)), tuple(args[len(names) :])
        )

    def forward(self, *args: torch.Tensor):
        outputs = self.call(args)
        return outputs if isinstance(outputs, tuple) else (outputs,)


def captured(
    module: nn.Module, inputs: Sequence[torch.Tensor]
) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """The functional graph of ``module`` and the inputs it takes."""
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    functional = _Functional(module, list(weights))
    args = [*weights.values(), *inputs]
    with torch.no_grad():
        program = capture(functional, args, dict(enumerate(weights)))
    return program.graph, [args[i] for i in program.inputs]


def model(name: str, batch: int = 1) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """A fresh copy of the captured model of that name, and inputs for it."""
    if (name, batch) not in _CACHE:
        _CACHE[name, batch] = captured(*MODELS[name](batch))
    gm, inputs = _CACHE[name, batch]
    return duplicate(gm), inputs


def duplicate(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy with its own nodes and the same weights."""
    graph = fx.Graph()
    output = graph.graph_copy(gm.graph, {})
    graph.output(output)
    copied = fx.GraphModule(gm, graph)
    for new, old in zip(graph.nodes, gm.graph.nodes, strict=True):
        new.meta = copy.copy(old.meta)
    return copied


def outputs(gm: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    gm.recompile()
    with torch.no_grad():
        return [y for y in gm(*inputs) if isinstance(y, torch.Tensor)]


def assert_close(
    got: Sequence[torch.Tensor], want: Sequence[torch.Tensor], tolerance: float = 1e-5
) -> None:
    """Every output within ``tolerance`` of its size, and of the same shape and type."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if b.is_floating_point():
            error = (a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12)
            assert error < tolerance, f"relative error {error:.2e}"
        else:
            assert torch.equal(a, b)


def assert_meta_is_true(gm: fx.GraphModule) -> None:
    """Every node's ``meta["val"]`` has the shape and dtype that running the node gives."""
    with fake_mode(gm), torch.no_grad():
        for node in gm.graph.nodes:
            if node.op != "call_function" or not isinstance(node.meta["val"], torch.Tensor):
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            value = node.target(*args, **kwargs)
            known = node.meta["val"]
            assert (value.shape, value.dtype) == (known.shape, known.dtype), node.format_node()


def counts(gm: fx.GraphModule, *, constant: bool = True) -> Counter[str]:
    """Calls by operator; without those that depend on weights alone unless ``constant``."""
    return Counter(
        str(node.target)
        for node in gm.graph.nodes
        if node.op == "call_function" and (constant or not node.meta.get("constant"))
    )
