"""Fewer bits for weights: int8, codes through a table, pruning, and what each takes to store.

An encoding is a folder of plain torch: ``encode`` chooses the numbers, ``decode`` is their meaning,
``bits`` counts them exactly. Kernels read the codes; nothing here knows a machine.
"""

from __future__ import annotations

from .coded import Coded, bits, decode, pack, unpack
from .encode import encode
from .encoding import Encoding
from .prune import prune
from .sharing import Shared, share

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
