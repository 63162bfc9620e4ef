"""Which steps of K the panels of a weight pruned by blocks hold, and such panels of floats.

A step is 64 input channels at one tap. All panels hold equally many, so that a kernel knows where
each begins; which they are, a constant beside them says, as places in A.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch.nn import functional as F

from ..integer import GROUP
from ..weights.pruning import PruningError
from .gemm import Depth
from .kernel import Call, Operand, Pack, TensorSpec, Value
from .layout import Layout
from .micro import Micro
from .pack import ordered, panel_count, panels, round_up


def steps_of(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """``(N, C, ...)`` as ``(N, blocks, taps, channels)``: blocks outermost, C padded with zeros."""
    taps = weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]
    padded = F.pad(taps, (0, 0, 0, round_up(taps.shape[1], channels) - taps.shape[1]))
    return padded.unflatten(1, (-1, channels)).transpose(2, 3)


def kept(live: torch.Tensor, micro: Micro, gated: bool, steps: int) -> torch.Tensor:
    """The numbers of the steps each panel holds, ascending: ``(panels, steps)``.

    Args:
        live: bool ``(N, C, ...)``: where the weight is not zero.
        micro: who reads the panels.
        gated: as for :func:`.pack.panels`.
        steps: how many a panel holds; some may be zero.

    Raises:
        PruningError: a panel needs more.
    """
    columns = steps_of(live, GROUP).any(dim=3).flatten(1)
    full = ordered(columns, micro.columns, gated)
    used = full.unflatten(0, (-1, micro.columns)).any(dim=1)
    if int(used.sum(dim=1).max()) > steps:
        raise PruningError(
            f"a weight of shape {tuple(live.shape)} has more than kept_steps={steps}"
            " steps that are not zero: prune it by blocks first"
        )
    order = used.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, :steps].sort(dim=1).values


@dataclass(frozen=True)
class Kept:
    """What the panels of a weight in floats hold, where kernels may skip the rest.

    Attributes:
        blocks: of 64 input channels, the last padded.
        taps: of the kernel.
        steps: of all blocks at all taps, how many a panel holds.
    """

    blocks: int
    taps: int
    steps: int

    @classmethod
    def of(cls, call: Call) -> Kept | None:
        """Of the weight ``(N, C, ...)`` of a call; None where panels hold all of it."""
        weight, steps = call["weight"], call["kept_steps"]
        _, channels, *taps = weight.spec.shape
        blocks = -(-channels // GROUP)
        if not weight.constant or not 0 < steps < blocks * prod(taps):
            return None
        return cls(blocks, prod(taps), steps)

    @property
    def channels(self) -> int:
        """Input channels with their padding."""
        return self.blocks * GROUP

    @property
    def depth(self) -> Depth:
        """K as a product runs through it."""
        return Depth(1, self.steps * GROUP, lambda run: 0, listed=self.taps)

    def part(self, flops: int) -> int:
        """Of the arithmetic of a whole weight what is done."""
        return flops * self.steps // (self.blocks * self.taps)

    def operand(self, weight: Value, micro: Micro, gated: bool = False) -> Operand:
        """The packed panels of a constant."""
        count = panel_count(weight.spec.shape[0], micro, gated)

        def write(out: torch.Tensor, weight: torch.Tensor) -> None:
            found = kept(weight != 0, micro, gated, self.steps)
            size = GROUP * micro.columns
            dense = torch.empty(count, self.taps * self.blocks, size, dtype=micro.panel)
            panels(dense, weight, micro, self.channels, gated)
            # Steps are numbered taps innermost, and lie blocks innermost.
            where = found % self.taps * self.blocks + found // self.taps
            for panel, source, chosen in zip(out.view(count, -1, size), dense, where, strict=True):
                torch.index_select(source, 0, chosen, out=panel)

        packed = (count, self.steps * GROUP // micro.kpack, micro.columns * micro.kpack)
        key = ("kept", micro.columns, micro.kpack, gated, micro.panel, self.steps)
        return Operand((weight,), Pack(key, write, TensorSpec(packed, micro.panel)))

    def offsets(
        self,
        weight: Value,
        micro: Micro,
        layout: Layout,
        taps: tuple[int, ...],
        gated: bool = False,
    ) -> Operand:
        """Where in A every panel's steps begin: int32 elements, one for ``micro.kstep`` values.

        ``taps`` are rows of A from the one an output stands at.
        """
        each = GROUP // micro.kstep
        places = [
            [tap * layout.row + (block * each + i) * layout.step for i in range(each)]
            for block in range(self.blocks)
            for tap in taps
        ]

        def fn(weight: torch.Tensor) -> torch.Tensor:
            found = kept(weight != 0, micro, gated, self.steps)
            return torch.tensor(places, dtype=torch.int32)[found].flatten()

        count = panel_count(weight.spec.shape[0], micro, gated)
        spec = TensorSpec((count * self.steps * each,), torch.int32)
        key = ("kept offsets", micro.columns, gated, self.steps, tuple(map(tuple, places)))
        return Operand((weight,), Pack.of(key, fn, spec))
