"""What tuning found: a file of JSON lines, one a problem; of two for the same, the last counts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..kernels import __file__ as _kernels
from ..kernels.tir.kernel import Call, TensorSpec, Value
from .errors import TuningError


@dataclass(frozen=True)
class Problem:
    """What an entry is found by.

    Attributes:
        operator: its qualified name.
        arguments: shapes, dtypes and attributes by name, as plain values.
        encoding: how weights are stored.
        machine: what it runs on.
    """

    operator: str
    arguments: Mapping[str, Any]
    encoding: str
    machine: str

    @property
    def key(self) -> str:
        """The same text for the same problem."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Entry:
    """What was found for a problem.

    Attributes:
        problem: which.
        kernels: :func:`version` of the kernels measured.
        plan: the fastest choice's fields; None where the planner's own is the fastest.
        seconds: of a call with it.
        untuned: seconds of a call with the planner's choice, measured in turn with it.
        tried: choices measured.
    """

    problem: Problem
    kernels: str
    plan: Mapping[str, Any] | None
    seconds: float
    untuned: float
    tried: int

    def line(self) -> str:
        """The entry as the file keeps it."""
        return json.dumps(
            asdict(self.problem) | {k: v for k, v in vars(self).items() if k != "problem"}
        )


class Store:
    """Entries in a file, or in memory only.

    Args:
        path: of the file, which need not exist; None keeps nothing beyond the process.

    Raises:
        TuningError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self._entries: dict[str, Entry] = {}
        #: Lines that are no entries: cut short by a crash, or something else.
        self.damaged = 0
        if self.path is None or not self.path.exists():
            return
        try:
            lines = self.path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TuningError(
                f"the tuning file {str(self.path)!r} cannot be read: {error}"
            ) from None
        for line in lines:
            entry = _parse(line)
            if entry is None:
                self.damaged += 1
            else:
                self._entries[entry.problem.key] = entry

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, problem: Problem) -> Entry | None:
        """The entry of a problem, whatever kernels it was measured with."""
        return self._entries.get(problem.key)

    def add(self, entry: Entry) -> None:
        """Keep an entry, at once also in the file.

        Raises:
            TuningError: the file cannot be written.
        """
        self._entries[entry.problem.key] = entry
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A line before may have been cut short.
            torn = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
            with self.path.open("a") as file:
                file.write("\n" * torn + entry.line() + "\n")
        except OSError as error:
            raise TuningError(
                f"the tuning file {str(self.path)!r} cannot be written: {error}"
            ) from None


def _parse(line: str) -> Entry | None:
    try:
        fields = json.loads(line)
        problem = Problem(
            *(fields.pop(n) for n in ("operator", "arguments", "encoding", "machine"))
        )
        entry = Entry(problem, **fields)
        ok = isinstance(problem.arguments, dict) and isinstance(entry.plan, (dict, type(None)))
        return entry if ok and float(entry.seconds) and float(entry.untuned) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def open_store(choice: str) -> Store:
    """The store an option names: ``auto`` is the user's own, ``off`` none, else a path."""
    if choice == "off":
        return Store()
    return Store(default_path() if choice == "auto" else choice)


def default_path() -> Path:
    """Where the user's own store is."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "zoomc/tuning.jsonl"


@cache
def version() -> str:
    """Names the kernels' generators: a hash of their sources, which decide what a plan is worth."""
    digest = hashlib.sha256()
    folder = Path(_kernels).parent
    for source in sorted(folder.rglob("*.py")):
        digest.update(str(source.relative_to(folder)).encode() + source.read_bytes())
    return digest.hexdigest()[:12]


def problem(call: Call, machine: str) -> Problem:
    """A call as a problem on a machine."""
    arguments = {name: _plain(x) for name, x in call.args.items() if x is not None}
    return Problem(call.op, arguments, encoding(call), machine)


def encoding(call: Call) -> str:
    """How a call's weights are stored: ``keep``, ``int8``, or by the values codes stand for."""
    if call.args.get("channel_scale") is None:
        return "keep"
    table = call.args.get("table")
    return "int8" if table is None else f"{table.spec.numel} values"


def _plain(x: Any) -> Any:
    if isinstance(x, Value):
        return ("constant " if x.constant else "") + spec_text(x.spec)
    if isinstance(x, (list, tuple)):
        return [_plain(y) for y in x]
    return x if isinstance(x, (bool, int, float, str)) else str(x)


def spec_text(spec: TensorSpec) -> str:
    """``bfloat16[4096, 320]``."""
    return f"{str(spec.dtype).removeprefix('torch.')}{list(spec.shape)}"
