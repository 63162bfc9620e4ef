"""What a Linux machine says of its processor, this one's or another's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_CACHES = "/sys/devices/system/cpu/cpu0/cache/index"

#: Gives a system file's text; OSError where there is none.
Read = Callable[[str], str]


@dataclass(frozen=True)
class Processor:
    """A processor.

    Attributes:
        name: as its maker calls it, or its numbers; "" where the system does not say.
        flags: feature flags (x86) or features (Arm) as ``/proc/cpuinfo`` spells them.
        l1: bytes of one core's first-level data cache; 0 where the system does not say.
        l2: bytes of one core's second-level cache; 0 where the system does not say.
    """

    name: str
    flags: frozenset[str]
    l1: int
    l2: int

    @classmethod
    def of(cls, read: Read) -> Processor:
        """The processor of the machine whose files ``read`` reads."""
        facts: dict[str, str] = {}
        with contextlib.suppress(OSError):
            for line in read("/proc/cpuinfo").splitlines():
                name, _, value = line.partition(":")
                facts.setdefault(name.strip(), value.strip())
        flags = frozenset(facts.get("flags", facts.get("Features", "")).split())
        numbers = (f"{n} {facts[n]}" for n in ("CPU implementer", "CPU part") if n in facts)
        name = facts.get("model name") or ", ".join(numbers)  # Arm's kernels know numbers only
        return cls(name, flags, _cache(read, 1), _cache(read, 2))


def _cache(read: Read, level: int) -> int:
    for index in range(8):
        try:
            if read(f"{_CACHES}{index}/type").strip() == "Instruction":
                continue
            if int(read(f"{_CACHES}{index}/level")) == level:
                return int(read(f"{_CACHES}{index}/size").strip().removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return 0


@cache
def here() -> Processor:
    """This machine's."""
    return Processor.of(lambda path: Path(path).read_text())
