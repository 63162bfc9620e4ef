"""Power: layer-wise frequency scaling beside one voltage and frequency for a whole network.

``P = P_static + α·C·V²·f``. At a fixed voltage a layer's dynamic energy does not depend on the
frequency, so what layer-wise scaling (DFS) saves is time, and static power over it. Voltage takes
far longer to change than a layer takes to run, so the baseline (DVFS) chooses one level for the
whole network, at which every layer keeps the limit; it gains from the lower voltage there.

Source: Chung et al., ETRI Journal 44(5), 2022: for each layer the highest frequency whose modelled
power stays under the limit. A layer that waits for memory takes no higher one than it can use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import PowerLimitError


@dataclass(frozen=True)
class Load:
    """A layer as the power model sees it.

    Attributes:
        name: for people.
        cycles: clock cycles of arithmetic.
        memory_ns: nanoseconds it takes at least, whatever the clock: those of its transfers.
        dynamic_nj: energy of arithmetic and near memory at the nominal voltage.
        far_nj: energy of far memory beside its standby; it has a supply of its own.
        operations: multiplies and adds.
        exposed_ns: nanoseconds that transfers add to the arithmetic where it takes longer: the
            first tile's way in and the last one's out.
    """

    name: str
    cycles: float
    memory_ns: float
    dynamic_nj: float
    far_nj: float
    operations: int = 0
    exposed_ns: float = 0.0

    def nanoseconds(self, mhz: float) -> float:
        """Time at a clock."""
        return max(self.cycles * 1e3 / mhz + self.exposed_ns, self.memory_ns)


@dataclass(frozen=True)
class Supply:
    """What the clock and the voltage may be.

    Attributes:
        mhz: clock levels, ascending.
        volts: lowest voltage that each level runs at, ascending; the last is nominal.
        static_mw: static power at the nominal voltage; it falls with the voltage.
        standby_mw: static power of what has a supply of its own: far memory.
    """

    mhz: tuple[float, ...]
    volts: tuple[float, ...]
    static_mw: float
    standby_mw: float = 0.0

    def __post_init__(self) -> None:
        if not self.mhz or len(self.mhz) != len(self.volts):
            raise PowerLimitError("every clock level needs a voltage")
        ascending = all(list(x) == sorted(x) and x[0] > 0 for x in (self.mhz, self.volts))
        if not ascending or min(self.static_mw, self.standby_mw) < 0:
            raise PowerLimitError(
                "clock levels and voltages must be positive and ascending, static power ≥ 0"
            )

    def static(self, level: int) -> float:
        """Static milliwatts at a level's voltage."""
        return self.static_mw * self.volts[level] / self.volts[-1] + self.standby_mw


def milliwatts(load: Load, supply: Supply, level: int, voltage: int) -> float:
    """Power of a layer at one level's clock and another's voltage, by their indices."""
    ratio = (supply.volts[voltage] / supply.volts[-1]) ** 2
    moved = load.dynamic_nj * ratio + load.far_nj
    time = load.nanoseconds(supply.mhz[level])
    return supply.static(voltage) + (moved / time * 1e3 if time else 0.0)


@dataclass(frozen=True)
class Energy:
    """Energy and time of one step: a call of the compiled model.

    Attributes:
        joules: a step.
        seconds: a step.
        operations: multiplies and adds a step; 0 = not known.
        source: ``modelled``, or which counter measured it.

    Raises:
        PowerLimitError: energy or time that is not positive.
    """

    joules: float
    seconds: float
    operations: int = 0
    source: str = "modelled"

    def __post_init__(self) -> None:
        if not (self.joules > 0 and self.seconds > 0):
            raise PowerLimitError(
                f"a step of {self.joules:g} J in {self.seconds:g} s: both must be positive"
            )

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds

    @property
    def per_second_per_watt(self) -> float:
        """FPS/W, or steps a second a watt: steps a joule."""
        return 1 / self.joules

    @property
    def tops_per_watt(self) -> float:
        """Tera-operations a joule."""
        return self.operations / self.joules / 1e12

    def battery_hours(self, watt_hours: float) -> float:
        """How long a battery lasts, step after step without a pause."""
        return watt_hours / self.watts

    def per_frame(self, steps: int, frames: int) -> float:
        """Joules of denoising a frame: ``steps`` a keyframe, spread over its ``frames``."""
        return self.joules * steps / frames

    def per_zoom_second(self, steps: int, frames: int, fps: float) -> float:
        """Joules of denoising a second of video at ``fps`` frames."""
        return self.per_frame(steps, frames) * fps

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "source": self.source,
            "joules": self.joules,
            "seconds": self.seconds,
            "watts": self.watts,
            "steps_per_joule": self.per_second_per_watt,
            "tops_per_watt": self.tops_per_watt,
        }


