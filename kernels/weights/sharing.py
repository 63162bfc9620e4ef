"""Weight sharing: a matrix as a few numbers of its own and an index for every element."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .kmeans import histogram, kmeans

#: From here on the k-means sees a histogram: its bins are far finer than the clusters.
MANY = 1 << 20


@dataclass(frozen=True)
class Shared:
    """A matrix of shared values.

    Attributes:
        values: fp32 ``(n,)``, ascending.
        indices: uint8 or int32, in the matrix's shape.
    """

    values: torch.Tensor
    indices: torch.Tensor

    def decode(self) -> torch.Tensor:
        """The matrix, fp32."""
        return self.values[self.indices.long()]

    @property
    def bits(self) -> int:
        """Codebook and indices: ``n · 32 + numel · ceil(log2 n)`` (Deep Compression, eq. 1)."""
        index = math.ceil(math.log2(self.values.numel())) if self.values.numel() > 1 else 0
        return 32 * self.values.numel() + index * self.indices.numel()


def share(matrix: torch.Tensor, count: int, importance: torch.Tensor | None = None) -> Shared:
    """Replace every element by the nearest of ``count`` shared values, found by k-means.

    Args:
        matrix: any shape, finite.
        count: shared values, 1 … 65536.
        importance: of each element, in the matrix's shape; None weighs all alike.
    """
    if matrix.numel() > MANY and importance is None:
        points, mass = histogram(matrix, 1 << 16)
        values = kmeans(points, count, mass).float()
    else:
        values = kmeans(matrix, count, importance).float()
    middles = ((values[1:].double() + values[:-1].double()) / 2).float()
    indices = torch.bucketize(matrix.float(), middles, out_int32=True)
    return Shared(values, indices.to(torch.uint8) if count <= 256 else indices)
