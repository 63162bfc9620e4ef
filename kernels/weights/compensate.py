"""Rounding that makes good its own errors, by what activations have in common.

After Frantar, Ashkboos, Hoefler, Alistarh: GPTQ (ICLR 2023, arXiv 2210.17323), with the second
moments taken within groups of 64 input channels, so that a convolution needs no more of them than
a linear, and all groups, taps and output channels go through the same 64 steps at once.
"""

from __future__ import annotations

import torch

from .tables import Table, codes_of

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


def compensated_codes(
    x: torch.Tensor, step: torch.Tensor, table: Table, inverse: torch.Tensor
) -> torch.Tensor:
    """The codes of a block ``(64, O, G, taps)``, channel by channel.

    Args:
        x: the weights.
        step: ``(O, G, taps)``, what the table's values are multiplied by.
        table: the values to choose from.
        inverse: ``(G, 64, 64)`` from :func:`inverse_factor`.
    """
    channels, out, groups, taps = x.shape
    left = x.reshape(channels, out, groups * taps).clone()
    step = step.reshape(out, groups * taps)
    # one column a group and tap, so that the innermost loop is long
    factor = inverse.permute(1, 2, 0).repeat_interleave(taps, dim=2)
    codes = torch.empty(left.shape, dtype=torch.uint8)
    for i in range(channels):
        codes[i] = codes_of(left[i], step, table)
        error = (left[i] - table.look_up(codes[i]) * step) / factor[i, i]
        left[i + 1 :].addcmul_(factor[i, i + 1 :, None], error, value=-1)
    return codes.view(x.shape)
