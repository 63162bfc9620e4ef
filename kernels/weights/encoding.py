"""How weights are stored, spelled as one word: ``int4``, ``shared:256``, ``int8+2:4``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ZoomcError

#: Words a spelling may start with.
KINDS = ("keep", "int8", "int4", "shared")

#: Table entries by the bits of a code.
ENTRIES = {4: 2, 16: 4, 256: 8}

SPELLINGS = (
    "keep, int8, int4 or shared (shared:4, shared:256 for other numbers of values), and to prune"
    " +2:4, +50% (the smallest half) or +blocks50% (whole blocks), as in int4+2:4"
)


class EncodingError(ZoomcError):
    """A spelling that names no encoding."""


class NonFiniteWeightError(ZoomcError):
    """A weight with NaN or infinity in it, which no integer stands for."""


@dataclass(frozen=True)
class Pruning:
    """Which weights become zero.

    Attributes:
        pattern: ``magnitude`` (the smallest anywhere), ``2:4`` (the two smaller of every four
            consecutive input channels) or ``blocks`` (whole blocks of the smallest norm, equally
            many for all outputs).
        share: the part of the weights that goes, 0 … 1; a half for ``2:4``.
    """

    pattern: str
    share: float

    def __str__(self) -> str:
        if self.pattern == "2:4":
            return self.pattern
        return f"{'blocks' if self.pattern == 'blocks' else ''}{self.share * 100:g}%"


@dataclass(frozen=True)
class Encoding:
    """How a weight is stored.

    Attributes:
        kind: ``keep`` (as it is), ``int8`` (one scale per output channel), ``int4`` (4-bit codes
            of a uniform table) or ``shared`` (codes of a table found by k-means).
        entries: of the table: 4, 16 or 256, for 2-, 4- or 8-bit codes.
        pruning: what is set to zero before.
    """

    kind: str
    entries: int = 16
    pruning: Pruning | None = None

    @classmethod
    def parse(cls, text: str) -> Encoding:
        """The encoding of that spelling.

        Raises:
            EncodingError: it spells none.
        """
        found = re.fullmatch(
            r"(keep|int8|int4|shared)(?::(\d+))?(?:\+(?:(2:4)|(blocks)?(\d+(?:\.\d+)?)%))?", text
        )
        kind, entries, fixed, blocks, percent = found.groups() if found else [None] * 5
        count = int(entries or 16)
        wrong = entries and (kind != "shared" or count not in ENTRIES)
        if found is None or wrong or (percent and float(percent) >= 100):
            raise EncodingError(f"no encoding is called {text!r}; known: {SPELLINGS}")
        pruning = None
        if fixed:
            pruning = Pruning("2:4", 0.5)
        elif percent and float(percent) > 0:
            pruning = Pruning("blocks" if blocks else "magnitude", float(percent) / 100)
        return cls(str(kind), count, pruning)

    @property
    def code_bits(self) -> int:
        """Bits of one code; 0 for weights kept as they are."""
        return {"keep": 0, "int8": 8, "int4": 4}.get(self.kind) or (
            ENTRIES[self.entries] if self.kind == "shared" else 0
        )

    @property
    def table(self) -> bool:
        """Whether codes index a table."""
        return self.kind in ("int4", "shared")

    def __str__(self) -> str:
        entries = f":{self.entries}" if self.entries != 16 else ""
        return f"{self.kind}{entries}" + (f"+{self.pruning}" if self.pruning else "")
