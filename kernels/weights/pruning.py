"""Pruning: which weights become zero, and what it takes to say which."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from ..errors import ZoomcError
from ..integer import GROUP
from .encoding import Pruning

#: Output channels of a block, a multiple of every CPU kernel's panel. Its other side is a step of
#: a kernel: the channels of a group, at one tap.
ROWS = 32


class PruningError(ZoomcError):
    """A weight with more values other than zero than its pruning leaves."""


def prune(weight: torch.Tensor, pruning: Pruning) -> torch.Tensor:
    """The weight with exactly :func:`kept` elements left, the others zero.

    Args:
        weight: ``(N, K)`` or ``(O, I, KH, KW)``.
        pruning: the pattern and its share.
    """
    if pruning.pattern == "2:4":
        keep = _two_of_four(weight)
    elif pruning.pattern == "blocks":
        keep = _strongest(weight, pruning)
    else:
        keep = _largest(weight, kept(tuple(weight.shape), pruning))
    return torch.where(keep, weight, torch.zeros_like(weight))


def kept(shape: tuple[int, ...], pruning: Pruning) -> int:
    """How many elements a pruned weight of that shape stores; of blocks whole ones, padded."""
    numel = math.prod(shape)
    if pruning.pattern == "2:4":
        return numel // shape[1] * (shape[1] // 4 * 2 + min(shape[1] % 4, 2))
    if pruning.pattern == "blocks":
        across, steps = _extent(shape)
        return across * (steps - _dropped(steps, pruning)) * _rows(shape) * GROUP
    return numel - int(numel * pruning.share)


def kept_steps(shape: tuple[int, ...], pruning: Pruning | None, gated: bool = False) -> int:
    """How many steps of 64 input channels at a tap any aligned 32 output channels keep at most.

    Args:
        shape: ``(N, K)`` or ``(O, I, KH, KW)``.
        pruning: of the weight.
        gated: not 32 outputs in a row are meant, but 16 and the 16 half the weight further, which
            a geglu gates them by.

    Returns:
        0 where none are certain to be zero.
    """
    if pruning is None or pruning.pattern != "blocks" or (gated and not _paired(shape)):
        return 0
    steps = _extent(shape)[1]
    dropped = _dropped(steps, pruning)
    return steps - dropped if dropped else 0


def mask_bits(shape: tuple[int, ...], pruning: Pruning) -> int:
    """Bits that say which elements are stored: one a block, or one each."""
    return math.prod(_extent(shape)) if pruning.pattern == "blocks" else math.prod(shape)


def unit_size(shape: tuple[int, ...], pruning: Pruning) -> int:
    """Elements that are kept or dropped together."""
    return _rows(shape) * GROUP if pruning.pattern == "blocks" else 1


def split(weight: torch.Tensor, pruning: Pruning) -> torch.Tensor:
    """The units a pruning keeps or drops, one a row: blocks, padded with zeros, or elements."""
    if pruning.pattern != "blocks":
        return weight.reshape(-1, 1)
    return _blocks(weight).flatten(2).flatten(0, 1)


def joined(units: torch.Tensor, shape: tuple[int, ...], pruning: Pruning) -> torch.Tensor:
    """The weight of that shape whose units :func:`split` made."""
    if pruning.pattern != "blocks":
        return units.view(shape)
    halves = 2 if _paired(shape) else 1
    groups, taps = -(-shape[1] // GROUP), math.prod(shape[2:])
    blocks = units.reshape(-1, groups, taps, halves, ROWS, GROUP)
    rows = blocks.permute(3, 0, 4, 1, 5, 2).flatten(3, 4).flatten(0, 2)
    return rows[: shape[0], : shape[1]].reshape(shape)


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


def _strongest(weight: torch.Tensor, pruning: Pruning) -> torch.Tensor:
    """True for every element of the blocks of the largest norms among those of the same outputs.

    All outputs keep equally many: so kernels know how many, and where a share of the work begins.
    """
    shape = tuple(weight.shape)
    energy = _blocks(weight.detach()).float().square().sum(dim=(2, 3, 4))
    keep = torch.ones(energy.shape, dtype=torch.bool, device=weight.device)
    dropped = _dropped(energy.shape[1], pruning)
    keep.scatter_(1, energy.argsort(dim=1, stable=True)[:, :dropped], False)
    return joined(keep.view(-1, 1).expand(-1, _rows(shape) * GROUP), shape, pruning)


def _blocks(weight: torch.Tensor) -> torch.Tensor:
    """``(N, C, ...)`` as ``(blocks of outputs, steps, halves, 32, 64)``, padded with zeros."""
    out, channels = weight.shape[:2]
    taps = weight.reshape(out, channels, -1)
    padded = F.pad(taps, (0, 0, 0, -channels % GROUP, 0, -out % ROWS))
    halves = 2 if _paired(tuple(weight.shape)) else 1
    parts = padded.unflatten(1, (-1, GROUP)).unflatten(0, (halves, -1, ROWS))
    return parts.permute(1, 3, 5, 0, 2, 4).flatten(1, 2)


def _paired(shape: tuple[int, ...]) -> bool:
    """Whether a block lies in both halves of the outputs, as suits values and gates of a geglu.

    Any linear may feed one. Where halves are whole blocks, that suits others as well.
    """
    return len(shape) == 2 and shape[0] % (2 * ROWS) == 0


def _rows(shape: tuple[int, ...]) -> int:
    return 2 * ROWS if _paired(shape) else ROWS


def _extent(shape: tuple[int, ...]) -> tuple[int, int]:
    """Blocks along the outputs, and along everything else."""
    return -(-shape[0] // _rows(shape)), -(-shape[1] // GROUP) * math.prod(shape[2:])


def _dropped(steps: int, pruning: Pruning) -> int:
    return int(steps * pruning.share)
