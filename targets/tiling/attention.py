"""The best order and tiles of an attention; :mod:`zoomc.kernels.tiling.attention` counts them."""

from __future__ import annotations

from collections.abc import Iterator

from ...kernels.tiling.attention import ORDERS, measure_attention
from ...kernels.tiling.layer import Attention
from ...kernels.tiling.memory import Memory
from ...kernels.tiling.schedule import Counts
from ...kernels.tiling.tiles import sizes
from ..errors import CapacityError
from .bounds import lower_bound
from .plan import Plan, energy


def unfused(layer: Attention, memory: Memory) -> int:
    """Bits that travel when the scores and their softmax are written out and read back."""
    words = memory.words
    least = layer.heads * (
        (layer.queries * layer.head_dim + layer.keys * (layer.head_dim + layer.value_dim))
        * words.input
        + layer.queries * layer.value_dim * words.output
    )
    return least + 4 * layer.heads * layer.queries * layer.keys * words.output


def plan_attention(layer: Attention, memory: Memory, objective: str = "traffic") -> Plan:
    """The best order and tiles.

    Raises:
        CapacityError: not even one row of each fits.
    """
    best: tuple[float, str, tuple[int, int], Counts] | None = None
    for waits, tiles in _candidates(layer):
        counts = measure_attention(layer, memory, waits, tiles)
        if best is not None and counts.total > best[3].total and objective == "traffic":
            continue
        if not memory.fits(counts.footprint):
            continue
        price = _price(layer, memory, objective, counts)
        if best is None or price < best[0]:
            best = (price, waits, tiles, counts)
    if best is None:
        raise CapacityError(
            f"{layer.name}: one row of q, k and v with its sums does not fit a near memory of"
            f" {memory.capacity // 8:,} bytes"
        )
    _, waits, tiles, counts = best
    parts = energy(memory, counts, layer.macs, near_bits(layer, memory, counts))
    return Plan(layer, memory, waits, tiles, counts, parts, lower_bound(layer, memory))


def _candidates(layer: Attention) -> Iterator[tuple[str, tuple[int, int]]]:
    for waits in ORDERS:
        for tq in sizes(layer.queries):
            for tk in sizes(layer.keys):
                yield waits, (tq, tk)


def near_bits(layer: Attention, memory: Memory, counts: Counts) -> float:
    """Bits that the MAC array reads and writes: operands per pass, sums per step of its depth."""
    words, (across_in, across_out) = memory.words, memory.array
    scores = layer.heads * layer.queries * layer.keys
    q_trips = counts.trips[0]
    return (
        layer.macs / min(across_out, layer.keys) * words.input
        + 2 * scores * words.psum * (1 + layer.value_dim / min(across_in, layer.keys))
        + layer.heads * layer.keys * (layer.head_dim + layer.value_dim) * words.input * q_trips
    )


def _price(layer: Attention, memory: Memory, objective: str, counts: Counts) -> float:
    if objective == "traffic":
        return counts.total
    return sum(energy(memory, counts, layer.macs, near_bits(layer, memory, counts)).values())
