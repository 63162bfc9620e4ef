"""Telling people how far a zoom is; silent by default."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter:
    """What a zoom tells about itself; this one keeps silent. Use it in a ``with`` statement."""

    def note(self, text: str) -> None:
        """Something worth a line, such as a value that was rounded."""

    def keyframes(self, total: int, done: int) -> None:
        """Painting begins: ``total`` keyframes, ``done`` of them at hand."""

    def step(self, keyframe: int, done: int, total: int) -> None:
        """``done`` of ``total`` denoising steps of keyframe ``keyframe`` (from 1) are done."""

    def frames(self, total: int) -> None:
        """Writing begins."""

    def frame(self) -> None:
        """One more frame is written."""

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""


class TerminalReporter(Reporter):
    """Bars on a terminal; elsewhere (a file, a build log) one line a keyframe.

    Args:
        console: where to write; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._total = 0
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def keyframes(self, total: int, done: int) -> None:
        """Start the bar; its unit is one keyframe."""
        self._total, self._began = total, time.monotonic()
        self._task = self._bars.add_task("keyframes", total=total, completed=done, detail="")

    def step(self, keyframe: int, done: int, total: int) -> None:
        """Move the bar by parts of a keyframe."""
        if self._task is not None:
            self._bars.update(
                self._task,
                completed=keyframe - 1 + done / total,
                detail=f"step {done}/{total}" if done < total else "",
            )
        if done == total and not self._console.is_terminal:
            elapsed = time.monotonic() - self._began
            self.note(f"keyframe {keyframe}/{self._total} ({elapsed:.1f} s)")

    def frames(self, total: int) -> None:
        """Start the second bar."""
        self._task = self._bars.add_task("frames", total=total, detail="")
        if not self._console.is_terminal:
            self.note(f"writing {total} frames")

    def frame(self) -> None:
        """Move the second bar."""
        if self._task is not None:
            self._bars.advance(self._task)

    def __enter__(self) -> Reporter:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the bars."""
        self._bars.stop()
