"""How an operator is declared: a schema, a reference in plain torch, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_LIBRARY = torch.library.Library("zoomc", "DEF")

#: Every zoomc operator by its qualified name, ``zoomc::conv2d``.
OPERATORS: dict[str, Operator] = {}


@dataclass(frozen=True)
class Operator:
    """One zoomc operator.

    ``reference`` is the operator's meaning: eager calls run it, shape inference runs it on fake
    tensors, and every kernel is tested against it. ``flops`` counts multiplies and adds from the
    arguments by schema name (tensors may be fake).
    """

    name: str
    op: torch._ops.OpOverload
    reference: Callable[..., torch.Tensor]
    flops: Callable[[Mapping[str, Any]], int]


def operator(
    schema: str, flops: Callable[[Mapping[str, Any]], int]
) -> Callable[[Callable[..., torch.Tensor]], torch._ops.OpOverload]:
    """Declare ``zoomc::<schema>`` with the decorated function as its reference.

    The reference must return a fresh contiguous tensor: operators are functional and their
    results are dense, so that a target may store them as it likes.
    """

    def declare(reference: Callable[..., torch.Tensor]) -> torch._ops.OpOverload:
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        name = schema.partition("(")[0]
        _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"zoomc::{name}", reference, lib=_LIBRARY)
        op = getattr(torch.ops.zoomc, name).default
        OPERATORS[f"zoomc::{name}"] = Operator(f"zoomc::{name}", op, reference, flops)
        return op

    return declare
