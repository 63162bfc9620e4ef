"""How many row blocks a run has: the planner's counts of what passes the second-level cache.

A run's rows stay in the cache while all panels pass, which is one of the planner's schedules; rows
of a run that does not fit are read again for every panel, which is another. What differs from the
planner is the price: a byte that comes in short pieces costs more than one the hardware fetches
ahead, by factors that are measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..tiling.layer import Axis, Conv
from ..tiling.memory import Memory, Words
from ..tiling.schedule import Schedule, Tiles, measure
from ..tiling.tiles import sizes

#: A run of rows waits while the panels pass; a panel waits while all rows pass.
ROWS_STAY, PANEL_STAYS = Schedule("soi", inner=True), Schedule("osi", inner=True)

#: Counts in rows and panels, which differ in bytes.
_UNITS = Memory(1, Words(1, 1, 1, 1))

#: Runs at most: looking further has never paid.
MOST_RUNS = 64


@dataclass(frozen=True)
class Prices:
    """What a byte costs beside one that streams.

    Attributes:
        again: of rows that are read again for every panel.
        panel: of a panel: more where it is decoded each time.
        apart: of results whose lines leave the cache between two panels.
    """

    again: float
    panel: float
    apart: float


@dataclass(frozen=True)
class Share:
    """One worker's part of a product.

    Attributes:
        blocks: row blocks.
        block: rows of one.
        pitch: rows from a tap to the one below; 0 where one row serves one pixel.
        row_bytes: of a row of A.
        chunks: of K between two visits of a block.
        panels: it multiplies by.
        panel_bytes: of all of them.
        sums: bytes of a row's sums that wait between two chunks of K.
        result: bytes that finishing a row reads and writes.
    """

    blocks: int
    block: int
    pitch: int
    row_bytes: int
    chunks: int
    panels: int
    panel_bytes: float
    sums: int
    result: float

    def best(self, prices: Prices, stay: float, near: float) -> int:
        """Row blocks of a run.

        Args:
            prices: of what passes.
            stay: bytes of the cache that a run's rows and sums may take to stay there.
            near: bytes that they may take with the run's results.
        """
        found = [b for b in sizes(self.blocks) if -(-self.blocks // b) <= MOST_RUNS]
        return min(found, key=lambda blocks: self.cost(blocks, prices, stay, near))

    def cost(self, blocks: int, prices: Prices, stay: float, near: float) -> float:
        """Priced bytes that pass the cache with so many blocks in a run; runs count as whole."""
        run, runs = blocks * self.block, -(-self.blocks // blocks)
        taps = 3 if self.pitch else 1
        axis = Axis(runs * run + (taps - 1) * self.pitch, taps, dilation=max(self.pitch, 1))
        layer = Conv("", 1, self.chunks, self.panels, axis, Axis(1))
        counts = measure(layer, _UNITS, ROWS_STAY, Tiles(1, run, 1, 1, 1, 1))
        rows = counts.reads[0] // self.chunks
        held = counts.footprint[0] // self.chunks * self.row_bytes + run * self.sums
        price = 1.0
        if held > stay:
            price = prices.again
            every = Conv("", 1, 1, self.panels, Axis(rows), Axis(1))
            rows = measure(every, _UNITS, PANEL_STAYS, Tiles(1, -(-rows // 2), 1, 1, 1, 1)).reads[0]
        passes = counts.reads[1] / layer.weight_elements
        apart = prices.apart if held + run * self.result > near else 1
        return (
            rows * self.row_bytes * price
            + passes * self.panel_bytes * prices.panel
            + runs * run * self.result * apart
        )
