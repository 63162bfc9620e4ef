"""The base of every error zoomc raises on purpose: at the bottom, since every floor raises some."""

from __future__ import annotations


class ZoomcError(Exception):
    """Something the user can mend; the message says how."""
