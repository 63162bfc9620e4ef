"""Find the tiles, the order and the residency that move the least, or cost the least.

The search is exact because of how the cost is built (:mod:`.schedule`). Along each dimension only
the number of tiles enters the traffic, so for a number of tiles the smallest tile does; traffic
falls as tiles grow and space falls as they shrink, so the dimensions whose tile count multiplies
nothing (``Schedule.active``) take the smallest tile, and the last active one the largest that fits.
Whole bus words break that order: then every candidate of a small layer is counted, and of a large
one those whose plain traffic leaves room to be better, up to a limit; ``Plan.exact`` says which.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

from ...kernels.tiling.layer import Attention, Conv, Layer
from ...kernels.tiling.memory import Memory
from ...kernels.tiling.schedule import (
    IGNORES,
    OPERANDS,
    SCHEDULES,
    Counts,
    Schedule,
    Tiles,
    covered,
    every_tiling,
    measure,
)
from ...kernels.tiling.tiles import sizes, spatial_tiles
from ..errors import CapacityError
from .bounds import lower_bound
from .bus import aligned
from .plan import Plan, energy

#: Candidates of a layer that are all counted in bus words, and the most looked at otherwise.
SMALL, LIMIT = 20000, 48


def plan(
    layer: Layer,
    memory: Memory,
    objective: str = "traffic",
    schedules: Iterable[Schedule] = SCHEDULES,
    tiles: str = "free",
) -> Plan:
    """The best schedule of one layer.

    Args:
        layer: a convolution, a matmul or an attention.
        memory: what it runs between.
        objective: ``traffic`` (bits) or ``energy`` (picojoules).
        schedules: those allowed; fewer of them make a baseline.
        tiles: ``free``, or ``tied``: all three operands hold the tile of the same loops and
            nothing more, so that an operand stays only where its loops have one tile.

    Raises:
        CapacityError: not even the smallest tile fits.
    """
    if objective not in {"traffic", "energy"}:
        raise ValueError(f"objective {objective!r}: it must be 'traffic' or 'energy'")
    if isinstance(layer, Attention):
        from .attention import plan_attention

        return plan_attention(layer, memory, objective)
    nameless = dataclasses.replace(layer, name="")
    found = _search(nameless, memory, objective, tuple(schedules), tiles == "tied")
    if found is None:
        raise CapacityError(
            f"{layer.name}: no tile fits a near memory of {_bytes(memory)}; the smallest needs"
            f" {_least(layer, memory):,} bytes"
        )
    schedule, sizes, counts, exact = found
    return Plan(
        layer,
        memory,
        schedule,
        sizes,
        counts,
        energy(memory, counts, layer.macs, near_bits(layer, memory, counts)),
        lower_bound(layer, memory),
        exact,
    )


def near_bits(layer: Conv, memory: Memory, counts: Counts) -> float:
    """Bits that the MAC array reads from and writes to near memory."""
    words, (across_in, across_out) = memory.words, memory.array
    macs = layer.macs
    weights = layer.out_channels * layer.taps * words.near_weights(layer.depth)
    return (
        macs / min(across_out, layer.width) * words.input
        + 2 * macs / min(across_in, layer.depth) * words.psum
        + weights * counts.trips[0]
    )


def once(layer: Conv, memory: Memory) -> Counts:
    """Every operand once and one spatial tile: no schedule costs less."""
    words = memory.words
    inputs = (layer.input_elements + layer.extra_reads) * words.input
    weights = layer.out_channels * layer.taps * words.weights(layer.depth)
    outputs = layer.output_elements * words.output
    return Counts((0, 0, 0), (inputs, weights, 0), (0, 0, outputs), (1, 1, 1, 1))


def cost(layer: Conv, memory: Memory, objective: str, counts: Counts) -> float:
    """What the objective makes of a schedule's counts."""
    if objective == "traffic":
        return counts.total
    return sum(energy(memory, counts, layer.macs, near_bits(layer, memory, counts)).values())


def legal(layer: Conv, memory: Memory, tiles: Tiles) -> bool:
    """Whether channel tiles are whole or multiples of what hardware and encoding take at once."""
    deep, wide = granules(layer, memory)
    return (tiles.i == layer.depth or tiles.i % deep == 0) and (
        tiles.o == layer.width or tiles.o % wide == 0
    )


def granules(layer: Conv, memory: Memory) -> tuple[int, int]:
    """Least tiles of input and output channels; channels that share a scale stay together."""
    deep, wide = memory.granule
    if memory.words.scale:
        deep = math.lcm(deep, memory.words.group)
    return min(deep, layer.depth), min(wide, layer.width)


