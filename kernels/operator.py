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


def declare(
    schema: str, reference: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Declare ``zoomc::<schema>``: what it computes, and the shapes of that on fake tensors."""
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.partition("(")[0]
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"zoomc::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.zoomc, name).default  # type: ignore[no-any-return]


def operator(
    schema: str,
    flops: Callable[[Mapping[str, Any]], int],
    fake: Callable[..., torch.Tensor] | None = None,
) -> Callable[[Callable[..., torch.Tensor]], torch._ops.OpOverload]:
    """Declare ``zoomc::<schema>`` with the decorated function as its reference.

    The reference must return a fresh contiguous tensor: operators are functional and their
    results are dense, so that a target may store them as it likes.

    ``fake`` gives the result's shape and dtype on fake tensors, where running the reference for
    that would take long.
    """

    def register(reference: Callable[..., torch.Tensor]) -> torch._ops.OpOverload:
        op = declare(schema, reference, fake or reference)
        name = f"zoomc::{schema.partition('(')[0]}"
        OPERATORS[name] = Operator(name, op, reference, flops)
        return op

    return register
