"""Time stamps between a kernel's stages, so that a profile can tell what rides in a kernel.

A kernel of a convolution also gathers its norm's statistics and quantises. Every call stores the
processor's time stamp counter between those stages, four instructions in all, and
:meth:`zoomc.targets.tvm.executable.GraphExecutable.profile` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from .isa import Isa
from .kernel import TensorSpec, Value

NORM = "norm"
PREPARE = "prepare"
QUANTISE = "quantise"
PRODUCT = "product"

_NAME = "stamps"


@dataclass(frozen=True)
class Stages:
    """The stages of one kernel, in order.

    Attributes:
        reads: bytes of the call's inputs that a stage reads once, by its name: all that come
            before the product read them. Empty where no program may read a counter.
    """

    reads: dict[str, int]

    @classmethod
    def of(cls, isa: Isa, inputs: Sequence[Value], *before: str) -> Stages:
        """Those of a product on a path, after the stages that read its inputs."""
        # All paths of 8 lanes and more are x86's. Arm's counter is for the operating system.
        if isa.lanes < 8:
            return cls({})
        nbytes = sum(value.spec.nbytes for value in inputs)
        return cls(dict.fromkeys(before, nbytes) | {PRODUCT: 0 if before else nbytes})

    @property
    def names(self) -> tuple[str, ...]:
        """Of the stages."""
        return tuple(self.reads)

    def scratch(self) -> dict[str, TensorSpec]:
        """Workspace: where each stage began, and the last one's end. It is a kernel's first."""
        return {_NAME: TensorSpec((len(self.names) + 1,), torch.int64)} if self.names else {}

    def begin(self, name: str, named: Mapping[str, Any]) -> None:
        """Emit the stamp of a stage's beginning; ``named`` holds the workspace."""
        if self.names:
            self._stamp(self.names.index(name), named)

    def end(self, named: Mapping[str, Any]) -> None:
        """Emit the last stage's end."""
        if self.names:
            self._stamp(len(self.names), named)

    def _stamp(self, index: int, named: Mapping[str, Any]) -> None:
        now = T.call_llvm_intrin("int64", "llvm.readcyclecounter")
        T.buffer_store(named[_NAME], now, [index])


def parts(names: Sequence[str], stamps: Sequence[int]) -> dict[str, float]:
    """Each stage's part of a call's time, by its stamps."""
    whole = max(stamps[-1] - stamps[0], 1)
    spans = zip(names, stamps[:-1], stamps[1:], strict=True)
    return {name: (stop - start) / whole for name, start, stop in spans}