@lru_cache(maxsize=4096)
def _search(
    layer: Conv, memory: Memory, objective: str, schedules: tuple[Schedule, ...], tied: bool
) -> tuple[Schedule, Tiles, Counts, bool] | None:
    """The best candidate, with its counts and whether nothing better was left unseen."""
    floor, bound = cost(layer, memory, objective, once(layer, memory)), math.inf
    first: tuple[int, Tiles] | None = None
    for index, schedule in enumerate(schedules):
        for price, tiles in candidates(layer, memory, objective, schedule, tied):
            if price < bound:
                bound, first = price, (index, tiles)
        if bound <= floor:
            break
    if first is None:
        return None
    if not memory.bus:
        schedule, tiles = schedules[first[0]], first[1]
        return schedule, tiles, measure(layer, memory, schedule, tiles), True
    return _in_bus_words(layer, memory, objective, schedules, tied, bound)


def _in_bus_words(
    layer: Conv,
    memory: Memory,
    objective: str,
    schedules: tuple[Schedule, ...],
    tied: bool,
    bound: float,
) -> tuple[Schedule, Tiles, Counts, bool] | None:
    """The best candidate where whole bus words count; none costs less than ``bound``."""
    least = math.inf
    chosen: tuple[Schedule, Tiles, Counts] | None = None
    choices = _everything(layer, memory, schedules, tied)
    small = choices is not None
    for price, index, tiles in choices or _likely(layer, memory, objective, schedules, tied):
        if price >= least:
            continue
        counts = measure(layer, memory, schedules[index], tiles)
        if not memory.fits(counts.footprint):
            continue
        counts = aligned(layer, memory, schedules[index], tiles, counts)
        price = cost(layer, memory, objective, counts)
        if price < least:
            least, chosen = price, (schedules[index], tiles, counts)
        if least <= bound:
            break
    return (*chosen, small or least <= bound) if chosen else None


def _everything(
    layer: Conv, memory: Memory, schedules: tuple[Schedule, ...], tied: bool
) -> list[tuple[float, int, Tiles]] | None:
    """Every tiling under every schedule, where there are few enough; prices left at zero."""
    count = layer.positions * layer.groups * layer.width * layer.depth * len(schedules)
    if count > SMALL or tied:
        return None
    return [
        (0.0, index, tiles)
        for tiles in every_tiling(layer)
        if legal(layer, memory, tiles)
        for index in range(len(schedules))
    ]


