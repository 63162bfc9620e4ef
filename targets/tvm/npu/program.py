"""From a plan to commands: one layer's tiles through the scratchpad, double-buffered."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from ....kernels.tiling.schedule import IGNORES, OPERANDS, covered, loads, trips_of
from ...dram import align, layout
from ...errors import CapacityError
from ...tiling import SCHEDULES, Conv, Plan, Schedule, Tiles, Words, plan
from ...tiling.bus import pieces
from .commands import (
    ACTIVATION_CODES,
    Barrier,
    Command,
    DmaIn,
    DmaOut,
    Epilogue,
    Frequency,
    Product,
    Table,
)
from .machine import Machine

#: Schedules that finish a sum before it leaves: the machine's sums never travel.
FINISHING = tuple(
    s for s in SCHEDULES if s.order[2] == "i" or s.residency("output") in {"inner", "whole"}
)

#: Bytes of the decoder's table.
TABLE = 256

#: Every buffer begins at a multiple of so many bytes; at most so many buffers.
WORD, SLOTS = 8, 6


@dataclass(frozen=True)
class Job:
    """A convolution or linear of coded weights, as far as the machine needs to know.

    Attributes:
        layer: its sizes; a linear is a matmul of one column. ``gated`` for geglu, whose value and
            gate channels then lie in turn.
        bits: of a weight code, 4 or 8.
        group: input channels that share an integer scale; 0 = none.
        entries: of the table that codes index; 0 = codes are values.
        bias: whether there is one.
        shift: whether every image has a shift per channel.
        residual: whether something is added last.
        per_row: whether every row has a scale of its own; else every image, and a zero.
        activation: of :data:`ACTIVATION_CODES`.
        half: whether results are bf16; else fp32.
    """

    layer: Conv
    bits: int = 4
    group: int = 64
    entries: int = 16
    bias: bool = True
    shift: bool = False
    residual: bool = False
    per_row: bool = False
    activation: str = "none"
    half: bool = False

    @property
    def result_bytes(self) -> int:
        """Of one result."""
        return 2 if self.half else 4

    @property
    def scales(self) -> int:
        """Activation scales."""
        return self.layer.rows.outputs if self.per_row else self.layer.batch

    @property
    def words(self) -> Words:
        """The planner's words: sums have room beside them for the residual."""
        result = 8 * self.result_bytes
        return Words(
            input=8,
            weight=self.bits,
            output=result,
            psum=32 + (result if self.residual else 0),
            scale=8 if self.group else 0,
            group=self.group or 64,
        )

    def constants(self) -> dict[str, tuple[int, int]]:
        """``(first byte, bytes)`` of each part of the constants, which stay in the scratchpad."""
        channels = self.layer.out_channels
        sizes = {
            "table": TABLE if self.entries else 0,
            "column": 4 * channels,
            "bias": 4 * channels if self.bias else 0,
            "row": 4 * self.scales,
            "zero": 0 if self.per_row else 4 * self.layer.batch,
            "shift": 4 * channels * self.layer.batch if self.shift else 0,
        }
        starts = itertools.accumulate(sizes.values(), initial=0)
        return {name: (start, sizes[name]) for name, start in zip(sizes, starts, strict=False)}

    @property
    def constant_bytes(self) -> int:
        """All of them."""
        return sum(size for _, size in self.constants().values())

    def planned(self) -> Conv:
        """The layer with everything that travels: constants, and the residual."""
        extra = self.constant_bytes
        if self.residual:
            extra += self.layer.output_elements * self.result_bytes
        return dataclasses.replace(self.layer, extra_reads=extra)


@dataclass(frozen=True)
class Program:
    """A layer's commands and where its tensors lie in far memory.

    Attributes:
        job: what it computes.
        machine: what it runs on.
        plan: what it follows.
        commands: in order.
        far: first byte of ``input``, ``weight``, ``constants``, ``residual``, ``output``.
        far_bytes: bytes of far memory in all.
        blocks: ``(o, i)`` of first channels and counts of each weight tile, as the weights lie.
        near_bytes: bytes of the scratchpad in use.
    """

    job: Job
    machine: Machine
    plan: Plan
    commands: tuple[Command, ...]
    far: dict[str, int]
    far_bytes: int
    blocks: tuple[tuple[int, int, int, int], ...]
    near_bytes: int


def generate(job: Job, machine: Machine, level: int | None = None) -> Program:
    """Plan a job and write its commands; nothing runs that does not fit.

    Args:
        job: what to compute.
        machine: what to run it on.
        level: index of the clock level to set first; None leaves it.

    Raises:
        CapacityError: its constants, or even its smallest tile, do not fit the scratchpad.
    """
    reserved = align(job.constant_bytes, WORD) + SLOTS * WORD
    if reserved >= machine.scratchpad.size:
        raise CapacityError(
            f"{job.layer.name}: {reserved:,} bytes of constants do not fit a scratchpad of"
            f" {machine.scratchpad.size:,}"
        )
    found = plan(job.planned(), machine.memory(job.words, reserved), schedules=FINISHING)
    return _Writer(job, machine, found).program(level)


