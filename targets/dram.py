"""DRAM and SRAM: where words lie, and what reaching them costs.

Energies are of the device alone, per command, from the currents in the data sheets' memory
specifications; refresh, input/output drivers and read/write turnaround are left out. A request
finds its row open (hit), its bank idle (miss), or another row open in its bank (conflict).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd

from .errors import MachineError

#: Inner to outer: consecutive words fill a row, then the same row of the other chips, then other
#: banks, then the next row (Putra et al., ROMANet, TVLSI 2021).
ROW_FIRST = ("column", "chip", "bank", "row")


@dataclass(frozen=True)
class Dram:
    """A memory device or a rank of them.

    Attributes:
        name: for people.
        burst: bytes of one burst.
        row: bytes of a row of one bank of one chip.
        banks: banks of a chip.
        chips: chips, or channels, with rows of their own behind one data bus.
        rows: rows of a bank.
        burst_ns: time of a burst on the data bus.
        cas_ns: from a read to its data, less the burst.
        activate_ns: from opening a row to reading it.
        precharge_ns: from closing a row to opening the next.
        activate_nj: opening and closing a row.
        read_nj: a read burst.
        write_nj: a write burst.
        background_nj: standby for the time of one burst.

    Raises:
        MachineError: a value that is not positive, or rows that are not whole bursts.
    """

    name: str
    burst: int
    row: int
    banks: int
    chips: int
    rows: int
    burst_ns: float
    cas_ns: float
    activate_ns: float
    precharge_ns: float
    activate_nj: float
    read_nj: float
    write_nj: float
    background_nj: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "name" and value <= 0:
                raise MachineError(f"DRAM {self.name}: {name} is {value}; it must be positive")
        if self.row % self.burst:
            raise MachineError(
                f"DRAM {self.name}: rows of {self.row} bytes are not whole bursts of {self.burst}"
            )

    @property
    def capacity(self) -> int:
        """Bytes in all."""
        return self.row * self.banks * self.chips * self.rows

    def latency_ns(self, state: str) -> float:
        """Nanoseconds of one lone burst that finds ``hit``, ``miss`` or ``conflict``."""
        opening = {"hit": 0.0, "miss": self.activate_ns}
        opening["conflict"] = self.precharge_ns + self.activate_ns
        return opening[state] + self.cas_ns + self.burst_ns

    def read_pj_per_bit(self, state: str) -> float:
        """Picojoules per bit of one lone read burst, standby left out."""
        energy = self.read_nj + (0.0 if state == "hit" else self.activate_nj)
        return energy * 1e3 / (8 * self.burst)

    @property
    def bytes_per_ns(self) -> float:
        """Peak bandwidth."""
        return self.burst / self.burst_ns


#: Energies of the first two: DRAMSys' IDD currents; timings: DDR3-1600K 11-11-11 less one clock,
#: 14/24/34 clocks for hit, miss and conflict, and JEDEC's minima for LPDDR4. No currents of an
#: LPDDR5 could be read: its 5 and 7 pJ/bit are the ends of the published range, taken as a hit and
#: a miss; its timings are gem5's LPDDR5_6400_1x16_BG_BL16.
PRESETS: dict[str, Dram] = {
    d.name: d
    for d in (
        Dram("ddr3-1600", 8, 1024, 8, 8, 16384, 5.0, 12.5, 12.5, 12.5, 1.781, 0.7125, 0.75, 0.3375),
        Dram("lpddr4-3200", 32, 2048, 8, 2, 49152, 5.0, 17.5, 18.0, 18.0, 1.2, 2.17, 1.29, 0.19),
        Dram("lpddr5-6400", 32, 2048, 16, 4, 32768, 2.5, 18.75, 18.0, 18.0, 0.512, 1.28, 1.28, 0.1),
    )
}


@dataclass(frozen=True)
class Run:
    """Consecutive bytes, read or written."""

    start: int
    length: int
    write: bool = False


@dataclass
class Cost:
    """What a stream of runs came to."""

    hits: int = 0
    misses: int = 0
    conflicts: int = 0
    reads: int = 0
    writes: int = 0
    nanojoules: float = 0.0
    nanoseconds: float = 0.0

    @property
    def bursts(self) -> int:
        """Bursts in all."""
        return self.reads + self.writes

    @property
    def activations(self) -> int:
        """Rows opened."""
        return self.misses + self.conflicts


@dataclass
class RowBuffers:
    """The open rows of a DRAM, and the time on its bus, as a stream passes.

    Bursts follow each other on the bus without gaps while their rows are open. A row is opened
    ahead of its turn, from when the segment before it began to flow, unless its bank is busy.

    Attributes:
        dram: the device.
        order: how addresses spread, inner to outer, over ``column``, ``chip``, ``bank``, ``row``.
    """

    dram: Dram
    order: tuple[str, str, str, str] = ROW_FIRST
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        if sorted(self.order) != sorted(ROW_FIRST):
            raise MachineError(f"address order {self.order}: it must name {', '.join(ROW_FIRST)}")
        d = self.dram
        sizes = {"column": d.row // d.burst, "chip": d.chips, "bank": d.banks, "row": d.rows}
        self._sizes = [sizes[name] for name in self.order]
        self._place = [self.order.index(name) for name in ROW_FIRST]
        self._open: dict[tuple[int, int], int] = {}
        self._busy: dict[tuple[int, int], float] = {}
        self._bus = self._began = 0.0

    @property
    def bus_ns(self) -> float:
        """When the data bus falls silent."""
        return self._bus

    def locate(self, burst: int) -> tuple[int, int, int, int]:
        """``(column, chip, bank, row)`` of a burst number."""
        digits = []
        for size in self._sizes[:-1]:
            burst, digit = divmod(burst, size)
            digits.append(digit)
        digits.append(burst)
        column, chip, bank, row = (digits[k] for k in self._place)
        return column, chip, bank, row

    def access(self, run: Run) -> None:
        """Let a run pass.

        Raises:
            MachineError: it reaches past the memory's end.
        """
        d, cost = self.dram, self.cost
        if run.length <= 0:
            return
        if run.start < 0 or run.start + run.length > d.capacity:
            raise MachineError(
                f"DRAM {d.name} has {d.capacity:,} bytes; an access ends at"
                f" {run.start + run.length:,}"
            )
        first, last = run.start // d.burst, (run.start + run.length - 1) // d.burst
        step = self._sizes[0] if self.order[0] == "column" else 1
        burst = first
        while burst <= last:
            count = min(step - burst % step, last - burst + 1)
            _, chip, bank, row = self.locate(burst)
            self._segment((chip, bank), row, count)
            burst += count
        bursts = last - first + 1
        if run.write:
            cost.writes += bursts
            cost.nanojoules += bursts * d.write_nj
        else:
            cost.reads += bursts
            cost.nanojoules += bursts * d.read_nj

    def _segment(self, bank: tuple[int, int], row: int, count: int) -> None:
        """Bursts of one row, one after the other."""
        d, cost = self.dram, self.cost
        found = self._open.get(bank)
        ready = self._bus
        if found == row:
            cost.hits += count
        else:
            wait = d.activate_ns
            if found is None:
                cost.misses += 1
            else:
                cost.conflicts += 1
                wait += d.precharge_ns
            cost.hits += count - 1
            cost.nanojoules += d.activate_nj
            ready = max(self._bus, max(self._began, self._busy.get(bank, 0.0)) + wait)
            self._open[bank] = row
        self._began = ready
        self._bus = self._busy[bank] = ready + count * d.burst_ns

    def finish(self) -> Cost:
        """Everything so far, standby energy and the first access's latency included."""
        d, cost = self.dram, self.cost
        time = self._bus + d.cas_ns if self._bus else 0.0
        background = d.background_nj / d.burst_ns
        cost.nanojoules += (time - cost.nanoseconds) * background
        cost.nanoseconds = time
        return cost


