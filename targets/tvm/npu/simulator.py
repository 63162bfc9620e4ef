"""The machine's functions, simulated: exact numbers, and a count of everything that moves.

Three engines work side by side: DMA, the MAC array, and the vector unit, which shares the array's
turn. Commands enter in order; each begins when its engine is free and the scratchpad regions it
names are ready. Transfers out wait for their results without holding back transfers in. The DMA
engine has a clock of its own, the machine's highest: set-frequency slows arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from ....kernels.activation import ACTIVATIONS
from ...dram import RowBuffers, Run
from ...errors import MachineError
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


@dataclass
class Counts:
    """What a run came to.

    Attributes:
        bytes_in: bytes that DMA brought.
        bytes_out: bytes that it took away.
        commands: commands issued.
        macs: multiply-accumulates, zeros of the padding included.
        bank_conflicts: cycles that the array waited for scratchpad banks.
        compute_ns: time the array and vector unit were busy.
        dma_ns: time the DMA engine was busy.
        nanoseconds: time in all.
        hits: DRAM bursts that found their row open.
        misses: that found their bank idle.
        conflicts: that found another row open.
        energy: nanojoules per component: dram, scratchpad, mac, static.
    """

    bytes_in: int = 0
    bytes_out: int = 0
    commands: int = 0
    macs: int = 0
    bank_conflicts: int = 0
    compute_ns: float = 0.0
    dma_ns: float = 0.0
    nanoseconds: float = 0.0
    hits: int = 0
    misses: int = 0
    conflicts: int = 0
    energy: dict[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes both ways."""
        return self.bytes_in + self.bytes_out

    @property
    def nanojoules(self) -> float:
        """Energy of all components."""
        return sum(self.energy.values())


@dataclass
class _Pending:
    """A transfer out that waits for its results."""

    ready: float
    runs: list[Run]
    near: int