@dataclass(frozen=True)
class Outcome:
    """A network under one policy.

    Attributes:
        levels: index of each layer's clock level.
        nanoseconds: of the network once.
        nanojoules: of the network once.
        static_share: of the energy.
        operations: multiplies and adds.
    """

    levels: tuple[int, ...]
    nanoseconds: float
    nanojoules: float
    static_share: float
    operations: int = 0

    @property
    def per_second(self) -> float:
        """Runs a second: frames, or denoising steps."""
        return 1e9 / self.nanoseconds

    @property
    def energy(self) -> Energy:
        """Of the network once, modelled."""
        return Energy(self.nanojoules / 1e9, self.nanoseconds / 1e9, self.operations)


def layerwise(loads: Sequence[Load], supply: Supply, limit_mw: float) -> Outcome:
    """DFS: nominal voltage, for each layer the highest clock under the limit that it can use.

    Raises:
        PowerLimitError: some layer keeps the limit at no level.
    """
    nominal = len(supply.mhz) - 1
    levels = []
    for load in loads:
        allowed = [
            level
            for level in range(len(supply.mhz))
            if milliwatts(load, supply, level, nominal) <= limit_mw
        ]
        if not allowed:
            worst = max(loads, key=lambda load: milliwatts(load, supply, 0, nominal))
            raise _over(worst, supply, nominal, limit_mw)
        fastest = load.nanoseconds(supply.mhz[allowed[-1]])
        levels.append(next(k for k in allowed if load.nanoseconds(supply.mhz[k]) <= fastest))
    return outcome(loads, supply, levels, nominal)


def per_network(loads: Sequence[Load], supply: Supply, limit_mw: float) -> Outcome:
    """DVFS: one level for the whole network, the highest at which every layer keeps the limit.

    Raises:
        PowerLimitError: there is none.
    """
    for level in reversed(range(len(supply.mhz))):
        if all(milliwatts(load, supply, level, level) <= limit_mw for load in loads):
            return outcome(loads, supply, [level] * len(loads), level)
    worst = max(loads, key=lambda load: milliwatts(load, supply, 0, 0))
    raise _over(worst, supply, 0, limit_mw)


def outcome(loads: Sequence[Load], supply: Supply, levels: Sequence[int], voltage: int) -> Outcome:
    """Time and energy of a network at given clock levels and one voltage."""
    ratio = (supply.volts[voltage] / supply.volts[-1]) ** 2
    time = sum(x.nanoseconds(supply.mhz[k]) for x, k in zip(loads, levels, strict=True))
    static = supply.static(voltage) * time / 1e3
    moved = sum(load.dynamic_nj * ratio + load.far_nj for load in loads)
    return Outcome(
        tuple(levels),
        time,
        static + moved,
        static / (static + moved) if static + moved else 0.0,
        sum(load.operations for load in loads),
    )


def _over(load: Load, supply: Supply, voltage: int, limit_mw: float) -> PowerLimitError:
    least = milliwatts(load, supply, 0, voltage)
    static = supply.static(voltage)
    why = "static power alone takes" if limit_mw < static else f"{load.name} takes at least"
    return PowerLimitError(
        f"no clock keeps a limit of {limit_mw:g} mW: {why}"
        f" {static if limit_mw < static else least:.4g} mW; raise the limit"
    )
