"""The base of every error zoomc raises on purpose: at the bottom, since every floor raises some."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class ZoomcError(Exception):
    """Something the user can mend; the message says how."""


class LayerError(ZoomcError):
    """A layer whose sizes make no sense."""


class MachineError(ZoomcError):
    """A machine description with a missing, negative or contradictory value."""
