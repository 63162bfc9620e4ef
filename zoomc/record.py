"""What the compiler decided about one graph, and who is told."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .options import Options
from .targets.profile import Profile

if TYPE_CHECKING:
    import torch
    from torch import fx

    from .passes import Trace
    from .targets import Executable

#: ``debug`` level from which kernels are timed.
PROFILE_LEVEL = 2

#: Who collects records, and whether they want kernels timed.
_collectors: list[tuple[list[Record], bool]] = []


class Record:
    """Everything decided while one graph was compiled for one set of shapes.

    Attributes:
        options: the compiler's options.
        seconds: time by stage; a target adds its own stages under ``target.*``.
        trace: what each pass did.
        graph: the graph after the passes.
        executable: what the target made, with its ``report``.
        fallbacks: nodes left to eager, with reasons.
        validation: each kernel's error against its reference, where asked for.
        profile: each kernel's seconds a step, where asked for.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.seconds: dict[str, float] = {}
        self.trace: Trace | None = None
        self.graph: fx.GraphModule | None = None
        self.executable: Executable | None = None
        self.fallbacks: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []
        self.profile = Profile()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book the time of the block under a stage's name."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def finish(self, graph: fx.GraphModule, executable: Executable) -> None:
        """Note the outcome."""
        self.graph = graph
        self.executable = executable
        self.fallbacks = executable.report["fallbacks"]

    def inspect(self, inputs: Sequence[torch.Tensor]) -> None:
        """Validate and time the kernels on these inputs, where the options ask for it."""
        if self.options.validate:
            self.validation = self.executable.validate(*inputs)  # type: ignore[union-attr]
        if self.options.debug >= PROFILE_LEVEL or any(profile for _, profile in _collectors):
            self.profile = self.executable.profile(*inputs)  # type: ignore[union-attr]

    def fail(self, reason: str) -> None:
        """Note that the whole graph runs in eager."""
        self.fallbacks = [{"node": "(graph)", "operator": "(graph)", "reason": reason}]


@contextlib.contextmanager
def collect(profile: bool = False) -> Iterator[list[Record]]:
    """Collect the records of everything compiled inside the block, kernels timed if ``profile``."""
    collector: tuple[list[Record], bool] = ([], profile)
    _collectors.append(collector)
    try:
        yield collector[0]
    finally:
        _collectors[:] = [other for other in _collectors if other is not collector]


def announce(record: Record) -> None:
    """Hand a finished record to whoever collects, and to the user who asked for debug output."""
    for records, _ in _collectors:
        records.append(record)
    if record.options.debug or record.options.validate:
        from .report import Report

        print(Report([record]).text(max(record.options.debug, 1)), file=sys.stderr)
