"""The infinite zoom: outpaint a picture again and again, and fly through what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import ZoomSettings

if TYPE_CHECKING:
    from .infinite import InfiniteZoom

__all__ = ["InfiniteZoom", "ZoomSettings"]


def __getattr__(name: str) -> Any:
    # Lazy, so that ``zoomc --help`` does not wait for torch.
    if name == "InfiniteZoom":
        from .infinite import InfiniteZoom

        return InfiniteZoom
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
