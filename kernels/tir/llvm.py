"""LLVM IR text that kernels link in, for what TIR cannot say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T


@dataclass(frozen=True)
class Text:
    """One LLVM function: its name, unique to its code, and the IR that defines it."""

    name: str
    ir: str


def imported(texts: Iterable[str]) -> Any:
    """A scope in which the functions of these IR texts can be called with ``call_extern``.

    TVM inlines them into their callers, which must have the processor features they use.
    """
    return T.attr(0, "pragma_import_llvm", "\n".join(dict.fromkeys(texts)))


def attributes(features: Sequence[str]) -> str:
    """The attribute group ``#0`` of functions that use processor features."""
    joined = ",".join(f"+{f}" for f in features)
    listed = f' "target-features"="{joined}"' if features else ""
    return f"attributes #0 = {{ alwaysinline nounwind{listed} }}\n"


def loop_without_unrolling() -> str:
    """Metadata ``!0`` for a loop's branch that LLVM must leave as it is."""
    return '!0 = distinct !{!0, !1}\n!1 = !{!"llvm.loop.unroll.disable"}\n'
