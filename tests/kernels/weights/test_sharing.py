"""Weight sharing by k-means, against the paper's own example and plain arithmetic."""

from __future__ import annotations

import pytest
import torch
from zoomc.kernels.weights import share
from zoomc.kernels.weights.kmeans import histogram, kmeans

#: Han, Mao, Dally, Deep Compression (ICLR 2016), figure 3.
PAPER = [
    [2.09, -0.98, 1.48, 0.09],
    [0.05, -0.14, -1.08, 2.12],
    [-0.91, 1.92, 0.0, -1.03],
    [1.87, 0.0, 1.53, 1.49],
]


def test_the_papers_example():
    matrix = torch.tensor(PAPER)
    shared = share(matrix, 4)
    torch.testing.assert_close(
        shared.values, torch.tensor([-1.0, 0.0, 1.5, 2.0]), atol=5e-3, rtol=0
    )
    assert shared.indices.tolist() == [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]
    before = matrix.numel() * 32
    assert (before, shared.bits, before / shared.bits) == (512, 160, 3.2)
    torch.testing.assert_close(shared.decode(), matrix, atol=0.15, rtol=0)


def lloyd(values: torch.Tensor, weights: torch.Tensor, count: int) -> torch.Tensor:
    """Lloyd's algorithm as everybody writes it."""
    centroids = torch.linspace(float(values.min()), float(values.max()), count).double()
    for _ in range(1000):
        owner = (values[:, None] - centroids).abs().argmin(1)
        moved = centroids.clone()
        for k in range(count):
            mine = owner == k
            if weights[mine].sum() > 0:
                moved[k] = (values * weights)[mine].sum() / weights[mine].sum()
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_every_step_is_lloyds(count):
    torch.manual_seed(0)
    values, weights = torch.randn(300).double(), torch.rand(300).double()
    torch.testing.assert_close(kmeans(values, count, weights), lloyd(values, weights, count))
    whole = torch.ones(300).double()
    torch.testing.assert_close(kmeans(values, count), lloyd(values, whole, count))


def test_a_weight_of_three_is_a_value_three_times():
    torch.manual_seed(1)
    values = torch.randn(50)
    times = torch.randint(0, 4, (50,))
    times[values.argmin()] = times[values.argmax()] = 1  # the start spans all values
    repeated = values.repeat_interleave(times)
    torch.testing.assert_close(kmeans(values, 6, times), kmeans(repeated, 6))


def test_equal_values_and_more_centroids_than_values():
    assert torch.equal(share(torch.full((3, 3), 2.5), 4).decode(), torch.full((3, 3), 2.5))
    matrix = torch.tensor([[1.0, 5.0], [9.0, 1.0]])
    torch.testing.assert_close(share(matrix, 9).decode(), matrix)


def test_many_values_go_through_a_histogram(monkeypatch):
    torch.manual_seed(2)
    matrix = torch.randn(200, 300)
    exact = share(matrix, 16)
    monkeypatch.setattr("zoomc.kernels.weights.sharing.MANY", 100)
    binned = share(matrix, 16)
    assert (exact.decode() - matrix).norm() * 1.001 > (binned.decode() - matrix).norm()
    points, mass = histogram(matrix, 1000)
    assert len(points) <= 1000 and mass.sum() == matrix.numel()
    torch.testing.assert_close((points * mass).sum(), matrix.double().sum())


def test_indices_widen_when_they_must():
    matrix = torch.randn(40, 40)
    assert share(matrix, 256).indices.dtype is torch.uint8
    wide = share(matrix, 1000)
    assert wide.indices.dtype is torch.int32
    assert wide.bits == 1000 * 32 + 1600 * 10


def test_importance_pulls_values_towards_what_matters():
    matrix = torch.linspace(-1, 1, 400).view(20, 20)
    importance = torch.where(matrix > 0.8, 1000.0, 1.0)
    near = (share(matrix, 8, importance).decode() - matrix)[matrix > 0.8].norm()
    assert near < (share(matrix, 8).decode() - matrix)[matrix > 0.8].norm() / 2