def _likely(
    layer: Conv, memory: Memory, objective: str, schedules: tuple[Schedule, ...], tied: bool
) -> Iterator[tuple[float, int, Tiles]]:
    """Candidates of a large layer, most likely first.

    First, for each schedule, the best whose channel runs end on bus words; then the cheapest of
    those, of tiles of whole rows, and of tiles of any size.
    """
    words, bus = memory.words, memory.bus
    deep, wide = granules(layer, memory)
    deep = math.lcm(deep, bus // math.gcd(bus, words.input))
    wide = math.lcm(wide, bus // math.gcd(bus, words.output))
    coarse = dataclasses.replace(memory, granule=(deep, wide))
    together = {1, min(layer.groups, max(deep, wide)), layer.groups}
    rest: list[tuple[float, int, Tiles]] = []
    for index, schedule in enumerate(schedules):
        found = [
            (price, index, tiles)
            for groups in sorted(together)
            for price, tiles in candidates(layer, coarse, objective, schedule, tied, groups)
        ]
        if found:
            yield min(found, key=lambda c: c[0])
        rest += found
    for index, schedule in enumerate(schedules):
        for machine, lines in ((coarse, True), (memory, False)):
            rest += [
                (price, index, tiles)
                for price, tiles in candidates(
                    layer, machine, objective, schedule, tied, lines=lines
                )
            ]
    yield from sorted(rest, key=lambda c: c[0])[:LIMIT]


def candidates(
    layer: Conv,
    memory: Memory,
    objective: str,
    schedule: Schedule,
    tied: bool = False,
    groups: int = 1,
    lines: bool = False,
) -> Iterator[tuple[float, Tiles]]:
    """For every spatial tile worth a look, the best channel tiles that fit, with their price.

    Args:
        layer: the layer.
        memory: what it is planned for; bus words are not counted here.
        objective: see :func:`plan`.
        schedule: order and residency.
        tied: see ``tiles`` of :func:`plan`.
        groups: groups in a tile.
        lines: look at tiles of whole rows, too, even where others beat them on space.
    """
    words, order, active = memory.words, schedule.order, schedule.active()
    deep, wide = granules(layer, memory)
    cover = {operand: covered(schedule, operand) for operand in OPERANDS}
    full = set()
    if tied:
        full = (set(order[2]) if schedule.inner else set()) | (
            set(order[1:]) if schedule.whole else set()
        )

    def channel_tiles(dim: str, size: int, granule: int) -> tuple[int, ...]:
        if dim in full:
            return (size,)
        if dim in active:
            return sizes(size, granule)
        # Held once as a whole, a dimension may take less than its smallest tile held twice.
        return (size, granule) if memory.double_buffered else (granule,)

    o_tiles = channel_tiles("o", layer.width, wide)
    i_tiles = channel_tiles("i", layer.depth, deep)
    spatial = spatial_tiles(layer.batch, layer.rows, layer.columns, lines)
    if "s" in full:
        spatial = tuple(s for s in spatial if s[0] == 1)

    # Everything that does not change from candidate to candidate.
    costs = memory.costs
    read, write, near = (1.0, 1.0, 0.0) if objective == "traffic" else (
        costs.far_read + costs.near, costs.far_write + costs.near, costs.near,
    )  # fmt: skip
    distinct = layer.batch * layer.rows.distinct * layer.columns.distinct
    input_price = layer.in_channels * words.input * read
    weight_bits = layer.out_channels * layer.taps * words.weights(layer.depth)
    weight_near = layer.out_channels * layer.taps * words.near_weights(layer.depth) * near
    spill_price = layer.positions * layer.out_channels * words.psum * (read + write)
    always = layer.output_elements * words.output * write + layer.extra_reads * words.input * read
    if near:
        always += near_bits(layer, memory, once(layer, memory)) * near + layer.macs * costs.mac
    more_groups = groups < layer.groups
    twice = memory.double_buffered
    shared = memory.near if isinstance(memory.near, int) else 0
    near_in, near_w, near_out = memory.near if isinstance(memory.near, tuple) else (0, 0, 0)
    whole_input, whole_weight, whole_output = (
        schedule.residency(operand) == "whole" for operand in OPERANDS
    )

    def again(operand: str, tiles: dict[str, int]) -> int:
        ignored = IGNORES[operand]
        if cover[operand]:
            return 1
        inside = order[order.index(ignored) + 1 :]
        return tiles[ignored] if any(tiles[d] > 1 for d in inside) else 1

    for a, fi, fo, fetched, n, p, q in spatial:
        input_held = (distinct if "s" in cover["input"] else fi) * groups * words.input
        output_held = (layer.positions if "s" in cover["output"] else fo) * groups * words.psum
        input_fetch = distinct if "s" in cover["input"] else fetched
        for o in o_tiles:
            b = -(-layer.width // o)
            weight_held = (layer.width if "o" in cover["weight"] else o) * layer.taps * groups
            for i in i_tiles:
                c = -(-layer.depth // i)
                out = output_held * (layer.width if "o" in cover["output"] else o)
                inp = input_held * (layer.depth if "i" in cover["input"] else i)
                wgt = weight_held * words.near_weights(layer.depth if "i" in cover["weight"] else i)
                trips = {"s": a, "o": b, "i": c}
                m_in, m_w, m_out = (again(operand, trips) for operand in OPERANDS)
                if twice:
                    s_in = a if "s" not in cover["input"] else 1
                    i_in = c if "i" not in cover["input"] else 1
                    inp *= 1 + (more_groups or (not whole_input and s_in * i_in * m_in > 1))
                    o_w = b if "o" not in cover["weight"] else 1
                    i_w = c if "i" not in cover["weight"] else 1
                    wgt *= 1 + (more_groups or (not whole_weight and o_w * i_w * m_w > 1))
                    s_out = a if "s" not in cover["output"] else 1
                    o_out = b if "o" not in cover["output"] else 1
                    out *= 1 + (more_groups or (not whole_output and s_out * o_out * m_out > 1))
                if (
                    inp + wgt + out > shared
                    if shared
                    else (inp > near_in or wgt > near_w or out > near_out)
                ):
                    continue
                yield (
                    always
                    + input_fetch * input_price * m_in
                    + weight_bits * read * m_w
                    + spill_price * (m_out - 1)
                    + weight_near * (a - 1),
                    Tiles(n, p, q, groups, o, i),
                )
                break  # a smaller tile of input channels moves no less
            else:
                continue
            if "i" not in active:
                break  # nor does a smaller tile of output channels


def _least(layer: Conv, memory: Memory) -> int:
    """Bytes that the smallest tile needs."""
    deep, wide = granules(layer, memory)
    least = min(
        sum(measure(layer, memory, s, Tiles(1, 1, 1, 1, wide, deep)).footprint) for s in SCHEDULES
    )
    return -(-least // 8)


def _bytes(memory: Memory) -> str:
    """The capacity for a message."""
    if isinstance(memory.near, tuple):
        return " + ".join(f"{bits // 8:,}" for bits in memory.near) + " bytes"
    return f"{memory.near // 8:,} bytes"