def stream_cost(
    dram: Dram, runs: Iterable[Run], order: tuple[str, str, str, str] = ROW_FIRST
) -> Cost:
    """Hits, misses, conflicts, nanojoules and nanoseconds of a stream of runs."""
    buffers = RowBuffers(dram, order)
    for run in runs:
        buffers.access(run)
    return buffers.finish()


@dataclass(frozen=True)
class Sram:
    """A scratchpad of banks that each serve one word a cycle; consecutive words in other banks.

    Attributes:
        size: bytes.
        banks: banks.
        word: bytes of a bank's word.
    """

    size: int
    banks: int
    word: int

    def __post_init__(self) -> None:
        if min(self.size, self.banks, self.word) < 1:
            raise MachineError(f"{self}: size, banks and word must be positive")
        if self.size % (self.banks * self.word):
            raise MachineError(
                f"scratchpad of {self.size} bytes does not divide into {self.banks} banks of"
                f" {self.word}-byte words"
            )

    def locate(self, address: int) -> tuple[int, int]:
        """``(bank, word in it)`` of a byte address."""
        word = address // self.word
        return word % self.banks, word // self.banks

    def cycles(self, start: int, lanes: int, stride: int) -> int:
        """Cycles for one word in each of ``lanes`` addresses ``stride`` bytes apart."""
        if lanes < 1:
            return 0
        if stride % self.word == 0:
            # The lanes visit banks / gcd(stride, banks) banks in turn, or one word alone.
            step = stride // self.word
            if step == 0:
                return 1
            return -(-lanes // (self.banks // gcd(step, self.banks)))
        words = {(start + k * stride) // self.word for k in range(lanes)}
        load = [0] * self.banks
        for word in words:
            load[word % self.banks] += 1
        return max(load)

    def conflicts(self, start: int, lanes: int, stride: int) -> int:
        """Cycles beyond those that as many lanes need where their banks are all different."""
        least = -(-lanes // self.banks)
        return max(0, self.cycles(start, lanes, stride) - least)


def align(address: int, to: int) -> int:
    """The next multiple of ``to``."""
    return -(-address // to) * to


def layout(sizes: Iterable[int], dram: Dram) -> list[int]:
    """First bytes of tensors laid one after the other, each from a new row on."""
    starts, address = [], 0
    for size in sizes:
        starts.append(address)
        address = align(address + size, dram.row)
    return starts
