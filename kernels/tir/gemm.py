"""The product phase of a kernel: micro-kernels over rows, panels and K, and what follows them.

Every worker owns a rectangle of row blocks and panels. For a run of row blocks that fits the
second-level cache it goes through its panels; for each, through chunks of K whose panel part
fits the first-level cache; for each, through the row blocks. So a panel's chunk is read from
near memory once and then reused, rows come from the second level, and sums that span chunks
wait in a small fp32 scratch. After the last chunk of a block its epilogue runs, while the sums
are hot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tvm.tirx.script import builder as T

from .isa import Isa
from .kernel import TensorSpec
from .layout import Layout
from .micro import Micro, fetching
from .plan import Extent, Plan, chosen, splits
from .traffic import Prices, Share

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Rows:
    """Where the rows of A lie and which output pixel each stands for.

    Output pixel ``(image, y, x)`` is A's row ``image · image_rows + y · pitch + x``. Where
    ``pitch`` exceeds ``width``, the rows between are multiplied only if that makes fewer groups,
    and dropped.

    Attributes:
        images: outermost count.
        height: output rows of an image; 1 for a plain matrix.
        width: output pixels of a row.
        pitch: A's rows from one output row to the next.
        image_rows: A's rows from one image to the next.
        exact: nothing may be read past the last pixel's row: A is somebody else's tensor.
    """

    images: int
    height: int
    width: int
    pitch: int
    image_rows: int
    exact: bool

    @property
    def count(self) -> int:
        """Output pixels."""
        return self.images * self.height * self.width

    def flat(self, group: int) -> bool:
        """Whether groups run on across the ends of output rows."""
        return -(-self._flat_rows // group) < self.height * -(-self.width // group)

    @property
    def _flat_rows(self) -> int:
        return (self.height - 1) * self.pitch + self.width

    def groups(self, group: int) -> int:
        """Groups of ``group`` rows that cover every pixel."""
        return self.images * self.image_groups(group)

    def image_groups(self, group: int) -> int:
        """Groups that cover one image."""
        if self.flat(group):
            return -(-self._flat_rows // group)
        return self.height * -(-self.width // group)

    def fits(self, group: int) -> bool:
        """Whether a group can lie inside the rows that may be read."""
        return not self.exact or (self._flat_rows if self.flat(group) else self.width) >= group


@dataclass(frozen=True)
class Place:
    """One group at run time: its image, first row in A, and the rows of it that count."""

    image: Expr
    row: Expr
    first: Expr
    stop: Expr
    pixel: Callable[[Expr], tuple[Expr, Expr | None]]


def place(rows: Rows, group: int, index: Expr, before: Expr = 0) -> Place:
    """The group of that index. ``pixel(i)`` gives row i's output pixel and when it counts.

    ``before`` output pixels belong to matrices that come earlier.
    """
    per_image = rows.image_groups(group)
    image = T.floordiv(index, per_image)
    local = T.floormod(index, per_image)
    pixels = rows.height * rows.width
    if rows.flat(group):
        total = (rows.height - 1) * rows.pitch + rows.width
        wanted = local * group
        start = T.min(wanted, total - group) if rows.exact and total % group else wanted
        first = wanted - start if rows.exact and total % group else 0
        stop = T.min(group, total - start) if total % group else group

        def pixel(i: Expr) -> tuple[Expr, Expr | None]:
            if rows.pitch == rows.width:
                return before + image * pixels + start + i, None
            y = T.floordiv(start + i, rows.pitch)
            x = T.floormod(start + i, rows.pitch)
            return before + image * pixels + y * rows.width + x, x < rows.width

        return Place(image, image * rows.image_rows + start, first, stop, pixel)
    across = -(-rows.width // group)
    y = T.floordiv(local, across)
    wanted = T.floormod(local, across) * group
    ragged = rows.width % group != 0
    start = T.min(wanted, rows.width - group) if rows.exact and ragged else wanted
    first = wanted - start if rows.exact and ragged else 0
    stop = T.min(group, rows.width - start) if ragged else group
    return Place(
        image,
        image * rows.image_rows + y * rows.pitch + start,
        first,
        stop,
        lambda i: (before + image * pixels + y * rows.width + start + i, None),
    )


@dataclass(frozen=True)
class Depth:
    """K as runs of consecutive elements of A: one for a matrix, one a tap or tap row for a map.

    Attributes:
        runs: how many.
        length: values in a run, a multiple of the micro-kernel's step.
        offset: A's element offset of a run, from its index.
        listed: taps among which a list of every panel's own chooses its steps of K; 0 where all
            panels hold the same.
    """

    runs: int
    length: int
    offset: Callable[[Expr], Expr]
    listed: int = 0

    @property
    def k(self) -> int:
        """All of K."""
        return self.runs * self.length


@dataclass(frozen=True)
class Batch:
    """Independent products of one shape.

    Attributes:
        count: how many.
        a: A's element offset of a product, from its index.
        panels: which set of panels a product uses, from its index.
    """

    count: int = 1
    a: Callable[[Expr], Expr] = lambda index: 0
    panels: Callable[[Expr], Expr] = lambda index: 0


def plan(
    isa: Isa,
    micro: Micro,
    rows: Rows,
    depth: Depth,
    layout: Layout,
    panels: int,
    products: int = 1,
    result: int = 0,
) -> Plan:
    """Cut a product up for a machine's caches and workers.

    ``result`` is the bytes that finishing a pixel reads and writes, the rest as in
    :class:`Product`.
    """
    row_bytes = layout.values * micro.a_bytes
    total = -(-rows.groups(micro.rows) // micro.groups)
    a_bytes = rows.count * row_bytes
    b_bytes = panels * depth.k * micro.columns * micro.panel.itemsize

    def cost(workers: tuple[int, int, int]) -> tuple[int, int]:
        each, across, along = workers
        share = -(-products // each) * -(-total // across) * -(-panels // along)
        return share, across * b_bytes + along * a_bytes

    workers = min(splits(isa.threads), key=cost)
    per_value = micro.columns * micro.b_bytes
    # Tiles are so fast that a panel's chunk must come from the first-level cache, beside the rows;
    # where it is decoded first, fewer and longer chunks win, the more so the more blocks come back
    # to their sums for each. The factors here are measured.
    near = micro.tiles and not micro.decoded
    share = -(-total // workers[1])
    room = 0.45 * isa.l1 if near else isa.l2 / (5 if micro.decoded and share >= 16 else 8)
    budget = int(room) // per_value // micro.kstep * micro.kstep
    pieces = -(-depth.length // max(budget, micro.kstep))
    chunk = -(-depth.length // pieces // micro.kstep) * micro.kstep
    single = depth.runs == 1 and chunk >= depth.length
    part = Share(
        blocks=-(-total // workers[1]),
        block=micro.block,
        pitch=rows.pitch if max(depth.runs, depth.listed) > 1 else 0,
        row_bytes=row_bytes,
        chunks=depth.runs * pieces,
        panels=-(-panels // workers[2]),
        panel_bytes=b_bytes / workers[2],
        sums=0 if single else micro.columns * 4,
        result=result / workers[2],
    )
    # Measured. Rows that are read again weigh four times, split ones twice, or one and a half times
    # if in slabs; a panel that is decoded four times; and so do results that do not stay near: a
    # panel fills one line a pixel, each in a page of its own.
    prices = Prices(
        again=4 if micro.planes == 1 else 1.5 if layout.slab else 2,
        panel=4 if micro.decoded else 1,
        apart=4,
    )
    blocks = part.best(prices, stay=(0.75 if near else 0.5) * isa.l2, near=0.75 * isa.l2)
    return Plan(*workers, blocks, chunk, fetch=micro.tiles)


@dataclass(frozen=True)
class Product:
    """One product: what it multiplies and how it is cut up."""

    isa: Isa
    micro: Micro
    rows: Rows
    depth: Depth
    layout: Layout
    panels: int
    plan: Plan
    batch: Batch = Batch()

    @classmethod
    def of(
        cls,
        isa: Isa,
        micro: Micro,
        rows: Rows,
        depth: Depth,
        layout: Layout,
        panels: int,
        batch: Batch = Batch(),
        result: int = 0,
        tuned: Mapping[str, Any] | None = None,
    ) -> Product:
        """The product with the planner's plan or a tuned one, and the micro-kernel for it.

        Raises:
            StalePlan: ``tuned`` are not the fields of a plan for this product.
        """
        cut = chosen(plan(isa, micro, rows, depth, layout, panels, batch.count, result), tuned)
        product = cls(isa, micro, rows, depth, layout, panels, cut, batch)
        product.extent.check(cut)
        return replace(product, micro=fetching(micro, cut.blocks)) if cut.fetch else product

    @property
    def extent(self) -> Extent:
        """What the plan cuts up."""
        total = -(-self.rows.groups(self.micro.rows) // self.micro.groups)
        threads, count = self.isa.threads, self.batch.count
        depth, micro = self.depth, self.micro
        return Extent(
            threads, count, total, self.panels, depth.length, micro.kstep, fetches=micro.tiles
        )

    def nearby(self) -> list[Plan]:
        """Plans a step away from this one's."""
        return self.extent.nearby(self.plan)

    @property
    def single(self) -> bool:
        """Whether a block is done in one call."""
        return self.depth.runs == 1 and self.plan.chunk >= self.depth.length

    @property
    def sums(self) -> int:
        """Elements of one worker's accumulators."""
        held = 1 if self.single and not self.micro.decoded else self.plan.blocks
        return held * self.micro.block * self.micro.columns

    def scratch(self) -> tuple[TensorSpec, ...]:
        """Workspace: accumulators, then room for a decoded chunk where the micro-kernel has one."""
        workers = self.isa.threads
        sums = TensorSpec((workers * self.sums,), torch.float32)
        if not self.micro.decoded:
            return (sums,)
        values = self.plan.chunk * self.micro.columns * self.micro.b_bytes // 4
        return (sums, TensorSpec((workers * values,), torch.int32))

    def emit(
        self,
        a: Buffer,
        panels: Buffer,
        scratch: list[Buffer],
        decode: Callable[[Buffer, Expr, Expr, Buffer, Expr], None] | None,
        finish: Callable[[Place, Expr, Buffer, Expr], None],
        offsets: Buffer | None = None,
    ) -> None:
        """Emit the parallel loop.

        Args:
            a: flat buffer of A, in :attr:`layout`.
            panels: flat buffer of packed panels, ``[panels][K · columns]``.
            scratch: buffers of :meth:`scratch`.
            decode: ``decode(panels, start, k, room, at)`` turns k values of every column from
                element ``start`` of the packed panels into the form the micro-kernel reads, at
                element ``at`` of ``room``; None where it reads them packed.
            finish: ``finish(place, panel, sums, at)`` stores a group's finished sums, which are
                at element ``at``, a row ``columns`` apart.
            offsets: flat buffer of where in A every panel's steps begin, if they are listed.
        """
        micro, plan, depth, layout = self.micro, self.plan, self.depth, self.layout
        groups = self.rows.groups(micro.rows)
        total = -(-groups // micro.groups)
        pieces = -(-depth.length // plan.chunk)
        block_size = micro.block * micro.columns
        panel_size = depth.k * micro.columns
        room = plan.chunk * micro.columns * micro.b_bytes // 4
        held = self.sums // block_size
        sums = scratch[0]

        def block(
            at: Expr,
            index: Expr,
            inside: Expr,
            listed: Expr,
            source: Expr,
            k: Expr,
            later: Expr,
            soon: Expr,
        ) -> None:
            starts = []
            for g in range(micro.groups):
                number = index * micro.groups + g
                if g and groups % micro.groups:
                    number = T.min(number, groups - 1)
                starts.append(place(self.rows, micro.rows, T.bind(number)).row)
            addresses = [T.address_of(a[row * layout.row + inside]) for row in starts]
            element = micro.a_bytes // micro.planes
            pitch, step = layout.row * element, layout.step * element
            step = step if listed is None else listed
            micro.call(addresses, pitch, step, source, k, T.address_of(sums[at]), later, soon)

        def done(matrix: Expr, index: Expr, panel: Expr, at: Expr) -> None:
            before = 0 if self.batch.count == 1 else matrix * self.rows.count
            with T.serial(micro.groups) as g:
                number = T.bind(index * micro.groups + g)
                where = T.bind(at + g * (micro.rows * micro.columns))
                if groups % micro.groups:
                    with T.If(number < groups), T.Then():
                        group = place(self.rows, micro.rows, number, before)
                        finish(group, panel, sums, where)
                else:
                    finish(place(self.rows, micro.rows, number, before), panel, sums, where)

        def chunk(
            worker: Expr, matrix: Expr, base: Expr, limit: Expr, panel: Expr, run: Expr, k0: Expr
        ) -> None:
            k = T.min(plan.chunk, depth.length - k0) if depth.length % plan.chunk else plan.chunk
            which = self.batch.panels(matrix) * self.panels + panel
            values = T.bind(which * panel_size + (run * depth.length + k0) * micro.columns)
            if decode:
                decode(
                    panels, values, T.bind(k) if depth.length % plan.chunk else k, *room_of(worker)
                )
                source = T.address_of(scratch[1][worker * room])
            else:
                source = T.address_of(panels[values])
            inside, listed = self.batch.a(matrix), None
            if offsets is None:
                inside = T.bind(inside + depth.offset(run) + layout.offset(k0))
            else:
                steps = which * (depth.k // micro.kstep) + T.floordiv(k0, micro.kstep)
                listed = T.address_of(offsets[steps])
            later = 0 if self.single else T.bind(T.Cast("int32", run + k0 > 0))
            last = (run * pieces + T.floordiv(k0, plan.chunk)).equal(depth.runs * pieces - 1)
            with T.serial(base, limit) as index:
                at = T.bind(worker * self.sums + (index - base if held > 1 else 0) * block_size)
                # Chunks follow one another in memory: every block fetches its part of the next.
                part = plan.chunk // micro.kstep * micro.ahead * 64 // micro.panel.itemsize
                next_part = values + k * micro.columns + (index - base) * part
                soon = T.address_of(panels[next_part]) if micro.ahead else None
                block(at, index, inside, listed, source, k, later, soon)
                if self.single:
                    done(matrix, index, panel, at)
                else:
                    with T.If(last), T.Then():
                        done(matrix, index, panel, at)

        def room_of(worker: Expr) -> tuple[Buffer, Expr]:
            return scratch[1], worker * room

        def share(position: Expr, workers: int, amount: int) -> tuple[Expr, Expr]:
            return (
                T.bind(T.floordiv(position * amount, workers)),
                T.bind(T.floordiv((position + 1) * amount, workers)),
            )

        with T.parallel(self.isa.threads) as worker:
            micro.begin()
            along = T.floormod(worker, plan.column_workers)
            rest = T.floordiv(worker, plan.column_workers)
            across = T.floormod(rest, plan.row_workers)
            each = T.floordiv(rest, plan.row_workers)
            first_matrix, stop_matrix = share(each, plan.batch_workers, self.batch.count)
            first, stop = share(across, plan.row_workers, total)
            first_panel, stop_panel = share(along, plan.column_workers, self.panels)
            turns = T.floordiv(stop - first + plan.blocks - 1, plan.blocks)
            with T.serial(first_matrix, stop_matrix) as matrix, T.serial(turns) as turn:
                base = T.bind(first + turn * plan.blocks)
                limit = T.bind(T.min(base + plan.blocks, stop))
                with (
                    T.serial(first_panel, stop_panel) as panel,
                    T.serial(depth.runs) as run,
                    T.serial(pieces) as piece,
                ):
                    chunk(worker, matrix, base, limit, panel, run, T.bind(piece * plan.chunk))
            micro.end()
