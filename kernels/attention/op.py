"""The ``zoomc::attention`` operator: schema, cost and reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..operator import operator
from .integer import attend

#: What :func:`attention`'s products may multiply, from the fewest bits up.
ARITHMETICS = ("int8", "bf16", "keep")


def _flops(args: Mapping[str, Any]) -> int:
    batch, queries, _ = args["q"].shape
    return 4 * batch * args["heads"] * args["head_dim"] * queries * args["k"].shape[1]


def _fake(q: torch.Tensor, *_: Any, heads: int, head_dim: int, **__: Any) -> torch.Tensor:
    return q.new_empty(*q.shape[:2], heads * head_dim)


@operator(
    "attention(Tensor q, Tensor k, Tensor v, *, int heads, int head_dim, float scale,"
    " int[3] offsets=[0, 0, 0], Tensor? mask=None, bool causal=False, str arithmetic='keep')"
    " -> Tensor",
    flops=_flops,
    fake=_fake,
)
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    heads: int,
    head_dim: int,
    scale: float,
    offsets: Sequence[int] = (0, 0, 0),
    mask: torch.Tensor | None = None,
    causal: bool = False,
    arithmetic: str = "keep",
) -> torch.Tensor:
    """``softmax(scale · q kᵀ + mask) v`` for every head.

    Heads lie side by side in the last axis, and each of the three operands may be a slice of a
    wider row (``offsets``), so one fused projection serves all three without being taken apart.

    Args:
        q: ``(B, Sq, ≥ offsets[0] + heads · head_dim)``.
        k: ``(B, Sk, ≥ offsets[1] + heads · head_dim)``.
        v: ``(B, Sk, ≥ offsets[2] + heads · head_dim)``.
        heads: number of heads.
        head_dim: size of one head.
        scale: factor on the scores before the mask.
        offsets: first column of q, k and v in their rows.
        mask: broadcastable to ``(B, heads, Sq, Sk)``; added to the scores, or, if boolean, true
            where a key may be seen.
        causal: a query sees no later key (upper-left aligned, as in torch).
        arithmetic: what both products multiply. ``keep``: the operands' dtype. ``bf16``: operands
            rounded to bf16, sums in fp32; a kernel may round the weights to bf16, too. ``int8``:
            integers, without mask or causality; see :func:`.integer.attend`.

    Returns:
        ``(B, Sq, heads · head_dim)``, dense, in the dtype of ``q``.

    Raises:
        ValueError: of another arithmetic, or int8 under a mask.
    """
    size = heads * head_dim
    if arithmetic not in ARITHMETICS:
        raise ValueError(f"attention in {arithmetic!r}: one of {', '.join(ARITHMETICS)}")
    if arithmetic == "int8" and (mask is not None or causal):
        raise ValueError("int8 attention takes no mask and is not causal")

    def split(x: torch.Tensor, offset: int) -> torch.Tensor:
        columns = x[..., offset : offset + size]
        if arithmetic == "bf16":
            columns = columns.bfloat16().to(x.dtype)
        return columns.unflatten(-1, (heads, head_dim)).transpose(1, 2)

    qh, kh, vh = (split(x, offset) for x, offset in zip((q, k, v), offsets, strict=True))
    if arithmetic == "int8":
        y = attend(qh, kh, vh, scale)
    else:
        y = F.scaled_dot_product_attention(
            qh, kh, vh, attn_mask=mask, is_causal=causal, scale=scale
        )
    return y.transpose(1, 2).flatten(2).clone(memory_format=torch.contiguous_format)
