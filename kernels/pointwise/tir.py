"""Kernels of single ATen calls: whatever no fused operator absorbed."""

from __future__ import annotations

import torch

from ..tir.isa import Isa
from ..tir.kernel import Call, Kernel, lowers
from .fuse import fuse
from .lazy import CREATORS, MOVEMENT, VIEWS
from .reduce import REDUCTIONS
from .scalar import POINTWISE


def _overloads(names: frozenset[str]) -> list[str]:
    """Every overload of these ATen operators that returns one new tensor."""
    found = []
    for name in sorted(names):
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet else ():
            if "out" in overload.split("_"):
                continue
            found.append(f"aten::{name}" + ("" if overload == "default" else f".{overload}"))
    return found


@lowers(*_overloads(POINTWISE | MOVEMENT | CREATORS | VIEWS | REDUCTIONS))
def lower_one(call: Call, isa: Isa) -> Kernel:
    """A group of one."""
    return fuse([(object(), call)], isa)
