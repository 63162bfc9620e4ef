"""The product phase of integer kernels: decode a panel's chunk, multiply blocks of rows by it.

Every worker owns a rectangle of row blocks and panels. For a run of row blocks that fits the
second-level cache it goes through its panels; for each, through chunks of steps whose int8 panel
part fits the first-level cache beside a block's rows; for each, through the row blocks. A chunk
is decoded just before its use, or beside the products of the chunk before, once a run of row
blocks: decoded weights never leave the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tvm.tirx.script import builder as T

from .codes import Codes
from .gemm import Place, Rows, place
from .isa import Isa
from .kernel import TensorSpec
from .micro_int8 import STEP, IntegerMicro, fetching
from .plan import Extent, Plan, chosen
from .quantise import Blocks
from .traffic import Prices, Share

Expr = Any
Buffer = Any

#: Rows that are read again for every panel weigh four times, and so do panels, which are decoded
#: each time, and results whose lines come from afar for every panel.
_PRICES = Prices(again=4, panel=4, apart=4)


def plan(isa: Isa, micro: IntegerMicro, rows: Rows, taps: int, codes: Codes, result: int) -> Plan:
    """Cut a product up for a machine's caches and workers; ``result`` as for :func:`.gemm.plan`."""
    total = -(-rows.groups(micro.rows) // micro.groups)
    row_bytes = codes.depth // taps * micro.step_bytes
    a_bytes = rows.count * row_bytes
    b_bytes = codes.panels * codes.panel_bytes * (1 if codes.bits == 8 else 2)

    def cost(across: int) -> tuple[int, int]:
        along = isa.threads // across
        share = -(-total // across) * -(-codes.panels // along)
        return share, across * b_bytes + along * a_bytes

    across = min((d for d in range(1, isa.threads + 1) if isa.threads % d == 0), key=cost)
    # Half of the first-level cache for the panel's chunk; whole blocks of channels where they
    # fit, so that a row's lines serve all its taps while they are near.
    fit = max(isa.l1 // 2 // (STEP * micro.columns), 1)
    whole = fit >= taps > 1 and not codes.pruned
    if whole:
        fit -= fit % taps
    pieces = -(-codes.steps // fit)
    chunk = -(-codes.steps // pieces)
    if whole:
        chunk = -(-chunk // taps) * taps
    along = isa.threads // across
    part = Share(
        blocks=-(-total // across),
        block=micro.block,
        pitch=rows.pitch if taps > 1 else 0,
        row_bytes=row_bytes,
        chunks=-(-codes.steps // chunk),
        panels=-(-codes.panels // along),
        panel_bytes=b_bytes / along,
        sums=micro.columns * 4 if chunk < codes.steps else 0,
        result=result / along,
    )
    blocks = part.best(_PRICES, stay=isa.l2 / 2, near=isa.l2)
    # Measured: int8 panels gain up to a third; codes, which are half as long and are read in
    # one go when decoded, gain where few blocks share them and lose elsewhere.
    fetch = micro.tiles and (codes.bits == 8 or (taps == 1 and blocks <= 4))
    return Plan(1, across, isa.threads // across, blocks, chunk, fetch)


#: Stores a group's finished sums: its place, the panel, the sums' buffer and first element.
Finish = Callable[[Place, Expr, Buffer, Expr], None]


@dataclass(frozen=True)
class Read:
    """What a product reads.

    Attributes:
        a: flat buffer of A in the product's layout.
        panels: flat buffer of the weights' codes.
        table: flat buffer of their table, or None.
        offsets: flat buffer of where their steps begin in A.
        scratch: buffers of :meth:`IntegerProduct.scratch`.
        origin: the row of A that lies first in ``a``.
    """

    a: Buffer
    panels: Buffer
    table: Buffer | None
    offsets: Buffer
    scratch: list[Buffer]
    origin: Expr = 0


#: Panels between the one that is decoded and the one whose codes are fetched.
_LATER = 3


@dataclass(frozen=True)
class IntegerProduct:
    """One product: what it multiplies and how it is cut up.

    Attributes:
        isa: the instruction path.
        micro: the layout's, or a variant that fetches weights ahead.
        layout: of A.
        rows: which of A's rows stand for which output pixels.
        taps: element offsets of A's rows from the pixel an output stands at, one a tap.
        codes: the weights.
        plan: how it is cut up.
    """

    isa: Isa
    micro: IntegerMicro
    layout: Blocks
    rows: Rows
    taps: tuple[int, ...]
    codes: Codes
    plan: Plan

    @classmethod
    def of(
        cls,
        isa: Isa,
        layout: Blocks,
        rows: Rows,
        taps: tuple[int, ...],
        codes: Codes,
        result: int = 0,
        tuned: Mapping[str, Any] | None = None,
    ) -> IntegerProduct:
        """The product with the planner's plan or a tuned one, and the micro-kernel for it.

        ``result`` is as for :func:`.gemm.plan`.

        Raises:
            StalePlan: ``tuned`` are not the fields of a plan for this product.
        """
        micro = layout.micro
        cut = chosen(plan(isa, micro, rows, len(taps), codes, result), tuned)
        product = cls(isa, micro, layout, rows, taps, codes, cut)
        product.extent.check(cut)
        if not cut.fetch:
            return product
        return replace(product, micro=fetching(micro, codes.step_bytes, cut.blocks))

    @property
    def extent(self) -> Extent:
        """What the plan cuts up."""
        steps, panels = self.codes.steps, self.codes.panels
        return Extent(self.isa.threads, 1, self.blocks, panels, steps, 1, fetches=self.micro.tiles)

    def nearby(self) -> list[Plan]:
        """Plans a step away from this one's; chunks of whole blocks of channels where they are."""
        taps = len(self.taps)
        whole = 1 if self.plan.chunk % taps or self.codes.pruned else taps
        return replace(self.extent, step=whole).nearby(self.plan)

    @property
    def _single(self) -> bool:
        return self.plan.chunk >= self.codes.steps

    @property
    def _sums(self) -> int:
        held = 1 if self._single else self.plan.blocks
        return held * self.micro.block * self.micro.columns

    @property
    def _room(self) -> int:
        if self.codes.bits == 8:
            return 0
        return (2 if self.early else 1) * self.plan.chunk * STEP * self.micro.columns

    @property
    def early(self) -> bool:
        """Whether a chunk is decoded beside the products of the one before.

        Tiles multiply while vector registers decode, if the products are issued first. Measured:
        that gains up to a quarter where both chunks and the sums fit the first-level cache, and
        loses elsewhere.
        """
        chunks = 2 * self.plan.chunk * STEP * self.micro.columns
        fits = chunks + 4 * self._sums <= self.isa.l1
        return self.micro.tiles and self.codes.bits < 8 and fits

    @property
    def places(self) -> tuple[int, ...]:
        """A's byte offset of every step of K."""
        rows, width = self.layout.rows, self.micro.step_bytes
        return tuple(
            (b * rows + tap) * width for b in range(self.layout.blocks) for tap in self.taps
        )

    def scratch(self) -> tuple[TensorSpec, ...]:
        """Workspace: accumulators; where needed, the steps' offsets, room for a decoded chunk."""
        workers = self.isa.threads
        specs = [TensorSpec((workers * self._sums,), torch.int32)]
        if not self.codes.pruned:
            specs.append(TensorSpec((self.codes.steps,), torch.int32))
        if self._room:
            specs.append(TensorSpec((workers * self._room,), torch.int8))
        return tuple(specs)

    def emit(
        self,
        a: Buffer,
        panels: Buffer,
        table: Buffer | None,
        offsets: Buffer | None,
        scratch: list[Buffer],
        finish: Finish,
    ) -> None:
        """Emit the offsets and the parallel loop.

        Args:
            a: flat buffer of A in ``layout``.
            panels: flat buffer of the weights in ``codes``.
            table: flat buffer of their table, where they have one.
            offsets: flat buffer of where their steps begin in A, if they are pruned.
            scratch: buffers of :meth:`scratch`.
            finish: stores finished sums, rows ``columns`` apart.
        """
        plan = self.plan
        read = Read(a, panels, table, self.listed(offsets, scratch), scratch)
        with T.parallel(self.isa.threads) as worker:
            self.micro.begin()
            along = T.floormod(worker, plan.column_workers)
            across = T.floordiv(worker, plan.column_workers)
            first, stop = share(across, plan.row_workers, self.blocks)
            ends = share(along, plan.column_workers, self.codes.panels)
            turns = T.floordiv(stop - first + plan.blocks - 1, plan.blocks)
            with T.serial(turns) as turn:
                base = T.bind(first + turn * plan.blocks)
                limit = T.bind(T.min(base + plan.blocks, stop))
                self.turn(read, worker, (base, limit), ends, finish)
            self.micro.end()

    @property
    def blocks(self) -> int:
        """Blocks of A's rows."""
        return -(-self.rows.groups(self.micro.rows) // self.micro.groups)

    def listed(self, offsets: Buffer | None, scratch: list[Buffer]) -> Buffer:
        """Emit where the steps begin in A, unless their list is given; the flat buffer of them."""
        if offsets is None:
            offsets = scratch[1]
            for tap, offset in enumerate(self.taps):
                with T.serial(self.layout.blocks) as block:
                    where = (block * self.layout.rows + offset) * self.micro.step_bytes
                    T.buffer_store(offsets, where, [block * len(self.taps) + tap])
        return offsets

    def turn(
        self,
        read: Read,
        worker: Expr,
        blocks: tuple[Expr, Expr],
        panels: tuple[Expr, Expr],
        finish: Finish,
    ) -> None:
        """Emit a worker's products of a run of row blocks, at most the plan's, by its panels."""
        micro, codes, plan = self.micro, self.codes, self.plan
        groups = self.rows.groups(micro.rows)
        steps = codes.steps
        pieces = -(-steps // plan.chunk)
        size = micro.block * micro.columns
        sums = read.scratch[0]
        base, limit = blocks

        def multiply(
            at: Expr, index: Expr, start: Expr, source: Expr, n: Expr, later: Expr, soon: Expr
        ) -> None:
            addresses = []
            for g in range(micro.groups):
                number = index * micro.groups + g
                if g and groups % micro.groups:
                    number = T.min(number, groups - 1)
                row = place(self.rows, micro.rows, T.bind(number)).row - read.origin
                addresses.append(T.address_of(read.a[row * STEP]))
            micro.multiply(addresses, start, source, n, T.address_of(sums[at]), later, soon)

        def done(index: Expr, panel: Expr, at: Expr) -> None:
            with T.serial(micro.groups) as g:
                number = T.bind(index * micro.groups + g)
                where = T.bind(at + g * (micro.rows * micro.columns))
                if groups % micro.groups:
                    with T.If(number < groups), T.Then():
                        finish(place(self.rows, micro.rows, number), panel, sums, where)
                else:
                    finish(place(self.rows, micro.rows, number), panel, sums, where)

        def held(piece: Expr) -> Expr:
            """Steps of a chunk."""
            if steps % plan.chunk:
                return T.bind(T.min(plan.chunk, steps - piece * plan.chunk))
            return plan.chunk

        def room(panel: Expr, piece: Expr) -> Expr:
            """Where a chunk is decoded to: one half and the other by turns."""
            if not self.early:
                return worker * self._room
            turn = (panel - panels[0]) * pieces + piece
            return worker * self._room + T.bitwise_and(turn, 1) * (self._room // 2)

        def decode(panel: Expr, piece: Expr, lo: Expr, n: Expr) -> None:
            at = T.bind(room(panel, piece) + lo * (STEP * micro.columns))
            step = T.bind(piece * plan.chunk + lo)
            codes.decode(self.isa, read.panels, read.table, panel, step, n, read.scratch[-1], at)

        def prepare(index: Expr, panel: Expr, piece: Expr) -> None:
            """Emit a block's part of the decoding of the chunk that comes next, if one does."""
            wraps = T.bind(T.Cast("int32", piece.equal(pieces - 1)))
            panel, piece = T.bind(panel + wraps), T.bind((piece + 1) * (1 - wraps))
            n, count = held(piece), T.bind(limit - base)
            lo, hi = (T.bind(T.floordiv((index - base + i) * n, count)) for i in (0, 1))
            with T.If(T.And(panel < panels[1], hi > lo)), T.Then():
                if self._single:
                    # The codes of the panels that come later: they may have left the caches.
                    soon = (panel + _LATER) * codes.panel_bytes + lo * codes.step_bytes
                    micro.fetch(read.panels, T.bind(soon), (hi - lo) * codes.step_bytes)
                decode(panel, piece, lo, hi - lo)

        def chunk(panel: Expr, piece: Expr) -> None:
            first = T.bind(piece * plan.chunk)
            n = held(piece)
            begin = T.bind(panel * codes.panel_bytes + first * codes.step_bytes)
            if codes.bits < 8:
                if not self.early:
                    decode(panel, piece, 0, n)
                source = T.address_of(read.scratch[-1][T.bind(room(panel, piece))])
            else:
                source = T.address_of(read.panels[begin])
            start = T.address_of(read.offsets[panel * steps + first if codes.pruned else first])
            later = 0 if self._single else T.bind(T.Cast("int32", first > 0))
            with T.serial(base, limit) as index:
                spot = 0 if self._single else (index - base) * size
                at = T.bind(worker * self._sums + spot)
                soon = None
                if micro.ahead:
                    # Every block fetches its part of the next chunk, which follows in memory.
                    part = (index - base) * (plan.chunk * micro.ahead * 64)
                    soon = T.address_of(read.panels[begin + n * codes.step_bytes + part])
                multiply(at, index, start, source, n, later, soon)
                if self.early:
                    prepare(index, panel, piece)
                if pieces == 1:
                    done(index, panel, at)
                else:
                    with T.If(piece.equal(pieces - 1)), T.Then():
                        done(index, panel, at)

        if self.early:
            decode(panels[0], 0, 0, held(T.int32(0)))
        with T.serial(*panels) as panel, T.serial(pieces) as piece:
            chunk(panel, piece)


def share(position: Expr, workers: int, amount: int) -> tuple[Expr, Expr]:
    """Where a worker's part of an amount begins and ends."""
    return (
        T.bind(T.floordiv(position * amount, workers)),
        T.bind(T.floordiv((position + 1) * amount, workers)),
    )
