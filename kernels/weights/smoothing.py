"""Outlier channels shared out between a weight and the norm that makes what it reads.

After Xiao, Lin, Seznec, Wu, Demouth, Han: SmoothQuant (ICML 2023, arXiv 2211.10438). One scale for
all channels of a token is set by the largest of them, and the others are left with few levels.
Dividing the norm's gain and offset by a factor for each channel and multiplying the weight's input
channels by it changes no product. Factors are powers of two, so nothing but exponents changes.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..integer import GROUP, LIMIT
from .encoding import Encoding

#: How much of a channel's size goes into the weight: parts that are tried.
_STRENGTHS = tuple(tenth / 10 for tenth in range(2, 11))

#: The largest power of two, and the least: fp16's gains and offsets stay in range.
_REACH = 8

#: The part of the noise that has to go: less is no matter, and has models learned anew for little.
_WORTH = 0.2

#: Rows of the weight, and of what it reads, that stand for all of them.
_ROWS = 256


def factors(weight: torch.Tensor, read: torch.Tensor, encoding: Encoding) -> torch.Tensor | None:
    """What to multiply a weight's input channels by, and to divide what they read by.

    Of several choices the one with the least noise: of codes of the activations, by the largest
    channel of each piece, and of the weight's, by the largest weight of each group.

    Args:
        weight: ``(N, K)`` or ``(O, I, KH, KW)``, floating.
        read: ``(P, R, K)`` or ``(P, R, I)``, what it was seen to read: pieces that have a scale of
            their own, and rows of a piece.
        encoding: of the weight, with codes (not ``keep``).

    Returns:
        fp32 ``(K,)`` or ``(I,)``, powers of two; None where nothing is gained, or what is given
        is not finite.
    """
    each = max(1, _ROWS // max(1, weight[0, 0].numel()))
    rows = weight[:: -(-len(weight) // each)].movedim(1, -1).flatten(0, -2).float().cpu()
    pieces = read[:: max(1, -(-len(read) // _ROWS))].float().cpu()
    largest, most = (x.abs().amax() if x.numel() else torch.zeros(()) for x in (rows, pieces))
    if not (0 < largest < torch.inf and 0 < most < torch.inf):
        return None
    rows, pieces = rows / largest, pieces / most  # squares stay in range
    noise = _Noise(rows, pieces, encoding)
    plain = noise.by(torch.ones(rows.shape[1]))
    best, least = None, plain[0] * (1 - _WORTH)
    sizes = noise.peaks.square().mean(dim=0).sqrt(), rows.abs().amax(dim=0)
    for powers in dict.fromkeys(_powers(*sizes, strength) for strength in _STRENGTHS):
        found = torch.tensor(powers)
        both, activations = noise.by(found)
        # Where a budget takes more bits for the weight, the noise of activations is what is left.
        if both < least and activations <= plain[1]:
            best, least = found, both
    return None if best is None else best.to(weight.device)


class _Noise:
    """The squared error of a layer's outputs, as expected."""

    def __init__(self, rows: torch.Tensor, read: torch.Tensor, encoding: Encoding) -> None:
        self.peaks = read.abs().amax(dim=1)
        self._rows = rows
        self._power = read.square().mean(dim=(0, 1))
        self._levels = (encoding.entries - 1) / 2 if encoding.table else LIMIT
        self._group = GROUP if encoding.table else rows.shape[1]

    def by(self, factors: torch.Tensor) -> tuple[float, float]:
        """Of codes of both and of activations alone, both times 12."""
        weight, power = self._rows * factors, self._power / factors.square()
        step = (self.peaks / factors).amax(dim=1) / LIMIT
        activations = step.square().mean() * weight.square().sum()
        grouped, powers = (self._grouped(x) for x in (weight.abs(), power))
        codes = ((grouped.amax(dim=-1) / self._levels).square() * powers.sum(dim=-1)).sum()
        return float(activations + codes), float(activations)

    def _grouped(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, -x.shape[-1] % self._group)).unflatten(-1, (-1, self._group))


def _powers(read: torch.Tensor, weight: torch.Tensor, strength: float) -> tuple[float, ...]:
    """Powers of two around 1 from the sizes ``(K,)`` of channels; 1 for those that do nothing."""
    known = (read > 0) & (weight > 0)
    sizes = strength * read.log2() - (1 - strength) * weight.log2()
    if not known.any():
        return (1.0,) * len(read)
    powers = (sizes - sizes[known].median()).round().clamp(-_REACH, _REACH)
    exponents = torch.where(known, powers, 0.0).tolist()
    return tuple(2.0**exponent for exponent in exponents)  # exact, as torch's need not be


def multiplied(weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The weight with its input channels multiplied, in fp32: fp16 might not hold it."""
    return weight * factors.view(-1, *[1] * (weight.dim() - 2))


def divided(gram: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Second moments ``(G, 64, 64)`` of what is read, once that is divided by the factors."""
    padded = F.pad(factors, (0, -len(factors) % GROUP), value=1.0).view(-1, GROUP)
    return gram / (padded[:, :, None] * padded[:, None, :])