class _Writer:
    """Walks a plan's loops and writes a command wherever something must move or be computed."""

    def __init__(self, job: Job, machine: Machine, found: Plan) -> None:
        assert isinstance(found.schedule, Schedule)
        assert isinstance(found.tiles, Tiles)
        self.job, self.machine, self.plan = job, machine, found
        self.layer = job.layer
        self.schedule, self.tiles = found.schedule, found.tiles
        self.cover = {operand: covered(self.schedule, operand) for operand in OPERANDS}
        trips = trips_of(self.layer, self.tiles)
        self.near = align(job.constant_bytes, WORD)
        self.slots: dict[str, list[int]] = {}
        for operand, bits in zip(OPERANDS, found.counts.footprint, strict=True):
            many = 2 if loads(self.schedule, trips, operand) > 1 else 1
            size = align(bits // 8 // many, WORD)
            self.slots[operand] = [self.near + k * size for k in range(many)]
            self.near += size * many
        if self.near > machine.scratchpad.size:
            raise CapacityError(
                f"{self.layer.name}: {self.near:,} bytes do not fit a scratchpad of"
                f" {machine.scratchpad.size:,}"
            )
        layer = self.layer
        result = job.result_bytes
        sizes = {
            "input": layer.batch * layer.rows.size * layer.columns.size * layer.in_channels,
            "weight": layer.out_channels * layer.taps * job.words.weights(layer.depth) // 8,
            "constants": job.constant_bytes,
            "residual": layer.output_elements * result if job.residual else 0,
            "output": layer.output_elements * result,
        }
        starts = layout(sizes.values(), machine.dram)
        self.far = dict(zip(sizes, starts, strict=True))
        self.far_bytes = starts[-1] + sizes["output"]
        self.blocks: dict[tuple[int, int, int, int], int] = {}
        self._place_weights()
        self.next = dict.fromkeys(OPERANDS, 0)

    def _place_weights(self) -> None:
        layer, tiles = self.layer, self.tiles
        wide = layer.width if "o" in self.cover["weight"] else tiles.o
        deep = layer.depth if "i" in self.cover["weight"] else tiles.i
        at = self.far["weight"]
        for o0, oc in pieces(layer.width, wide):
            for i0, ic in pieces(layer.depth, deep):
                self.blocks[o0, oc, i0, ic] = at
                at += self._block_bytes(oc, ic)

    def _block_bytes(self, wide: int, deep: int) -> int:
        return wide * self.layer.taps * self.job.words.weights(deep) // 8

    def program(self, level: int | None) -> Program:
        """Everything."""
        commands = tuple(self._commands(level))
        return Program(
            self.job,
            self.machine,
            self.plan,
            commands,
            self.far,
            self.far_bytes,
            tuple(self.blocks),
            self.near,
        )

    def _commands(self, level: int | None) -> Iterator[Command]:
        if level is not None:
            yield Frequency(level)
        job, order = self.job, self.schedule.order
        yield DmaIn(self.far["constants"], 0, job.constant_bytes)
        yield Table(job.constants()["table"][0], job.entries)
        ranges = self._ranges()
        held: dict[str, tuple[object, ...]] = {}
        where: dict[str, int] = {}
        for point in itertools.product(*(ranges[d] for d in order)):
            at = dict(zip(order, point, strict=True))
            for operand in OPERANDS:
                key = tuple(
                    None if d in self.cover[operand] else at[d]
                    for d in "soi"
                    if d != IGNORES[operand]
                )
                if held.get(operand) == key:
                    continue
                if operand == "output" and operand in held:
                    yield from self._leave(held[operand], where[operand])
                slots = self.slots[operand]
                where[operand] = slots[self.next[operand] % len(slots)]
                self.next[operand] += 1
                held[operand] = key
                if operand == "input":
                    yield self._fetch_input(key, where[operand])
                elif operand == "weight":
                    yield self._fetch_weight(key, where[operand])
            yield self._product(at, where)
        yield from self._leave(held["output"], where["output"])
        yield Barrier()

    def _ranges(self) -> dict[str, list[tuple[tuple[int, int], ...]]]:
        """``(first, count)`` along every axis of every tile of each dimension."""
        layer, tiles = self.layer, self.tiles
        spatial = itertools.product(
            pieces(layer.batch, tiles.n),
            pieces(layer.rows.outputs, tiles.p),
            pieces(layer.columns.outputs, tiles.q),
        )
        return {
            "s": list(spatial),
            "o": [(piece,) for piece in pieces(layer.width, tiles.o)],
            "i": [(piece,) for piece in pieces(layer.depth, tiles.i)],
        }

    def _spatial(self, part: object) -> tuple[tuple[int, int], ...]:
        """Images, output rows and columns of a key's part; everything where it is covered."""
        if part is None:
            layer = self.layer
            return (0, layer.batch), (0, layer.rows.outputs), (0, layer.columns.outputs)
        return part  # type: ignore[return-value]

    def _inputs(self, spatial: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int, int], ...]:
        """First row, rows and zeros before them that outputs need; columns likewise."""
        found = []
        for axis, (first, count) in zip(
            (self.layer.rows, self.layer.columns), spatial[1:], strict=True
        ):
            low = first * axis.stride - axis.padding[0]
            found.append((max(0, low), axis.touched(first, count), max(0, -low)))
        return tuple(found)

    def _fetch_input(self, key: tuple[object, ...], near: int) -> Command:
        layer = self.layer
        (n0, n), *_ = spatial = self._spatial(key[0])
        (y0, y, _), (x0, x, _) = self._inputs(spatial)
        c0, c = (0, layer.depth) if key[1] is None else key[1][0]  # type: ignore[index]
        pixel = layer.depth
        row, image = layer.columns.size * pixel, layer.rows.size * layer.columns.size * pixel
        far = self.far["input"] + n0 * image + y0 * row + x0 * pixel + c0
        if c == layer.depth:
            return DmaIn(far, near, x * pixel, y, row, n, image)
        return DmaIn(far, near, c, x, pixel, y, row, n, image)

    def _fetch_weight(self, key: tuple[object, ...], near: int) -> Command:
        o = (0, self.layer.width) if key[0] is None else key[0][0]  # type: ignore[index]
        i = (0, self.layer.depth) if key[1] is None else key[1][0]  # type: ignore[index]
        return DmaIn(self.blocks[(*o, *i)], near, self._block_bytes(o[1], i[1]))

    def _product(
        self, at: dict[str, tuple[tuple[int, int], ...]], where: dict[str, int]
    ) -> Command:
        layer, job, cover = self.layer, self.job, self.cover
        spatial, (o0, o), (i0, i) = at["s"], at["o"][0], at["i"][0]
        (y0, y, top), (x0, x, left) = self._inputs(spatial)
        held = self._spatial(None if "s" in cover["input"] else spatial)
        (hy0, hy, _), (hx0, hx, _) = self._inputs(held)
        whole = "i" in cover["input"]
        w_wide, w_deep = "o" in cover["weight"], "i" in cover["weight"]
        sums = self._spatial(None if "s" in cover["output"] else spatial)
        s_wide = "o" in cover["output"]
        (n0, n), (p0, p), (q0, q) = spatial
        zeros = job.constants()["zero"][0] + 4 * n0
        return Product(
            where["input"],
            hy,
            hx,
            layer.depth if whole else i,
            n0 - held[0][0],
            y0 - hy0,
            x0 - hx0,
            i0 if whole else 0,
            n,
            y,
            x,
            i,
            where["weight"],
            layer.width if w_wide else o,
            layer.depth if w_deep else i,
            o0 if w_wide else 0,
            i0 if w_deep else 0,
            o,
            layer.rows.kernel,
            layer.columns.kernel,
            layer.rows.stride,
            layer.columns.stride,
            top,
            left,
            where["output"],
            sums[1][1],
            sums[2][1],
            layer.width if s_wide else o,
            n0 - sums[0][0],
            p0 - sums[1][0],
            q0 - sums[2][0],
            o0 if s_wide else 0,
            p,
            q,
            int(i0 > 0),
            job.bits,
            job.group,
            0 if job.per_row else zeros,
        )

    def _leave(self, key: tuple[object, ...], near: int) -> Iterator[Command]:
        """Turn finished sums into results and send them off."""
        layer, job = self.layer, self.job
        (n0, n), (p0, p), (q0, q) = self._spatial(key[0])
        o0, o = (0, layer.width) if key[1] is None else key[1][0]  # type: ignore[index]
        share = 2 if layer.gated else 1
        size, channels = job.result_bytes, layer.width // share
        row = layer.columns.outputs * channels * size
        image = layer.rows.outputs * row
        offset = n0 * image + p0 * row + (q0 * channels + o0 // share) * size
        run, wide = o // share * size, o // share == channels
        box = (q * run, p, row, n, image) if wide else (run, q, channels * size, p, row, n, image)
        residual = 0
        if job.residual:
            residual = near + n * p * q * o * 4
            yield DmaIn(self.far["residual"] + offset, residual, *box)
        constants = {name: start for name, (start, _) in job.constants().items()}
        yield Epilogue(
            near,
            n,
            p,
            q,
            o,
            constants["column"] + 4 * o0,
            constants["bias"] + 4 * o0 if job.bias else 0,
            constants["row"] + 4 * (p0 if job.per_row else n0),
            int(job.per_row),
            constants["shift"] + 4 * (n0 * layer.width + o0) if job.shift else 0,
            layer.width,
            ACTIVATION_CODES.index(job.activation),
            residual,
            int(job.half),
        )
        yield DmaOut(self.far["output"] + offset, near, *box)
