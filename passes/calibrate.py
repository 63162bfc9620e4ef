"""What goes into each product on example inputs: second moments that codes are chosen by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F
from zoomc.kernels.integer import GROUP

from .ops import CONV2D, LINEAR
from .rewrite import is_call

#: Rows of activations that are looked at, spread over all of them.
ROWS = 4096

#: Arguments of a layer that make what its product reads.
_BEFORE = ("norm", "norm_groups", "norm_weight", "norm_bias", "norm_eps", "pre_activation")


def grams(
    gm: fx.GraphModule, layers: Iterable[fx.Node], inputs: Sequence[torch.Tensor]
) -> dict[fx.Node, torch.Tensor]:
    """Second moments of each layer's input channels within groups of 64, by running the graph.

    Args:
        gm: the graph, weights not yet encoded.
        layers: linears and convolutions of it.
        inputs: one tensor for each placeholder.

    Returns:
        fp32 ``(ceil(C / 64), 64, 64)`` by layer; none for grouped convolutions.
    """
    gm.recompile()
    looking = _Looking(gm, set(layers))
    with torch.no_grad():
        looking.run(*inputs)
    return looking.found


class _Looking(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, layers: set[fx.Node]) -> None:
        super().__init__(gm)
        self._layers = layers
        self.found: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n in self._layers and is_call(n, LINEAR, CONV2D) and n.kwargs.get("groups", 1) == 1:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            before = {k: v for k, v in kwargs.items() if k in _BEFORE}
            weight = args[1]
            # The operator itself, on a weight that changes nothing, gives what the product reads.
            unit = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
            unit = unit.view(*unit.shape, *[1] * (weight.dim() - 2))
            self.found[n] = gram(n.target(args[0], unit, **before))  # type: ignore[operator]
        return super().run_node(n)


def gram(x: torch.Tensor) -> torch.Tensor:
    """Second moments ``(ceil(C / 64), 64, 64)`` of the last axis of ``(..., C)``.

    What channels have in common counts the less the fewer rows tell of it: codes chosen by the
    chance agreements of a few rows would do worse than plain ones on the next input.
    """
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[:: -(-len(rows) // ROWS)].float()
    padded = F.pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP)).transpose(0, 1)
    moments = padded.mT @ padded / len(rows)
    shared = moments * (len(rows) / (len(rows) + GROUP))
    return torch.diagonal_scatter(shared, moments.diagonal(dim1=1, dim2=2), dim1=1, dim2=2)
