"""Plans across layers: neighbours fused through near memory, so that maps between stay there.

A group of consecutive layers runs part by part: its last output is cut into ``parts`` runs of
rows, and for each part every layer computes the rows that the next one needs of it, halo rows
anew. The constraint between neighbours is that all layers of a group share one split; where they
cannot, the map is written back and a new group begins. In a group

- the first input is read once, halo rows of neighbouring parts again;
- the map between two layers stays in near memory, finished and narrow; it is also written where a
  layer after the group still needs it;
- weights pass once a part, or once in all where they stay;
- the last output is written once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...kernels.tiling.layer import Attention, Conv, Layer
from ...kernels.tiling.memory import Memory
from .plan import Plan
from .search import granules, plan

#: Layers in a group, at most.
LONGEST = 10


@dataclass(frozen=True)
class Step:
    """A layer in its place in a network.

    Attributes:
        layer: its sizes.
        follows: its input is what the step before it computes, and nothing else.
        whole: it needs all of that before it can begin: a group norm, keys and values.
        kept: a later step that is not the next one reads its output, too.
    """

    layer: Layer
    follows: bool = False
    whole: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Group:
    """Consecutive steps that run together.

    Attributes:
        steps: the layers.
        parts: runs of rows the last output is cut into.
        bits: far-memory traffic: input, weight, output.
        near: bits of near memory in use at most.
        stays: names of the layers whose weights stay for all parts.
        macs: multiply-accumulates, computed anew ones included.
        plan: the layer's own plan, where the group is one layer.
    """

    steps: tuple[Step, ...]
    parts: int
    bits: tuple[int, int, int]
    near: int
    stays: tuple[str, ...]
    macs: int
    plan: Plan | None = None

    @property
    def total(self) -> int:
        """All bits that travel."""
        return sum(self.bits)


@dataclass(frozen=True)
class NetworkPlan:
    """A network's groups, beside the sum of its layers planned alone."""

    groups: tuple[Group, ...]
    alone: int
    bound: int

    @property
    def bits(self) -> int:
        """Far-memory traffic in bits."""
        return sum(group.total for group in self.groups)

    @property
    def saving(self) -> float:
        """How far below the per-layer sum, as a share of it."""
        return 1 - self.bits / self.alone

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "bytes": -(-self.bits // 8),
            "alone_bytes": -(-self.alone // 8),
            "bound_bytes": -(-self.bound // 8),
            "saving": self.saving,
            "groups": [
                {
                    "layers": [step.layer.name for step in group.steps],
                    "parts": group.parts,
                    "bytes": -(-group.total // 8),
                    "near_bytes": -(-group.near // 8),
                    "stays": list(group.stays),
                }
                for group in self.groups
            ],
        }

    def __str__(self) -> str:
        return (
            f"{self.bits // 8:,} bytes in {len(self.groups)} groups, {self.saving:.1%} below the"
            f" {self.alone // 8:,} of its layers alone, whose bound is {self.bound // 8:,}"
        )


def plan_network(steps: Sequence[Step], memory: Memory, longest: int = LONGEST) -> NetworkPlan:
    """The cheapest way to cut a network into groups.

    Args:
        steps: the network, in order.
        memory: what it runs between. Bus words are not counted inside groups.
        longest: layers in a group at most; 1 fuses nothing.

    Raises:
        CapacityError: a layer does not fit even alone.
    """
    alone = [_alone(step, memory) for step in steps]
    best: list[tuple[int, tuple[Group, ...]]] = [(0, ())]
    for end in range(1, len(steps) + 1):
        total, groups = best[end - 1]
        choice = (total + alone[end - 1].total, (*groups, alone[end - 1]))
        for start in range(end - 2, max(-1, end - longest - 1), -1):
            if not steps[start + 1].follows:
                break
            group = fuse(steps[start:end], memory)
            if group and best[start][0] + group.total < choice[0]:
                choice = (best[start][0] + group.total, (*best[start][1], group))
        best.append(choice)
    plans = [group.plan for group in alone]
    return NetworkPlan(
        best[-1][1],
        sum(group.total for group in alone),
        sum(p.bound for p in plans if p is not None),
    )


def _alone(step: Step, memory: Memory) -> Group:
    found = plan(step.layer, memory)
    reads, writes = found.counts.reads, found.counts.writes
    return Group(
        (step,),
        1,
        (reads[0], reads[1], reads[2] + writes[2]),
        sum(found.counts.footprint),
        (),
        step.layer.macs,
        found,
    )


def fuse(steps: Sequence[Step], memory: Memory) -> Group | None:
    """The cheapest way to run some steps as one group; None if they cannot or do not fit."""
    if isinstance(memory.near, tuple):
        return None  # buffers of their own cannot hand a map from output to input
    whole = any(step.whole for step in steps[1:]) or not _same_rows(steps)
    rows = out_rows(steps[-1].layer)
    best: Group | None = None
    for parts in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        if parts > 1 and (whole or parts > rows):
            break
        group = _in_parts(steps, memory, parts)
        if group and (best is None or group.total < best.total):
            best = group
    return best


def _same_rows(steps: Sequence[Step]) -> bool:
    """Whether each step's input rows are the rows that the step before it computes."""
    return all(out_rows(a.layer) == in_rows(b.layer) for a, b in itertools.pairwise(steps))


def _in_parts(steps: Sequence[Step], memory: Memory, parts: int) -> Group | None:
    """A group in so many parts, holding whatever weights fit."""
    words = memory.words
    assert isinstance(memory.near, int)
    layers = [step.layer for step in steps]
    most, fetched, macs = _part_rows(layers, parts)
    needs = []
    for k, layer in enumerate(layers):
        source = in_bits(layer, most[k], words.input, k > 0)
        if k == 0:
            source = _first_source(layer, memory, source)
        rows = most[k + 1] if parts > 1 else out_rows(layer)
        result = out_bits(layer, rows, words.input) if k + 1 < len(layers) else 0
        needs.append(source + result + work_bits(layer, memory, first=k == 0))
    room = memory.near - max(needs)
    if room < 0:
        return None
    weights = [weight_bits(layer, memory, first=k == 0) for k, layer in enumerate(layers)]
    stays: set[int] = set()
    if parts > 1:
        for k in sorted(range(len(layers)), key=lambda k: weights[k]):
            if weights[k] <= room:
                room -= weights[k]
                stays.add(k)
    passes = [1 if k in stays else parts for k in range(len(layers))]
    reads = in_bits(layers[0], fetched, words.input)
    reads += sum(extra(layer) for layer in layers) * words.input
    writes = sum(
        out_bits(step.layer, out_rows(step.layer), words.output)
        for k, step in enumerate(steps)
        if step.kept or k == len(steps) - 1
    )
    return Group(
        tuple(steps),
        parts,
        (reads, sum(w * n for w, n in zip(weights, passes, strict=True)), writes),
        memory.near - room,
        tuple(layers[k].name for k in sorted(stays)),
        macs,
    )


def _first_source(layer: Layer, memory: Memory, source: int) -> int:
    """Bits that the first input takes: the part, or a tile of it where all weights stay instead."""
    if isinstance(layer, Attention):
        return 0  # q streams head by head, see work_bits
    rows = layer.rows.span if layer.kind == "conv" else min(64, layer.rows.size)
    tile = in_bits(layer, rows, memory.words.input)
    return min(source, tile + weight_bits(layer, memory, first=True))


def _part_rows(layers: Sequence[Layer], parts: int) -> tuple[list[int], int, int]:
    """Rows of each layer's input in the largest part, rows of the first input read, and MACs.

    The list has one entry more: the rows of the last output.
    """
    last = out_rows(layers[-1])
    if parts == 1:
        most = [*map(in_rows, layers), last]
        return most, most[0], sum(layer.macs for layer in layers)
    size = -(-last // parts)
    most, fetched, macs = [0] * len(layers), 0, 0
    for start in range(0, last, size):
        low, high = start, min(start + size, last)
        for k in range(len(layers) - 1, -1, -1):
            layer = layers[k]
            macs += layer.macs * (high - low) // out_rows(layer)
            if isinstance(layer, Conv):
                axis = layer.rows
                low = max(0, low * axis.stride - axis.padding[0])
                high = min(axis.size, (high - 1) * axis.stride - axis.padding[0] + axis.span)
            most[k] = max(most[k], high - low)
        fetched += high - low
    return [*most, size], fetched, macs


def in_rows(layer: Layer) -> int:
    """Rows of a layer's input."""
    return layer.queries if isinstance(layer, Attention) else layer.rows.size


def out_rows(layer: Layer) -> int:
    """Rows of a layer's output."""
    return layer.queries if isinstance(layer, Attention) else layer.rows.outputs


def in_bits(layer: Layer, rows: int, word: int, inside: bool = False) -> int:
    """Bits of so many input rows; ``inside`` a group, an attention's k and v come with them."""
    if isinstance(layer, Attention):
        bits = rows * layer.heads * layer.head_dim * word
        return bits + (_keys_values(layer) * word if inside and layer.keys == layer.queries else 0)
    return layer.batch * rows * layer.columns.size * layer.in_channels * word


def out_bits(layer: Layer, rows: int, word: int) -> int:
    """Bits of so many output rows."""
    if isinstance(layer, Attention):
        return rows * layer.heads * layer.value_dim * word
    return layer.output_elements // layer.rows.outputs * rows * word


def weight_bits(layer: Layer, memory: Memory, first: bool) -> int:
    """Bits that pass for every part: weights, or keys and values that are not the input's."""
    if isinstance(layer, Attention):
        inside = not first and layer.keys == layer.queries
        return 0 if inside else _keys_values(layer) * memory.words.input
    return layer.out_channels * layer.taps * memory.words.weights(layer.depth)


def _keys_values(layer: Attention) -> int:
    return layer.heads * layer.keys * (layer.head_dim + layer.value_dim)


def work_bits(layer: Layer, memory: Memory, first: bool) -> int:
    """Bits a layer works in beside its maps.

    A convolution or matmul holds two tiles of weights and one of partial sums; an attention, whose
    heads come one after the other, sums and scores of one row, k and v of two heads unless they lie
    in its input, and as the first of a group a tile of q.
    """
    words = memory.words
    if isinstance(layer, Attention):
        row = (layer.value_dim + 2 + layer.keys) * words.psum
        head = weight_bits(layer, memory, first) // layer.heads
        return row + 2 * head + (2 * layer.head_dim * words.input if first else 0)
    _, wide = granules(layer, memory)
    weights = wide * layer.taps * words.near_weights(layer.depth)
    columns = layer.columns.outputs if layer.kind == "conv" else min(64, layer.rows.outputs)
    return 2 * weights + columns * wide * words.psum


def extra(layer: Layer) -> int:
    """Further elements read once."""
    return 0 if isinstance(layer, Attention) else layer.extra_reads


__all__ = ["Group", "NetworkPlan", "Step", "fuse", "plan_network"]
