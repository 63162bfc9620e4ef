"""The ``zoomc::attention`` operator: schema, cost and reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..operator import operator


def _flops(args: Mapping[str, Any]) -> int:
    batch, queries, _ = args["q"].shape
    return 4 * batch * args["heads"] * args["head_dim"] * queries * args["k"].shape[1]


@operator(
    "attention(Tensor q, Tensor k, Tensor v, *, int heads, int head_dim, float scale,"
    " int[3] offsets=[0, 0, 0], Tensor? mask=None, bool causal=False) -> Tensor",
    flops=_flops,
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

    Returns:
        ``(B, Sq, heads · head_dim)``, dense, in the dtype of ``q``.
    """
    size = heads * head_dim

    def split(x: torch.Tensor, offset: int) -> torch.Tensor:
        columns = x[..., offset : offset + size]
        return columns.unflatten(-1, (heads, head_dim)).transpose(1, 2)

    qh, kh, vh = (split(x, offset) for x, offset in zip((q, k, v), offsets, strict=True))
    y = F.scaled_dot_product_attention(qh, kh, vh, attn_mask=mask, is_causal=causal, scale=scale)
    return y.transpose(1, 2).flatten(2).clone(memory_format=torch.contiguous_format)
