"""Parts of the GPU benchmark in processes of their own: what breaks one, breaks no other.

A kernel that reads where it may not leaves its process no GPU. So every part is a program that
writes down what it found as it goes, and which item it is at; whoever started it starts it again
without an item that ended it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_machine import DryRun, Gpu

#: Seconds after which a process counts as hung.
LIMIT = 5400


@dataclass
class Notes:
    """What a part found, kept in a file.

    Attributes:
        found: whatever it likes, as JSON.
        failed: item → why there is nothing of it.
        item: the one it is at.
    """

    machine: Gpu
    path: Path
    found: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    item: str = ""

    def keep(self) -> None:
        """Write it all down; who reads meanwhile sees a whole file."""
        text = json.dumps({"found": self.found, "failed": self.failed, "item": self.item})
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)

    @contextlib.contextmanager
    def at(self, item: str) -> Iterator[None]:
        """An item: its error is noted and the next one's turn comes, if the GPU still answers."""
        self.item = item
        self.keep()
        try:
            yield
            self.machine.wait()
        except Exception as error:
            traceback.print_exc()
            text = str(error).strip().splitlines() or [""]
            self.failed[item] = f"{type(error).__name__}: {text[0]}"
            self.keep()
            self.machine.wait()
        self.keep()


def serve(work: Callable[..., None]) -> None:
    """Be such a process: ``work(machine, notes, **arguments)``."""
    arguments = json.loads(sys.argv[1])
    machine = DryRun() if arguments.pop("dry") else Gpu()
    if machine.dry:
        from interpreting import prepare

        prepare()
    notes = Notes(machine, Path(sys.argv[2]))
    work(machine, notes, **arguments)
    notes.item = ""
    notes.keep()


@dataclass
class Ended:
    """How a process ended: what it wrote down, why it ended early if it did, what it printed."""

    found: dict[str, Any]
    failed: dict[str, str]
    item: str
    why: str = ""
    output: str = ""


def apart(
    machine: Gpu, script: str, arguments: dict[str, Any], before: Sequence[str] = ()
) -> Ended:
    """Run a part in a process of its own.

    Args:
        machine: the GPU.
        script: a file that serves.
        arguments: of its work.
        before: a command that runs it, whose output is caught.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "found.json")
        given = json.dumps(arguments | {"dry": machine.dry})
        command = [*before, sys.executable, script, given, str(path)]
        why, output = "", b""
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE if before else None, check=False, timeout=LIMIT
            )
            output = done.stdout or b""
            if done.returncode:
                why = f"its process ended with status {done.returncode}"
        except subprocess.TimeoutExpired as error:
            why, output = f"not done after {LIMIT} s", error.stdout or b""
        except OSError as error:
            why = f"it cannot be started: {error}"
        kept: dict[str, Any] = {"found": {}, "failed": {}, "item": ""}
        if path.exists():
            kept = json.loads(path.read_text())
        return Ended(**kept, why=why, output=output.decode(errors="replace"))


def persist(machine: Gpu, script: str, names: Sequence[str], arguments: dict[str, Any]) -> Ended:
    """Run a part over items, again without each that ends its process."""
    left, failed = list(names), {}
    while True:
        ended = apart(machine, script, arguments | {"names": left})
        failed |= ended.failed
        ended.failed = failed
        if not ended.why:
            return ended
        culprit = ended.item
        failed.setdefault(culprit or "the process", ended.why)
        if culprit not in left or len(left) == 1:
            return ended
        print(f"{culprit} ended the process ({failed[culprit]}); again without", flush=True)
        left.remove(culprit)
