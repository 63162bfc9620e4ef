"""Pruning: which weights become zero, and what it takes to say which."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from .encoding import Pruning

#: Output and input channels of a block, at each tap: a panel's columns by a group's channels.
BLOCK = (16, 64)


def prune(weight: torch.Tensor, pruning: Pruning) -> torch.Tensor:
    """The weight with exactly :func:`kept` elements left, the others zero.

    Args:
        weight: ``(N, K)`` or ``(O, I, KH, KW)``.
        pruning: the pattern and its share.
    """
    if pruning.pattern == "2:4":
        keep = _two_of_four(weight)
    elif pruning.pattern == "blocks":
        keep = _blocks(weight, pruning.share)
    else:
        keep = _largest(weight, kept(tuple(weight.shape), pruning))
    return torch.where(keep, weight, torch.zeros_like(weight))


def kept(shape: tuple[int, ...], pruning: Pruning) -> int:
    """How many elements a pruned weight of that shape stores."""
    numel = math.prod(shape)
    if pruning.pattern == "2:4":
        return numel // shape[1] * (shape[1] // 4 * 2 + min(shape[1] % 4, 2))
    if pruning.pattern == "blocks":
        # Blocks at the edges are smaller; what is stored is whole blocks, the edges padded.
        blocks = _block_count(shape)
        return (blocks - int(blocks * pruning.share)) * math.prod(BLOCK)
    return numel - int(numel * pruning.share)


def mask_bits(shape: tuple[int, ...], pruning: Pruning) -> int:
    """Bits that say which elements are stored: two for each kept of 2:4, one a block, one each."""
    if pruning.pattern == "2:4":
        return 2 * kept(shape, pruning)
    return _block_count(shape) if pruning.pattern == "blocks" else math.prod(shape)


def _largest(weight: torch.Tensor, count: int) -> torch.Tensor:
    """True for the ``count`` largest sizes; of equal ones, the first."""
    size = weight.detach().abs().flatten()
    if count == 0:
        return torch.zeros_like(weight, dtype=torch.bool)
    least = size.kthvalue(len(size) - count + 1).values
    keep = size > least
    ties = (size == least).nonzero()[: count - int(keep.sum())]
    keep[ties.flatten()] = True
    return keep.view(weight.shape)


def _two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """The two larger of every four consecutive input channels; of a shorter rest, two as well."""
    channels = weight.shape[1]
    size = weight.detach().abs().movedim(1, -1)
    # Padding below every size is never among the two.
    size = F.pad(size, (0, -channels % 4), value=-1.0).unflatten(-1, (-1, 4))
    keep = torch.zeros_like(size, dtype=torch.bool)
    keep.scatter_(-1, size.topk(2, dim=-1).indices, True)
    return keep.flatten(-2)[..., :channels].movedim(-1, 1)


def _blocks(weight: torch.Tensor, share: float) -> torch.Tensor:
    """True for every element of the blocks of the largest norms."""
    out, channels = weight.shape[:2]
    taps = weight.detach().reshape(out, channels, -1)
    rows, columns = BLOCK
    padded = F.pad(taps, (0, 0, 0, -channels % columns, 0, -out % rows))
    split = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    energy = split.float().square().sum(dim=(1, 3))
    keep = torch.ones(energy.numel(), dtype=torch.bool, device=weight.device)
    keep[energy.flatten().argsort(stable=True)[: int(energy.numel() * share)]] = False
    keep = keep.view(energy.shape).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return keep[:out, :channels].reshape(weight.shape)


def _block_count(shape: tuple[int, ...]) -> int:
    out, channels, *taps = shape
    return -(-out // BLOCK[0]) * -(-channels // BLOCK[1]) * math.prod(taps)
