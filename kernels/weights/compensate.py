"""Rounding that makes good its own errors, by what activations have in common.

After Frantar, Ashkboos, Hoefler, Alistarh: GPTQ (ICLR 2023, arXiv 2210.17323), with the second
moments taken within groups of 64 input channels, so that a convolution needs no more of them than
a linear, and all groups, taps and output channels go through the same 64 steps at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .tables import Table

#: Channels rounded before what they cost is passed on to all that follow, as one product.
_TOGETHER = 8

#: What is added to the diagonal, as a part of its mean: few samples say little of small moments.
DAMPING = 0.01


def inverse_factor(gram: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the damped inverse of ``(G, 64, 64)`` second moments, fp32."""
    moments = gram.double()
    diagonal = moments.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    # Channels that never fire, the padding of the last group among them, stand alone.
    extra = DAMPING * mean + torch.where(diagonal <= 0, mean, 0.0)
    extra = torch.where(mean <= 0, 1.0, extra)
    inverse = torch.linalg.inv(moments + torch.diag_embed(extra))
    return torch.linalg.cholesky((inverse + inverse.mT) / 2, upper=True).float()


def rounding(table: Table) -> Callable[..., torch.Tensor]:
    """:func:`compensated`, or the same compiled where TVM is installed and knows the CPU."""
    try:
        from . import compensate_tir
    except ImportError:
        return compensated
    return compensate_tir.compensated if compensate_tir.available(table) else compensated


def compensated(
    x: torch.Tensor, step: torch.Tensor, table: Table, inverse: torch.Tensor
) -> torch.Tensor:
    """The codes of a block ``(64, G, O, taps)``, channel by channel.

    Args:
        x: the weights.
        step: ``(G, O, taps)``, what the table's values are multiplied by.
        table: the values to choose from.
        inverse: ``(G, 64, 64)`` from :func:`inverse_factor`.
    """
    channels = len(x)
    left = x.flatten(2).transpose(0, 1).clone(memory_format=torch.contiguous_format)
    step = step.flatten(1)
    codes = torch.empty(channels, *step.shape, dtype=torch.uint8)
    for start in range(0, channels, _TOGETHER):
        end = start + _TOGETHER
        errors = left[:, start:end]  # what a channel lost takes its place
        for i in range(start, end):
            channel = left[:, i]
            codes[i], values = table.nearest(channel, step)
            channel.sub_(values.mul_(step)).div_(inverse[:, i, i, None])
            near = inverse[:, i, i + 1 : end, None]
            left[:, i + 1 : end].addcmul_(near, channel[:, None], value=-1)
        if end < channels:
            left[:, end:].baddbmm_(inverse[:, start:end, end:].mT, errors, alpha=-1)
    return codes.view(x.shape)
