"""Finding the table of values that a layer's weights share."""

from __future__ import annotations

import torch

from .curves import largest_of, rms, uniform_table
from .kmeans import kmeans
from .scales import choose_scales, refit
from .tables import LOSS_STEPS, UNIFORM, Table

#: Bins of the histogram that k-means sees.
_BINS = 1 << 10

#: The largest group scales tried for a table of so many entries.
_SCALES = {4: (2, 3, 4, 6, 8, 10), 16: (3, 4, 5, 6, 7, 8), 256: (1, 2)}


def fit_table(
    x: torch.Tensor, entries: int, importance: torch.Tensor | None, zero: bool, free: bool = True
) -> Table:
    """The table that loses least on a sample ``(64, G, O, taps)`` of a layer.

    Args:
        x: the sample, fp32.
        entries: 4, 16 or 256.
        importance: ``(64, G, 1, 1)`` or None.
        zero: whether zero must be among the values: pruned weights stay zero.
        free: any values may be chosen; else evenly spaced ones.
    """

    largest = largest_of(x)

    def loss(table: Table) -> float:
        group_scale, unit = choose_scales(x, table, importance, largest)
        values = table.nearest(x, group_scale * unit)[1]
        unit = refit(x, values, group_scale, unit, importance)
        error = values.mul_(group_scale * unit).sub_(x).square_()
        return float((error if importance is None else error * importance).sum())

    tables = []
    if entries == 16:
        tables = [uniform_table(v, x, importance) for v in UNIFORM if 0 in v or not zero]
    if free:
        tables += _free_tables(x, entries, importance, zero)
    return tables[0] if len(tables) == 1 else min(tables, key=loss)


def _free_tables(
    x: torch.Tensor, entries: int, importance: torch.Tensor | None, zero: bool
) -> list[Table]:
    """Tables found by k-means.

    Weights are brought to one scale by the size of their groups, measured in two ways that suit
    different distributions. K-means, each value weighed by the square of that size (and its
    importance), gives the centroids. How finely integers can follow them trades against how
    finely groups can be scaled, since the product of both stays within ±127: every split is
    tried.
    """
    relevant = x != 0 if zero else torch.ones_like(x, dtype=torch.bool)
    tables = []
    for measure in ("largest", "rms"):
        size = largest_of(x) if measure == "largest" else rms(x)
        size = torch.where(size > 0, size, 1.0)
        mass = (size * size).expand(x.shape)
        mass = mass if importance is None else mass * importance
        points, counts = _weighted_histogram((x / size)[relevant], mass[relevant])
        centroids = kmeans(points, entries, counts)
        tables += [
            _on_integers(centroids, 127 // scale, points, counts, zero, measure)
            for scale in _SCALES[entries]
        ]
    return tables


def _weighted_histogram(
    values: torch.Tensor, mass: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """At most ``_BINS`` points that stand for weighted values."""
    if values.numel() == 0:
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    if values.numel() <= _BINS:
        return values.double(), mass.double()
    low, high = torch.aminmax(values)
    index = ((values - low) * ((_BINS - 1) / (high - low))).int()
    total = torch.bincount(index, mass.double(), minlength=_BINS)
    moment = torch.bincount(index, (mass * values).double(), minlength=_BINS)
    some = total > 0
    return moment[some] / total[some], total[some]


def _on_integers(
    centroids: torch.Tensor,
    limit: int,
    points: torch.Tensor,
    counts: torch.Tensor,
    zero: bool,
    measure: str,
) -> Table:
    """Centroids on the grid of integers up to ``limit`` that follows them best."""
    widest = float(centroids.abs().max()) or 1.0
    best = (float("inf"), centroids, 1.0)
    for part in torch.linspace(0.8, 1.0, 9).tolist():
        factor = limit * part / widest
        values = (centroids * factor).round().clamp(-limit, limit)
        if zero:
            values[values.abs().argmin()] = 0
        found = (_loss(values / factor, points, counts), values, factor)
        best = min(best, found, key=lambda candidate: candidate[0])
    _, values, factor = best
    losses = [_loss(values / factor * step, points, counts) for step in LOSS_STEPS]
    return Table(values.to(torch.int8), factor, measure, torch.tensor(losses))


def _loss(levels: torch.Tensor, points: torch.Tensor, counts: torch.Tensor) -> float:
    """The squared error of taking each point to the nearest level."""
    nearest = torch.bucketize(points, (levels[1:] + levels[:-1]) / 2)
    return float(((points - levels[nearest]).square() * counts).sum())
