"""One class per mistake a user can make; every message says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from .kernels.errors import ZoomcError
from .targets.errors import (
    FallbackError,
    MissingDependencyError,
    TuningError,
    UnsupportedCpuError,
    UnsupportedGpuError,
)


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with the closest known name, or the list of all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}"


class UnknownOptionError(ZoomcError):
    """An option, or an ``ZOOMC_*`` variable's option, that does not exist."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"zoomc has no option {name!r}{nearest(name, known)}")


class OptionValueError(ZoomcError):
    """An option set to a value it cannot take."""

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"option {name}={value!r} is not valid: it takes {expected}")


class TrainingError(ZoomcError):
    """The model is in training mode, or gradients are asked for."""


class DeviceError(ZoomcError):
    """A tensor or a model lies on a device the target cannot run."""


class StaleWeightsError(ZoomcError):
    """Weights whose changes cannot be seen, so that an answer could be stale."""


class ReportFileError(ZoomcError):
    """A report that cannot be written where it should go."""


class CompressedFileError(ZoomcError):
    """A file of compressed weights that is missing, damaged, another model's, or unwritable."""


__all__ = [
    "CompressedFileError",
    "DeviceError",
    "FallbackError",
    "MissingDependencyError",
    "OptionValueError",
    "ReportFileError",
    "StaleWeightsError",
    "TrainingError",
    "TuningError",
    "UnknownOptionError",
    "UnsupportedCpuError",
    "UnsupportedGpuError",
    "ZoomcError",
    "nearest",
]
