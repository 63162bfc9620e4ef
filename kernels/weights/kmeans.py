"""Weighted k-means of numbers, exact in each step and independent of how many there are."""

from __future__ import annotations

import torch


def kmeans(
    values: torch.Tensor,
    count: int,
    weights: torch.Tensor | None = None,
    iterations: int = 300,
) -> torch.Tensor:
    """Centroids that minimise the weighted squared distance to the nearest, by Lloyd's steps.

    The start is linear, evenly from the smallest value to the largest, which Han et al. (Deep
    Compression, ICLR 2016, section 3.2) find better than random or density-based starts: it keeps
    the few large weights apart. In one dimension clusters are intervals, so after one sort each
    step takes two look-ups in running sums.

    Args:
        values: any shape; NaN-free.
        count: how many centroids.
        weights: of each value, not negative; None weighs all alike.
        iterations: at most that many steps; it stops where nothing moves.

    Returns:
        fp64 ``(count,)``, ascending. A centroid that owns no value stays where it was.
    """
    ordered, order = values.reshape(-1).double().sort()
    mass = torch.ones_like(ordered) if weights is None else weights.reshape(-1)[order].double()
    zero = ordered.new_zeros(1)
    total_mass = torch.cat([zero, mass.cumsum(0)])
    total_moment = torch.cat([zero, (mass * ordered).cumsum(0)])
    low, high = float(ordered[0]), float(ordered[-1])
    centroids = torch.linspace(low, high, count, dtype=torch.float64)
    ends = torch.tensor([0, len(ordered)])
    for _ in range(iterations):
        middles = (centroids[1:] + centroids[:-1]) / 2
        cuts = torch.searchsorted(ordered, middles)
        edges = torch.cat([ends[:1], cuts, ends[1:]])
        owned = total_mass[edges].diff()
        moved = torch.where(owned > 0, total_moment[edges].diff() / owned, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def histogram(values: torch.Tensor, bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Many values as at most ``bins`` of them: the mean of each bin, and how many it stands for.

    Returns:
        values and counts, fp64, of the bins that hold any.
    """
    flat = values.reshape(-1).float()
    low, high = torch.aminmax(flat)
    scale = (bins - 1) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    index = ((flat - low) * scale).clamp_(0, bins - 1).int()
    counts = torch.bincount(index, minlength=bins).double()
    sums = torch.bincount(index, flat.double(), minlength=bins)
    some = counts > 0
    return sums[some] / counts[some], counts[some]
