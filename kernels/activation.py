"""Activations by name, as fused operators spell them in their schemas."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

#: name → reference. ``geglu`` is not here: it halves the last axis, so its operator handles it.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}

#: Activations with a dip below zero: where it is deepest and how deep. Left of it they rise towards
#: zero, right of it they rise; the others only rise.
DIPS: dict[str, tuple[float, float]] = {
    "silu": (-1.2784645, 0.27846455),
    "gelu": (-0.7517916, 0.16997121),
    "gelu_tanh": (-0.7524614, 0.17004077),
    "quick_gelu": (-0.751154, 0.1636102),
}
