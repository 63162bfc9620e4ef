"""Attention between two memories: both products and the softmax without a trip of the scores.

Per head, with rows of q in tiles of ``tq`` and rows of k and v in tiles of ``tk``, near memory
holds a tile of q, of k and v, of the scores, and of the sums with their running maximum and total.

- ``queries`` wait: q and the sums stay while k and v pass, which are read once a tile of q.
- ``keys`` wait: k and v stay while all of q passes; q is read, and the sums are written and read
  back, once a tile of k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...kernels.tiling.layer import Attention
from ...kernels.tiling.memory import Memory
from ...kernels.tiling.schedule import Counts
from ...kernels.tiling.tiles import sizes
from ..errors import CapacityError
from .bounds import lower_bound
from .plan import Plan, energy

ORDERS = ("queries", "keys")


def measure_attention(
    layer: Attention, memory: Memory, waits: str, tiles: tuple[int, int]
) -> Counts:
    """Count one order and one pair of tiles; of every triple, ``weight`` is k and v."""
    words = memory.words
    tq, tk = tiles
    q_trips, k_trips = -(-layer.queries // tq), -(-layer.keys // tk)
    sums = layer.value_dim + 2  # of a row: the output, its maximum and its total
    held_q = tq * layer.head_dim * words.input
    held_kv = tk * (layer.head_dim + layer.value_dim) * words.input
    held_out = tq * (sums + tk) * words.psum
    # A buffer that is filled more than once is held twice; the scores never leave and are not.
    if memory.double_buffered:
        refilled_q = layer.heads * q_trips * (k_trips if waits == "keys" else 1) > 1
        refilled_kv = layer.heads * k_trips * (q_trips if waits == "queries" else 1) > 1
        held_q *= 2 if refilled_q else 1
        held_kv *= 2 if refilled_kv else 1
        held_out += tq * sums * words.psum if refilled_q else 0
    q_passes = k_trips if waits == "keys" and q_trips > 1 else 1
    kv_passes = q_trips if waits == "queries" and k_trips > 1 else 1
    q = layer.heads * layer.queries * layer.head_dim * words.input
    kv = layer.heads * layer.keys * (layer.head_dim + layer.value_dim) * words.input
    out = layer.heads * layer.queries * layer.value_dim * words.output
    spilled = layer.heads * layer.queries * sums * words.psum * (q_passes - 1)
    return Counts(
        (held_q, held_kv, held_out),
        (_aligned(q, memory) * q_passes, _aligned(kv, memory) * kv_passes, spilled),
        (0, 0, _aligned(out, memory) + spilled),
        (q_trips, 1, k_trips, layer.heads),
    )


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


def _aligned(bits: int, memory: Memory) -> int:
    """Bits in whole bus words: rows of q, k, v and the result lie one after the other."""
    return math.ceil(bits / memory.bus) * memory.bus if memory.bus else bits