class Simulator:
    """One machine with its memories.

    Attributes:
        far: far memory, uint8.
        near: the scratchpad, uint8.
    """

    def __init__(
        self, machine: Machine, far_bytes: int, compute: bool = True, count: bool = True
    ) -> None:
        """``compute=False`` counts and times without moving or multiplying anything.

        ``count=False`` leaves DRAM rows and time out: they do not depend on the data.
        """
        if far_bytes > machine.dram.capacity:
            raise MachineError(
                f"machine {machine.name}: {far_bytes:,} bytes do not fit a DRAM of"
                f" {machine.dram.capacity:,}"
            )
        self.machine, self.compute, self.count = machine, compute, count
        self.far = torch.zeros(far_bytes if compute else 0, dtype=torch.uint8)
        self.near = torch.zeros(machine.scratchpad.size if compute else 0, dtype=torch.uint8)
        self.counts = Counts()
        self._far_bytes = far_bytes
        self._rows = RowBuffers(machine.dram)
        self._mhz = float(machine.mhz[-1])
        self._table: torch.Tensor | None = None
        self._dma = self._array = 0.0
        self._ready: dict[int, float] = {}
        self._free: dict[int, float] = {}
        self._pending: list[_Pending] = []
        self._scratch_bytes = 0.0

    def write(self, places: Mapping[str, int], tensors: Mapping[str, torch.Tensor]) -> None:
        """Put tensors' bytes into far memory: what the host does before a program runs."""
        for name, data in tensors.items():
            self.far[places[name] : places[name] + data.numel()] = data

    def issue(self, command: Command) -> None:
        """Carry out one command."""
        self.counts.commands += 1
        if isinstance(command, DmaOut):
            self.dma_out(command)
        elif isinstance(command, DmaIn):
            self.dma_in(command)
        elif isinstance(command, Table):
            self.table(command)
        elif isinstance(command, Product):
            self.product(command)
        elif isinstance(command, Epilogue):
            self.epilogue(command)
        elif isinstance(command, Barrier):
            self.barrier()
        elif isinstance(command, Frequency):
            self.frequency(command)

    def finish(self) -> Counts:
        """Everything counted, once nothing is under way."""
        self.barrier()
        counts, machine, cost = self.counts, self.machine, self._rows.finish()
        counts.hits, counts.misses, counts.conflicts = cost.hits, cost.misses, cost.conflicts
        counts.nanoseconds = max(self._dma, self._array)
        counts.energy = {
            "dram": cost.nanojoules
            + machine.standby_mw * (counts.nanoseconds - cost.nanoseconds) / 1e3,
            "scratchpad": self._scratch_bytes * machine.scratchpad_pj / 1e3,
            "mac": counts.macs * machine.mac_pj / 1e3,
            "static": machine.static_mw * counts.nanoseconds / 1e3,
        }
        return counts

    # DMA

    def dma_in(self, c: DmaIn) -> None:
        """Bring a box."""
        runs, size = self._runs(c, False)
        self.counts.bytes_in += size
        earliest = self._free.get(c.near, 0.0)
        self._flush(max(self._dma, earliest))
        begin = max(self._dma, self._free.get(c.near, 0.0))
        self._dma = begin + self._transfer(runs, size)
        self._ready[c.near] = self._dma
        if self.compute:
            self._bytes(c.near, size).view(box(c)).copy_(self._box(c))

    def dma_out(self, c: DmaOut) -> None:
        """Take a box away as soon as it is ready."""
        runs, size = self._runs(c, True)
        self.counts.bytes_out += size
        self._pending.append(_Pending(self._ready.get(c.near, self._array), runs, c.near))
        if self.compute:
            self._box(c).copy_(self._bytes(c.near, size).view(box(c)))

    def _box(self, c: DmaIn) -> torch.Tensor:
        """A transfer's box in far memory."""
        return torch.as_strided(self.far, box(c), (c.stride2, c.stride1, c.stride0, 1), c.far)

    def _runs(self, c: DmaIn, write: bool) -> tuple[list[Run], int]:
        size = c.run * c.count0 * c.count1 * c.count2
        if c.near < 0 or c.near + size > self.machine.scratchpad.size:
            raise MachineError(
                f"machine {self.machine.name}: a transfer of {size:,} bytes at {c.near:,} leaves"
                f" the scratchpad of {self.machine.scratchpad.size:,}"
            )
        if not self.count:
            return [], size
        runs = [
            Run(c.far + k * c.stride2 + j * c.stride1 + i * c.stride0, c.run, write)
            for k in range(c.count2)
            for j in range(c.count1)
            for i in range(c.count0)
        ]
        if runs and (runs[0].start < 0 or runs[-1].start + c.run > self._far_bytes):
            raise MachineError(f"machine {self.machine.name}: a transfer leaves far memory")
        return runs, size

    def _transfer(self, runs: Sequence[Run], size: int) -> float:
        """Nanoseconds of a transfer: the slower of the DRAM and the engine."""
        machine, before = self.machine, self._rows.bus_ns
        for run in runs:
            self._rows.access(run)
        cycles = machine.dma_setup + size / machine.dma_bytes
        spent = max(self._rows.bus_ns - before, cycles * 1e3 / machine.mhz[-1])
        self.counts.dma_ns += spent
        self._scratch_bytes += size
        return spent

    def _flush(self, until: float = float("inf"), near: int | None = None) -> None:
        """Let transfers out begin that are ready by ``until``; all of them up to a region's."""
        last = max((k for k, p in enumerate(self._pending) if p.near == near), default=-1)
        while self._pending and (self._pending[0].ready <= until or last >= 0):
            out = self._pending.pop(0)
            last -= 1
            size = sum(run.length for run in out.runs)
            self._dma = max(self._dma, out.ready) + self._transfer(out.runs, size)
            self._free[out.near] = self._dma

    # Arithmetic

    def table(self, c: Table) -> None:
        """Load the decoder."""
        self._array = max(self._array, self._ready.get(0, 0.0))
        if self.compute:
            values = self._bytes(c.near, c.entries).view(torch.int8)
            self._table = values.clone() if c.entries else None

    def product(self, c: Product) -> None:
        """Multiply a tile and add it up."""
        machine = self.machine
        deep, wide = -(-c.c // machine.rows), -(-c.o // machine.columns)
        positions, taps = c.n * c.p * c.q, c.kh * c.kw
        macs = positions * taps * c.c * c.o
        waits = positions * taps * deep * wide * self._bank_waits(c)
        cycles = (positions + machine.rows) * taps * deep * wide + waits
        if not c.add:
            self._flush(near=c.sums)  # earlier results have to leave first
        needs = (self._ready.get(c.source, 0.0), self._ready.get(c.weight, 0.0))
        begin = max(self._array, *needs, self._free.get(c.sums, 0.0))
        self._array = begin + cycles * 1e3 / self._mhz
        self.counts.compute_ns += cycles * 1e3 / self._mhz
        self.counts.macs += macs
        self.counts.bank_conflicts += waits
        for region in (c.source, c.weight):
            self._free[region] = self._array
        self._ready[c.sums] = self._array
        held = c.o * taps * (c.c * c.bits // 8 + (-(-c.c // c.group) if c.group else 0))
        reads = positions * taps * c.c * wide
        self._scratch_bytes += reads + held + 2 * 4 * positions * taps * c.o * deep
        if self.compute:
            self._multiply(c)

    def _bank_waits(self, c: Product) -> int:
        """Cycles a step waits for banks, beyond the one it takes: inputs, then sums."""
        sram, machine = self.machine.scratchpad, self.machine
        lanes = -(-min(c.c, machine.rows) // sram.word)
        sums = -(-min(c.o, machine.columns) * 4 // sram.word)
        return sram.conflicts(c.source, lanes, sram.word) + sram.conflicts(c.sums, sums, sram.word)

    def _bytes(self, at: int, size: int) -> torch.Tensor:
        return self.near[at : at + size]

    def _multiply(self, c: Product) -> None:
        images = c.n0 + c.n
        held = (images, c.held_h, c.held_w, c.held_c)
        x = self._bytes(c.source, int(np.prod(held))).view(torch.int8).view(held)
        x = x[c.n0 :, c.h0 : c.h0 + c.h, c.w0 : c.w0 + c.w, c.c0 : c.c0 + c.c]
        if c.zero:
            zeros = self._bytes(c.zero, 4 * c.n).view(torch.int32)
            x = x.to(torch.int16) - zeros.view(-1, 1, 1, 1).to(torch.int16)
        weight = self._weights(c)
        down = (c.p - 1) * c.sy + c.kh - c.top - c.h
        across = (c.q - 1) * c.sx + c.kw - c.left - c.w
        # A negative pad crops rows that the last output does not reach.
        x = F.pad(x.permute(0, 3, 1, 2), (c.left, across, c.top, down))
        products = exact_conv2d(x, weight, (c.sy, c.sx))
        shape = (c.sn + c.n, c.held_p, c.held_q, c.held_s)
        sums = self._bytes(c.sums, 4 * int(np.prod(shape))).view(torch.int32).view(shape)
        sums = sums[c.sn :, c.sp : c.sp + c.p, c.sq : c.sq + c.q, c.so : c.so + c.o]
        products = products.permute(0, 2, 3, 1)
        sums.copy_(sums + products if c.add else products)

    def _weights(self, c: Product) -> torch.Tensor:
        """int8 ``(o, i, kh, kw)``, decoded from the region held."""
        taps = c.kh * c.kw
        size = c.held_o * taps * c.held_i * c.bits // 8
        codes = self._bytes(c.weight, size)
        if c.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1)
        codes = codes.reshape(c.held_o, taps, c.held_i)
        values = codes.view(torch.int8) if self._table is None else self._table[codes.long()]
        if c.group:
            groups = -(-c.held_i // c.group)
            scales = self._bytes(c.weight + size, c.held_o * taps * groups).view(torch.int8)
            scales = scales.view(c.held_o, taps, groups).repeat_interleave(c.group, dim=2)
            values = values * scales[:, :, : c.held_i]
        values = values[c.o0 : c.o0 + c.o, :, c.i0 : c.i0 + c.c]
        return values.permute(0, 2, 1).reshape(c.o, c.c, c.kh, c.kw)

    def epilogue(self, c: Epilogue) -> None:
        """Sums to results."""
        elements = c.n * c.p * c.q * c.o
        cycles = -(-elements // self.machine.columns)
        begin = max(self._array, self._ready.get(c.sums, 0.0), self._ready.get(c.residual, 0.0))
        self._array = begin + cycles * 1e3 / self._mhz
        self.counts.compute_ns += cycles * 1e3 / self._mhz
        self._ready[c.sums] = self._array
        self._scratch_bytes += elements * (4 + (2 if c.half else 4) * (2 if c.residual else 1))
        if self.compute:
            self._finish_sums(c, elements)

    def _floats(self, at: int, count: int) -> torch.Tensor:
        return self._bytes(at, 4 * count).view(torch.float32)

    def _finish_sums(self, c: Epilogue, elements: int) -> None:
        sums = self._bytes(c.sums, 4 * elements).view(torch.int32).view(c.n, c.p, c.q, c.o)
        rows = self._floats(c.row, c.p if c.per_row else c.n)
        scale = rows.view(1, -1, 1, 1) if c.per_row else rows.view(-1, 1, 1, 1)
        y = sums.float() * (scale * self._floats(c.column, c.o))
        if c.bias:
            y = y + self._floats(c.bias, c.o)
        if c.shift:
            last = c.shift_pitch * (c.n - 1) + c.o
            shifts = self._floats(c.shift, last)
            y = y + torch.as_strided(shifts, (c.n, 1, 1, c.o), (c.shift_pitch, 0, 0, 1))
        name = ACTIVATION_CODES[c.activation]
        if name == "geglu":
            y = y[..., ::2].contiguous() * F.gelu(y[..., 1::2].contiguous())
        else:
            y = ACTIVATIONS[name](y)
        kind = torch.bfloat16 if c.half else torch.float32
        if c.residual:
            size = y.numel() * kind.itemsize
            y = y + self._bytes(c.residual, size).view(kind).view(y.shape).float()
        results = y.to(kind).contiguous().view(torch.uint8).flatten()
        self._bytes(c.sums, results.numel()).copy_(results)

    # Order

    def barrier(self) -> None:
        """Wait for everything."""
        self._flush()
        self._dma = self._array = max(self._dma, self._array)

    def frequency(self, c: Frequency) -> None:
        """Change the clock.

        Raises:
            MachineError: there is no such level.
        """
        if not 0 <= c.level < len(self.machine.mhz):
            raise MachineError(
                f"machine {self.machine.name} has {len(self.machine.mhz)} clock levels, no"
                f" {c.level}"
            )
        self._mhz = float(self.machine.mhz[c.level])


def exact_conv2d(x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    """An int8 convolution's int32 sums, by fp32 ones short enough to be exact.

    Inputs are within ±256, as differences of int8 are. Sums of integers below 2²⁴ have no rounding
    in fp32, in whatever order, and such values none in the bf16 that a matmul may be allowed to
    read them as.
    """
    most = max(1, (2**24 - 1) // (256 * 128 * weight.shape[2] * weight.shape[3]))
    total: torch.Tensor | None = None
    for xs, ws in zip(x.split(most, 1), weight.split(most, 1), strict=True):
        part = F.conv2d(xs.float(), ws.float(), stride=stride).to(torch.int32)
        total = part if total is None else total + part
    assert total is not None
    return total


def box(c: DmaIn) -> tuple[int, int, int, int]:
    """A transfer's counts, outer to inner, and its bytes in a run."""
    return c.count2, c.count1, c.count0, c.run
