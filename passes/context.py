"""What a run of the passes is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx


@dataclass
class Context:
    """The settings of one run.

    Attributes:
        dtype: floating type to compute in; None keeps the model's own.
        fuel: how many rewrites may still happen; None means no limit. Counted down, so a wrong
            result can be bisected to the one rewrite that causes it.
        dump: folder that receives the graph's text after every pass.
        validate: called with the graph before the first pass and after each; returns the
            relative error of its outputs against the first call's.
    """

    dtype: torch.dtype | None = None
    fuel: int | None = None
    dump: Path | None = None
    validate: Callable[[fx.GraphModule], float] | None = None

    def spend(self) -> bool:
        """Ask for one rewrite; False once the fuel is used up."""
        if self.fuel is None:
            return True
        if self.fuel <= 0:
            return False
        self.fuel -= 1
        return True


@dataclass
class PassRecord:
    """What one pass did: rewrites by rule, milliseconds, nodes left, error if validated."""

    name: str
    hits: dict[str, int] = field(default_factory=dict)
    milliseconds: float = 0.0
    nodes: int = 0
    error: float | None = None

    def hit(self, rule: str) -> None:
        """Count one application of ``rule``."""
        self.hits[rule] = self.hits.get(rule, 0) + 1


@dataclass
class Trace:
    """What every pass did, in order."""

    passes: list[PassRecord] = field(default_factory=list)

    @property
    def rewrites(self) -> int:
        """Rewrites in all: the fuel that repeats this run."""
        return sum(sum(record.hits.values()) for record in self.passes)

    def hits(self, rule: str) -> int:
        """How often the rule of that name applied, over all passes."""
        return sum(record.hits.get(rule, 0) for record in self.passes)

    def __str__(self) -> str:
        lines = []
        for record in self.passes:
            error = "" if record.error is None else f"  error {record.error:.1e}"
            lines.append(
                f"{record.name}: {record.nodes} nodes, {record.milliseconds:.0f} ms{error}"
            )
            lines += [f"  {count:5d}  {rule}" for rule, count in record.hits.items()]
        return "\n".join(lines)
