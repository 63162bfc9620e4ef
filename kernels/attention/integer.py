"""Integer attention in plain torch: what every target's int8 kernels must match.

After SageAttention (Zhang et al. 2025): keys less their mean, weights scaled by block.
"""

from __future__ import annotations

import torch

from ..integer import quantise

#: Keys that share scales.
BLOCK = 128

#: The largest code of a weight, which is unsigned.
WEIGHT = 255

#: The longest head whose sums of products are exact in fp32.
WIDEST = 512


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """``softmax(scale · q kᵀ) v`` in int8 products.

    The mean of a head's keys is subtracted first: it adds the same to all of a query's scores,
    which a softmax does not see, and it is often most of what keys are. Then q becomes int8 by one
    scale a query, keys by one a block of :data:`BLOCK` keys, values by one a block and column. In
    each block a query's weights relative to its largest score there become 0 to 255. Products add
    up in integers, exactly; exponentials, scales and the sums over blocks are fp32. Weights are
    normalised by the sum of their codes.

    A kernel's scores are these integers, unless another order of summing the mean moves a key
    across a rounding edge; a weight may be one code off where its exponential is that close to
    one.

    Args:
        q: ``(B, heads, Sq, D)``, any floating dtype; ``D`` up to :data:`WIDEST`.
        k: ``(B, heads, Sk, D)``.
        v: ``(B, heads, Sk, D)``.
        scale: factor on the scores.

    Returns:
        ``(B, heads, Sq, D)`` in the dtype of ``q``.
    """
    q, k, v, dtype = q.float(), k.float(), v.float(), q.dtype
    k = k - k.mean(-2, keepdim=True)
    q8, q_scale = quantise(q, q.abs().amax(-1, keepdim=True))
    q8, q_scale = q8.float(), q_scale * scale
    top = q.new_full((*q.shape[:3], 1), -torch.inf)
    total, y = torch.zeros_like(top), torch.zeros_like(q)
    for first in range(0, k.shape[-2], BLOCK):
        keys, values = (x[..., first : first + BLOCK, :] for x in (k, v))
        k8, k_scale = quantise(keys, keys.abs().amax((-2, -1), keepdim=True))
        v8, v_scale = quantise(values, values.abs().amax(-2, keepdim=True))
        scores = q8 @ k8.float().transpose(-1, -2) * (q_scale * k_scale)
        here = scores.amax(-1, keepdim=True)
        weights = torch.round(WEIGHT * torch.exp(scores - here))
        new = torch.maximum(top, here)
        shrink, part = torch.exp(top - new), torch.exp(here - new)
        total = total * shrink + weights.sum(-1, keepdim=True) * part
        y = y * shrink + weights @ v8.float() * (v_scale * part)
        top = new
    return (y / total).to(dtype)
