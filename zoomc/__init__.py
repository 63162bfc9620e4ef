"""zoomc: a torch.compile backend for Stable Diffusion inpainting, and the infinite zoom on it.

    pipe.unet = torch.compile(pipe.unet, backend="zoomc")

Importing this package loads nothing heavy; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import refresh
    from .compressed import compress
    from .compressed_file import load_compressed, save_compressed
    from .demo import demo_pipeline
    from .errors import ZoomcError
    from .options import Options
    from .report import Report, explain
    from .tuning import Tuning, tune
    from .zoom import InfiniteZoom

__version__ = "0.1.0"

_HOMES = {
    "InfiniteZoom": ".zoom",
    "Options": ".options",
    "Report": ".report",
    "Tuning": ".tuning",
    "ZoomcError": ".errors",
    "compress": ".compressed",
    "demo_pipeline": ".demo",
    "explain": ".report",
    "load_compressed": ".compressed_file",
    "refresh": ".backend",
    "save_compressed": ".compressed_file",
    "tune": ".tuning",
}

__all__ = [
    "InfiniteZoom",
    "Options",
    "Report",
    "Tuning",
    "ZoomcError",
    "compress",
    "demo_pipeline",
    "explain",
    "load_compressed",
    "refresh",
    "save_compressed",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Load a public name's module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zoomc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
