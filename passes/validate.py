"""Checking each pass by running the graph before and after it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Norm of the difference over the norm of ``want``; for integers, the share that differs."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if want.numel() == 0:
        return 0.0
    if not want.is_floating_point():
        return (got != want).double().mean().item()
    difference = torch.linalg.vector_norm((got - want).double())
    return (difference / torch.linalg.vector_norm(want.double()).clamp_min(1e-30)).item()


class Validator:
    """A ``Context.validate``: the error of a graph's outputs against those of its first run.

    Args:
        inputs: one tensor for each placeholder.
    """

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        self.inputs = inputs
        self.wanted: list[torch.Tensor] | None = None

    def __call__(self, gm: fx.GraphModule) -> float:
        """The largest relative error of any output; 0 the first time."""
        with torch.no_grad():
            outputs = gm(*self.inputs)
        if isinstance(outputs, torch.Tensor):
            outputs = (outputs,)
        found = [y for y in outputs if isinstance(y, torch.Tensor)]
        if self.wanted is None:
            self.wanted = [y.clone() for y in found]
            return 0.0
        pairs = zip(found, self.wanted, strict=True)
        return max((relative_error(got, want) for got, want in pairs), default=0.0)
