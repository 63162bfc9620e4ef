"""What can be wrong with a machine, or with what was asked of it."""

from __future__ import annotations

from ..kernels.errors import LayerError, MachineError, ZoomcError


class UnsupportedCpuError(ZoomcError):
    """The CPU lacks the instructions a path needs."""


class UnsupportedGpuError(ZoomcError):
    """There is no GPU, its driver does not load, or it is older than the kernels need."""


class MissingDependencyError(ZoomcError):
    """A package the target needs is not installed or does not load."""


class FallbackError(ZoomcError):
    """``fallback="error"`` and something would have run in eager."""


class CapacityError(ZoomcError):
    """No tile of a layer, however small, fits the near memory."""


class CounterError(ZoomcError):
    """An energy counter that this machine does not have or does not show."""


class PowerLimitError(ZoomcError):
    """A power limit that no frequency can keep."""


class TuningError(ZoomcError):
    """A tuning file or a device behind a tracker that cannot be used."""


__all__ = [
    "CapacityError",
    "CounterError",
    "FallbackError",
    "LayerError",
    "MachineError",
    "MissingDependencyError",
    "PowerLimitError",
    "TuningError",
    "UnsupportedCpuError",
    "UnsupportedGpuError",
]
