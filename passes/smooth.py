"""What a norm and the weight behind it may share: which layers can, and the norm's side of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from .constants import is_constant
from .ops import TO, aten
from .rewrite import Value, arguments, call, dtype

#: Arguments of a layer that scale its norm's result.
_SCALES = ("norm_weight", "norm_bias")


def foldable(node: fx.Node) -> bool:
    """Whether a constant norm makes just what the linear's or convolution's product reads."""
    values = arguments(node)
    norm = values.get("norm") or values.get("norm_groups")
    if not norm or values["pre_activation"] != "none" or values.get("groups", 1) != 1:
        return False
    gain, offset = (values[name] for name in _SCALES)
    return gain is not None and is_constant(gain) and (offset is None or is_constant(offset))


def folded(node: fx.Node, factors: fx.Node) -> dict[str, Value]:
    """The layer's norm arguments, divided; factors are powers of two, so in any type."""
    found: dict[str, Value] = {}
    for name in _SCALES:
        value = arguments(node)[name]
        if value is not None:
            same = dtype(factors) is dtype(value)
            by = factors if same else call(TO, factors, dtype=dtype(value))
            found[name] = call(aten.div.Tensor, value, by)
    return found


def divided(kwargs: Mapping[str, Any], factors: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same of a layer's values."""
    given = {name: kwargs.get(name) for name in _SCALES}
    return {name: x / factors.to(x.dtype) for name, x in given.items() if x is not None}
