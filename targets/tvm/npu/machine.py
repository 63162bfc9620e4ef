"""An NPU as data, read from TOML: a file of its own, or one of the presets in ``machines``."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...dram import PRESETS, Dram, Sram
from ...errors import MachineError
from ...tiling import Costs, Memory, Words

_FOLDER = Path(__file__).parent / "machines"


@dataclass(frozen=True)
class Machine:
    """What plans, code and simulation depend on.

    Attributes:
        name: for people.
        rows: input channels that the MAC array takes at once.
        columns: output channels that it takes at once.
        scratchpad: near memory.
        scratchpad_pj: picojoules per byte read or written there.
        dma_bytes: bytes that the DMA engine moves in a cycle, at most.
        dma_setup: cycles before a transfer begins.
        dram: far memory.
        mhz: clock levels, ascending.
        volts: supply at every level, which layer-wise scaling leaves alone.
        mac_pj: picojoules of an int8 multiply-accumulate at that supply.
        static_mw: power that flows whether anything happens or not.
    """

    name: str
    rows: int
    columns: int
    scratchpad: Sram
    scratchpad_pj: float
    dma_bytes: int
    dma_setup: int
    dram: Dram
    mhz: tuple[int, ...]
    volts: float
    mac_pj: float
    static_mw: float

    def __post_init__(self) -> None:
        for what in ("rows", "columns", "dma_bytes", "volts"):
            if getattr(self, what) <= 0:
                raise MachineError(f"machine {self.name}: {what} must be positive")
        for what in ("scratchpad_pj", "dma_setup", "mac_pj", "static_mw"):
            if getattr(self, what) < 0:
                raise MachineError(f"machine {self.name}: {what} cannot be negative")
        if not self.mhz or min(self.mhz) <= 0 or list(self.mhz) != sorted(set(self.mhz)):
            raise MachineError(
                f"machine {self.name}: clock.mhz is {list(self.mhz)}; it must list positive"
                " frequencies in ascending order"
            )

    @property
    def gops(self) -> float:
        """10⁹ operations a second at the highest clock, two a multiply-accumulate."""
        return 2 * self.rows * self.columns * self.mhz[-1] / 1e3

    @property
    def standby_mw(self) -> float:
        """Power of the DRAM while nobody asks it for anything."""
        return self.dram.background_nj / self.dram.burst_ns * 1e3

    @property
    def gbytes(self) -> float:
        """10⁹ bytes a second from far memory at most: the DRAM's or the DMA engine's."""
        return min(self.dram.bytes_per_ns, self.dma_bytes * self.mhz[-1] / 1e3)

    def memory(self, words: Words, reserved: int = 0) -> Memory:
        """The planner's view, less ``reserved`` bytes of the scratchpad.

        Raises:
            MachineError: nothing would be left.
        """
        left = self.scratchpad.size - reserved
        if left <= 0:
            raise MachineError(
                f"machine {self.name}: {reserved:,} bytes of constants do not fit a scratchpad of"
                f" {self.scratchpad.size:,}"
            )
        bit = 1e3 / (8 * self.dram.burst)
        return Memory(
            left * 8,
            words,
            double_buffered=True,
            granule=(self.rows, self.columns),
            array=(self.rows, self.columns),
            costs=Costs(
                self.dram.read_nj * bit,
                self.dram.write_nj * bit,
                self.scratchpad_pj / 8,
                self.mac_pj,
            ),
        )


def presets() -> tuple[str, ...]:
    """The machines that come with zoomc."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load(name: str | Path) -> Machine:
    """A preset by its name, or a machine from a TOML file.

    Raises:
        MachineError: no such machine; or values missing, unknown, of the wrong type, negative or
            contradictory.
    """
    path = _FOLDER / f"{name}.toml" if str(name) in presets() else Path(name)
    try:
        text = path.read_text()
    except OSError as error:
        raise MachineError(
            f"no machine {str(name)!r}: give the path of a TOML file, or one of"
            f" {', '.join(presets())}"
        ) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MachineError(f"{path} is not TOML: {error}") from error
    return parse(data, str(path))


def parse(data: dict[str, Any], where: str = "machine") -> Machine:
    """A machine from the values of its file; ``where`` names the file in messages."""
    reader = _Reader(data, where)
    rows, columns = reader.numbers("macs", int, 2)
    machine = Machine(
        name=reader.take("name", str),
        rows=rows,
        columns=columns,
        scratchpad=Sram(
            reader.take("scratchpad.bytes", int),
            reader.take("scratchpad.banks", int),
            reader.take("scratchpad.word", int),
        ),
        scratchpad_pj=reader.take("scratchpad.pj_per_byte", float),
        dma_bytes=reader.take("dma.bytes_per_cycle", int),
        dma_setup=reader.take("dma.setup_cycles", int),
        dram=_dram(reader),
        mhz=tuple(reader.numbers("clock.mhz", int)),
        volts=reader.take("clock.volts", float),
        mac_pj=reader.take("power.mac_pj", float),
        static_mw=reader.take("power.static_mw", float),
    )
    reader.finish()
    return machine


def _dram(reader: _Reader) -> Dram:
    """A preset of :data:`PRESETS`."""
    preset = reader.take("dram.preset", str)
    if preset not in PRESETS:
        raise MachineError(
            f"{reader.where}: no DRAM preset {preset!r}; known: {', '.join(PRESETS)}"
        )
    return PRESETS[preset]


class _Reader:
    """Takes values out of nested tables, and complains by their full names."""

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self.where = where
        self._left = {
            f"{section}.{key}" if section else key: value
            for section, table in (("", data), *((k, v) for k, v in data.items()))
            if isinstance(table, dict)
            for key, value in table.items()
            if not isinstance(value, dict)
        }

    def take(self, name: str, kind: Any) -> Any:
        if name not in self._left:
            raise MachineError(f"{self.where}: {name} is missing")
        value = self._left.pop(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is float and isinstance(value, float) and not math.isfinite(value):
            raise MachineError(f"{self.where}: {name} is {value}; it must be finite")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise MachineError(f"{self.where}: {name} is {value!r}; it must be a {kind.__name__}")
        return value

    def numbers(self, name: str, kind: Any, count: int | None = None) -> list[Any]:
        values = self.take(name, list)
        wrong = [v for v in values if not isinstance(v, kind) or isinstance(v, bool)]
        if wrong or (count is not None and len(values) != count):
            many = "" if count is None else f"{count} "
            raise MachineError(f"{self.where}: {name} is {values!r}; it must list {many}numbers")
        return values

    def finish(self) -> None:
        if self._left:
            raise MachineError(f"{self.where}: unknown {', '.join(sorted(self._left))}")
