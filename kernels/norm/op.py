"""The ``zoomc::group_norm`` and ``zoomc::layer_norm`` operators: schema, cost and reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from ..activation import ACTIVATIONS
from ..operator import operator


def _flops(args: Mapping[str, Any]) -> int:
    # Two moments, then one multiply-add: counted so that explain can show norms beside products.
    return 6 * args["x"].numel()


@operator(
    "group_norm(Tensor x, int groups, Tensor? weight=None, Tensor? bias=None, *,"
    ' float eps=1e-05, str activation="none") -> Tensor',
    flops=_flops,
)
def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "none",
) -> torch.Tensor:
    """Group norm of ``(N, ..., C)``, channels last, then the activation of that name."""
    y = F.group_norm(x.movedim(-1, 1), groups, weight, bias, eps)
    return ACTIVATIONS[activation](y).movedim(1, -1).clone(memory_format=torch.contiguous_format)


@operator(
    "layer_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, *, float eps=1e-05) -> Tensor",
    flops=_flops,
)
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Layer norm of ``(..., C)`` over the last axis."""
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return y.clone(memory_format=torch.contiguous_format)
