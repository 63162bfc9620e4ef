"""What an attention's schedule moves: the exact count for one order and one pair of tiles.

Per head, with rows of q in tiles of ``tq`` and rows of k and v in tiles of ``tk``, near memory
holds a tile of q, of k and v, of the scores, and of the sums with their running maximum and total.

- ``queries`` wait: q and the sums stay while k and v pass, which are read once a tile of q.
- ``keys`` wait: k and v stay while all of q passes; q is read, and the sums are written and read
  back, once a tile of k.
"""

from __future__ import annotations

import math

from .layer import Attention
from .memory import Memory
from .schedule import Counts

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


def _aligned(bits: int, memory: Memory) -> int:
    """Bits in whole bus words: rows of q, k, v and the result lie one after the other."""
    return math.ceil(bits / memory.bus) * memory.bus if memory.bus else bits
