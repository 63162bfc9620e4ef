"""Energy as the machine itself counts it: RAPL on Linux, NVML on NVIDIA's GPUs."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from .errors import CounterError
from .power import Energy

#: Where Linux shows RAPL's counters.
POWERCAP = Path("/sys/class/powercap")

#: RAPL's domains that add up to what the processor and its memory take; others are parts of them.
_DOMAINS = ("package", "dram")

#: Runs go on for so many seconds: GPUs renew their counter only every tenth of a second.
LEAST = 2.0


class Counter(Protocol):
    """Something that counts joules."""

    name: str

    def joules(self) -> float:
        """Joules since some moment; the difference of two calls is what was used between them."""
        ...


class Rapl:
    """The processors' packages and memory, through Linux' powercap.

    The whole machine's: whatever else runs is counted, too.

    Raises:
        CounterError: there is none, or it may not be read.
    """

    name = "RAPL"

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones: list[tuple[Path, int]] = []
        self._total = 0
        self._last: dict[Path, int] = {}
        for zone in sorted(root.glob("intel-rapl:*")):
            try:
                if (zone / "name").read_text().startswith(_DOMAINS):
                    limit = int((zone / "max_energy_range_uj").read_text())
                    self._zones.append((zone / "energy_uj", limit))
            except (OSError, ValueError):
                continue
        if not self._zones:
            raise CounterError(f"no RAPL counter in {root}: this machine does not show any")
        self.joules()

    def joules(self) -> float:
        """Joules since the first call; a counter that started over is noticed."""
        for path, limit in self._zones:
            try:
                now = int(path.read_text())
            except OSError as error:
                raise CounterError(
                    f"{path} cannot be read ({error.strerror}): give read access to it, or run as"
                    " root"
                ) from error
            self._total += (now - self._last.setdefault(path, now)) % (limit + 1)
            self._last[path] = now
        return self._total / 1e6


class Nvml:
    """One NVIDIA GPU, through its management library.

    Raises:
        CounterError: the library or the counter is missing.
    """

    name = "NVML"

    def __init__(self, index: int = 0, library: Any = None) -> None:
        """``library`` stands in for libnvidia-ml in tests."""
        self._library = library or _nvml()
        self._check(self._library.nvmlInit_v2(), "start")
        self._device = ctypes.c_void_p()
        found = self._library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._device))
        self._check(found, f"find GPU {index}")
        self.joules()

    def joules(self) -> float:
        """Joules since the driver was loaded."""
        millijoules = ctypes.c_ulonglong()
        self._check(
            self._library.nvmlDeviceGetTotalEnergyConsumption(
                self._device, ctypes.byref(millijoules)
            ),
            "read the energy",
        )
        return millijoules.value / 1e3

    def _check(self, code: int, what: str) -> None:
        if code:
            raise CounterError(f"NVML cannot {what}: error {code}")


def counter(device: str) -> Counter:
    """The counter of a device type, ``cpu`` or ``cuda``.

    Raises:
        CounterError: there is none, with the reason.
    """
    if device == "cpu":
        return Rapl()
    if device == "cuda":
        import torch

        index = torch.cuda.current_device()
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
        return Nvml(_position(str(uuid)) if uuid else index)
    raise CounterError(f"no energy counter is known for {device}")


def _nvml() -> Any:
    try:
        return ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        raise CounterError(f"NVML does not load ({error})") from error


def _position(uuid: str) -> int:
    """NVML's number of a GPU: CUDA may hide or reorder them."""
    library = _nvml()
    library.nvmlInit_v2()
    handle, index = ctypes.c_void_p(), ctypes.c_uint()
    name = f"GPU-{uuid}".encode()
    if library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
        raise CounterError(f"NVML does not know GPU-{uuid}")
    library.nvmlDeviceGetIndex(handle, ctypes.byref(index))
    return index.value


def measure(
    run: Callable[[], object], counter: Counter, operations: int = 0, least: float = LEAST
) -> Energy:
    """Energy of one run, over as many as ``least`` seconds take; ``run`` waits for its result."""
    run()
    before, start, runs = counter.joules(), time.perf_counter(), 0
    while time.perf_counter() - start < least or not runs:
        run()
        runs += 1
    seconds = time.perf_counter() - start
    joules = counter.joules() - before
    return Energy(joules / runs, seconds / runs, operations, f"measured by {counter.name}")
