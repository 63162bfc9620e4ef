"""Fewer bits for weights: int8, codes through a table, pruning, and what each takes to store.

An encoding is plain torch: ``encode`` chooses the numbers, ``decode`` is their meaning, ``bits``
counts them exactly. Kernels read the codes; nothing here knows a machine. Names are loaded on
first use, so that asking what encodings there are loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .coded import Coded, bits, decode, pack, unpack
    from .encoder import encode
    from .encoding import Encoding
    from .pruning import prune
    from .sharing import Shared, share

_HOMES = {
    "Coded": "coded",
    "Encoding": "encoding",
    "Shared": "sharing",
    "bits": "coded",
    "decode": "coded",
    "encode": "encoder",
    "pack": "coded",
    "prune": "pruning",
    "share": "sharing",
    "unpack": "coded",
}

__all__ = [
    "Coded",
    "Encoding",
    "Shared",
    "bits",
    "decode",
    "encode",
    "pack",
    "prune",
    "share",
    "unpack",
]


def __getattr__(name: str) -> Any:
    """Load a name's module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
