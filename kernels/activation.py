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
