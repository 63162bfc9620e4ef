"""What attention moves on a GPU, by the planner's count, and how long it is expected to take."""

from __future__ import annotations

import math

from ..tiling import layer as tiling
from ..tiling.attention import measure_attention
from ..tiling.memory import Memory, Words
from ..tiling.schedule import Counts
from ..triton.gpu import Gpu
from ..triton.tiles import LAUNCH, Roof, Traffic, slowest


def traffic(layer: tiling.Attention, words: Words, gpu: Gpu, bm: int, bn: int) -> Traffic:
    """Bytes moved in blocks of that size, by the planner's count; a mask is left out.

    Every program reads all keys and values of its head through L2; memory sees them once where a
    head's fit half of it, and otherwise once for the programs that run together.
    """

    def count(tq: int, tk: int) -> Counts:
        return measure_attention(layer, Memory(1, words), "queries", (tq, tk))

    # A program starts with nothing in shared memory even where one block holds every key.
    l2 = count(bm, min(bn, -(-layer.keys // 2))).total // 8
    together = min(layer.queries, bm * gpu.processors)
    whole = count(together, layer.keys)
    fits = sum(whole.footprint[:2]) <= gpu.l2 // 2 * 8
    return Traffic(l2, (whole if fits else count(together, bn)).total // 8)


def expected(
    gpu: Gpu, programs: int, steps: int, tensor: float, vector: float, moved: Traffic
) -> Roof:
    """Arithmetic, or what is moved, whichever takes longer.

    Args:
        gpu: where.
        programs: of the loop over keys.
        steps: blocks of keys.
        tensor: cycles of one step on the tensor cores, or in loads if those take longer.
        vector: cycles of one step in exponentials and whatever else is done to single numbers; of
            two programs on one multiprocessor, one does that while the other multiplies.
        moved: bytes.
    """
    cycles = 2000 + steps * (tensor + vector / 2 + 60)
    rounds = math.ceil(programs / (2 * gpu.processors))
    busy = min(1.0, programs / gpu.processors)
    return slowest(2 * rounds * cycles / gpu.clock, moved, gpu, busy, LAUNCH)
