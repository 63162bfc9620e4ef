"""How little a layer can move: lower bounds on far-memory traffic.

Sources: for matmul, Kwasniewski et al., *Red-Blue Pebbling Revisited* (COSMA, SC 2019):
``Q ≥ 2mnk/√S + mn``. For convolution, the same argument with each input used by R = taps/stride²
outputs, less the ``2S`` that may be resident at the start and the end; derived, not proven here.
Words of different sizes enter as their geometric mean, which is the same optimum of the tile's
sides. Both bound one layer by itself: fused layers may go below their sum.
"""

from __future__ import annotations

from math import sqrt

from ...kernels.tiling.layer import Attention, Layer
from ...kernels.tiling.memory import Memory, Words


def compulsory(layer: Layer, words: Words) -> int:
    """Bits that travel even with endless near memory: every operand once."""
    if isinstance(layer, Attention):
        q = layer.queries * layer.head_dim
        kv = layer.keys * (layer.head_dim + layer.value_dim)
        out = layer.queries * layer.value_dim
        return layer.heads * ((q + kv) * words.input + out * words.output)
    return (
        (layer.input_elements + layer.extra_reads) * words.input
        + layer.out_channels * layer.taps * words.weights(layer.depth)
        + layer.output_elements * words.output
    )


def lower_bound(layer: Layer, memory: Memory) -> int:
    """Bits below which no schedule of this layer by itself can go."""
    words, near = memory.words, memory.capacity
    least = compulsory(layer, words)
    if isinstance(layer, Attention):
        return least  # its intermediate product never travels; nothing sharper is known to us
    macs = layer.macs / layer.groups
    side = sqrt(words.input * words.weight * min(words.psum, words.output))
    if layer.kind == "matmul":
        m, n, k = layer.positions, layer.width, layer.depth
        smallest = min(m * n * words.output, m * k * words.input, n * k * words.weight)
        if near < smallest:
            moved = 2 * macs * side / sqrt(near) + m * n * words.output
            least = max(least, int(layer.groups * moved))
    reuse = max(1.0, layer.taps / (layer.rows.stride * layer.columns.stride))
    moved = 2 * macs * side / sqrt(reuse * near) - 2 * near
    return max(least, int(layer.groups * moved))
