"""A plan as data: what was chosen, what it moves, what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...kernels.tiling.layer import Attention, Layer
from ...kernels.tiling.memory import Memory
from ...kernels.tiling.schedule import OPERANDS, Counts, Schedule, Tiles

_LOOPS = {"s": "n p q", "o": "o", "i": "i"}


@dataclass(frozen=True)
class Plan:
    """How one layer runs between two memories.

    Attributes:
        layer: its sizes.
        memory: what it was planned for.
        schedule: loop order and residency; of an attention, ``queries`` or ``keys``: what waits.
        tiles: tile sizes; of an attention, rows of q and rows of k and v.
        counts: bits per operand; an attention's ``weight`` is k and v.
        energy: picojoules per component: far, near, mac.
        bound: bits that no schedule of this layer alone can go below.
        exact: whether the search looked at every candidate that could have been better.
    """

    layer: Layer
    memory: Memory
    schedule: Schedule | str
    tiles: Tiles | tuple[int, int]
    counts: Counts
    energy: dict[str, float]
    bound: int
    exact: bool = True

    @property
    def bits(self) -> int:
        """Far-memory traffic in bits."""
        return self.counts.total

    @property
    def bytes(self) -> int:
        """Far-memory traffic in bytes."""
        return -(-self.counts.total // 8)

    @property
    def picojoules(self) -> float:
        """Energy of all components."""
        return sum(self.energy.values())

    @property
    def distance(self) -> float:
        """Traffic over the lower bound: 1 is perfect."""
        return self.counts.total / self.bound if self.bound else 1.0

    def operand_bytes(self) -> dict[str, int]:
        """Bytes of each operand, both ways."""
        return {
            name: -(-(read + write) // 8)
            for name, read, write in zip(
                OPERANDS, self.counts.reads, self.counts.writes, strict=True
            )
        }

    def loops(self) -> str:
        """The loops over tiles, outer to inner, with their sizes."""
        tiles = self.tiles
        if isinstance(self.schedule, str) or isinstance(tiles, tuple):
            return f"{self.schedule} wait, tiles {tiles}"
        nest = []
        if isinstance(self.layer, Attention) or self.layer.groups > 1:
            nest.append(f"g{tiles.g}")
        for dim in self.schedule.order:
            nest += [f"{loop}{getattr(tiles, loop)}" for loop in _LOOPS[dim].split()]
        kept = [
            f"{operand} {self.schedule.residency(operand)}"
            for operand in OPERANDS
            if self.schedule.residency(operand) != "tile"
        ]
        return " ".join(nest) + (f" ({', '.join(kept)})" if kept else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "layer": self.layer.name,
            "loops": self.loops(),
            "bytes": self.bytes,
            "operands": self.operand_bytes(),
            "near_bytes": -(-sum(self.counts.footprint) // 8),
            "bound_bytes": -(-self.bound // 8),
            "distance": self.distance,
            "energy_pj": dict(self.energy),
            "exact": self.exact,
        }

    def __str__(self) -> str:
        parts = ", ".join(f"{k} {v:,}" for k, v in self.operand_bytes().items())
        return (
            f"{self.layer.name}: {self.bytes:,} bytes ({parts}), {self.distance:.3f} × its bound,"
            f" {self.picojoules / 1e6:,.1f} µJ; {self.loops()}"
        )


def energy(memory: Memory, counts: Counts, macs: int, near_bits: float) -> dict[str, float]:
    """Picojoules per component, near memory's fills and drains included."""
    costs = memory.costs
    return {
        "far": sum(counts.reads) * costs.far_read + sum(counts.writes) * costs.far_write,
        "near": (counts.total + near_bits) * costs.near,
        "mac": macs * costs.mac,
    }
