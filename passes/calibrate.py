"""What goes into each product on example inputs, and what codes and scales are chosen by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F
from zoomc.kernels.integer import GROUP
from zoomc.kernels.weights import Encoding
from zoomc.kernels.weights.smoothing import factors

from .context import Context, Key
from .ops import CONV2D, LINEAR
from .rewrite import is_call

#: Rows of activations that are looked at, spread over all of them.
ROWS = 4096

#: Arguments of a layer that make what its product reads.
_BEFORE = ("norm", "norm_groups", "norm_weight", "norm_bias", "norm_eps", "pre_activation")


@dataclass(frozen=True)
class Seen:
    """Of what a layer's product read.

    Attributes:
        gram: second moments of its channels within groups of 64: fp32 ``(ceil(C / 64), 64, 64)``.
        bounds: the least and the largest of its values and 0: fp32 ``(2,)``.
        factors: what the norm before could give the weight, where that was asked for and is of
            use; see :mod:`zoomc.kernels.weights.smoothing`.
    """

    gram: torch.Tensor
    bounds: torch.Tensor
    factors: torch.Tensor | None


@dataclass(frozen=True)
class Known:
    """What is known of the layers asked for, as far as it is.

    Attributes:
        moments: of what they read.
        ranges: of what they read.
        smoothing: factors of those that gain by them.
    """

    moments: Mapping[fx.Node, torch.Tensor]
    ranges: Mapping[fx.Node, torch.Tensor]
    smoothing: Mapping[fx.Node, torch.Tensor]


def learn(
    gm: fx.GraphModule,
    by_moments: Mapping[fx.Node, Key],
    by_range: Mapping[fx.Node, Key],
    to_smooth: Mapping[fx.Node, tuple[Key, Encoding]],
    context: Context,
) -> Known:
    """Moments, ranges and smoothing factors of layers, as far as the context asks for them.

    Where something is missing there, ``context.inputs`` are run to find it. What is not finite
    says nothing, and a range of nothing but zeros neither. Layers of one weight share what is
    known: moments of the first, and one range for all.

    Args:
        gm: the graph, weights not yet encoded.
        by_moments: layers whose moments are of use, and the keys to find them by.
        by_range: the same for ranges.
        to_smooth: layers that a norm could give factors, the keys, and their weights' encodings.
        context: what is known, and receives what is found.
    """
    moments = {} if context.moments is None else context.moments
    ranges = {} if context.ranges is None else context.ranges
    by_moments = {} if context.moments is None else by_moments
    by_range = {} if context.ranges is None else by_range
    smoothing = {} if context.smoothing is None else context.smoothing
    to_smooth = {} if context.smoothing is None else to_smooth
    missing = [node for node, key in by_moments.items() if key not in moments]
    missing += [node for node, key in by_range.items() if key not in ranges]
    smooth = {node: found for node, (key, found) in to_smooth.items() if key not in smoothing}
    missing += smooth
    ends: dict[Key, list[torch.Tensor]] = {}
    for node, seen in look(gm, missing, context.inputs, smooth).items() if missing else ():
        finite = torch.isfinite(seen.gram).all()
        if node in by_moments and finite:
            moments.setdefault(by_moments[node], seen.gram)
        if node in smooth and finite:
            smoothing.setdefault(to_smooth[node][0], seen.factors)
        if node in by_range:
            ends.setdefault(by_range[node], []).append(seen.bounds)
    for key, found in ends.items():
        low, high = torch.stack(found, dim=1)
        bounds = torch.stack((low.amin(), high.amax()))
        if torch.isfinite(bounds).all() and bounds.any():
            ranges.setdefault(key, bounds)
    gains = {node: smoothing.get(key) for node, (key, _) in to_smooth.items()}
    return Known(
        {node: moments[key] for node, key in by_moments.items() if key in moments},
        {node: ranges[key] for node, key in by_range.items() if key in ranges},
        {node: found for node, found in gains.items() if found is not None},
    )


def look(
    gm: fx.GraphModule,
    layers: Iterable[fx.Node],
    inputs: Sequence[torch.Tensor],
    smooth: Mapping[fx.Node, Encoding] = MappingProxyType({}),
) -> dict[fx.Node, Seen]:
    """What each layer's product reads, by running the graph.

    Args:
        gm: the graph, weights not yet encoded.
        layers: linears and convolutions of it.
        inputs: one tensor for each placeholder.
        smooth: those whose factors are of interest, and the encodings of their weights.

    Returns:
        by layer; none of grouped convolutions.
    """
    gm.recompile()
    looking = _Looking(gm, set(layers), smooth)
    with torch.no_grad():
        looking.run(*inputs)
    return looking.found


class _Looking(fx.Interpreter):
    def __init__(
        self, gm: fx.GraphModule, layers: set[fx.Node], smooth: Mapping[fx.Node, Encoding]
    ) -> None:
        super().__init__(gm)
        self._layers = layers
        self._smooth = smooth
        self.found: dict[fx.Node, Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n in self._layers and is_call(n, LINEAR, CONV2D) and n.kwargs.get("groups", 1) == 1:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            before = {k: v for k, v in kwargs.items() if k in _BEFORE}
            weight = args[1]
            # The operator itself, on a weight that changes nothing, gives what the product reads.
            unit = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
            unit = unit.view(*unit.shape, *[1] * (weight.dim() - 2))
            read = n.target(args[0], unit, **before)  # type: ignore[operator]
            ends = (read.amin().clamp(max=0), read.amax().clamp(min=0))
            gains = None
            if n in self._smooth:
                # A row has a scale of its own, and of maps each image.
                pieces = read.flatten(0, -2)[:, None] if is_call(n, LINEAR) else read.flatten(1, 2)
                gains = factors(weight, pieces, self._smooth[n])
            self.found[n] = Seen(gram(read), torch.stack(ends).float(), gains)
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
