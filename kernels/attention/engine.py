"""What the attention loop asks of an instruction path: pack, score, keep and apply weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tvm.tirx.script import builder as T

from ..tir.kernel import TensorSpec
from ..tir.memory import from_fp32, load, load_raw, splat, to_fp32, typed
from .plan import Plan, vector_width
from .vector import settle

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Source:
    """Where one operand's heads lie: ``buffer[b, row, offset + h · dim + d]``."""

    buffer: Buffer
    rows: int
    offset: int
    dim: int

    def index(self, b: Expr, row: Expr, h: Expr, d: Expr) -> list[Expr]:
        """Index of one element."""
        return [b, row, h * self.dim + (d + self.offset)]


@dataclass(frozen=True)
class Task:
    """One query block: worker, batch, head, both as one, first query."""

    worker: Expr
    b: Expr
    h: Expr
    bh: Expr
    q0: Expr


@dataclass(frozen=True)
class KeyBlock:
    """One key block.

    Attributes:
        k0: first key.
        count: keys.
        rows: rows of scores, ``count`` rounded up to the step.
        base: the first of those rows in the buffer of scores.
    """

    k0: Expr
    count: Expr
    rows: Expr
    base: Expr


class Operands(Protocol):
    """Queries, keys and values as an instruction path reads them."""

    def begin(self, sources: tuple[Source, Source, Source], buffers: dict[str, Buffer]) -> None:
        """Take the operands and the workspace, emit the passes over all keys and values."""

    def enter(self, worker: Expr) -> None:
        """Emit what a worker does first."""

    def leave(self) -> None:
        """Emit what a worker does last."""


class Engine(Operands, Protocol):
    """An instruction path. Scores and outputs are transposed: a vector's lanes are queries.

    Attributes:
        plan: block sizes.
        step: rows of scores come in multiples of this.
        overlaps: the scores of the next key block are computed while this one's are turned into
            weights, ``step`` rows at a time: on an engine beside the vector units both run at
            once. Scores then have two buffers.
    """

    plan: Plan
    step: int
    overlaps: bool = False

    def scratch(self) -> dict[str, TensorSpec]:
        """Workspace by name; :meth:`begin` gets the buffers."""

    def pack_query(self, task: Task) -> None:
        """Emit the transposition of a query block, its missing rows filled with anything."""

    def score(self, task: Task, block: KeyBlock) -> None:
        """Emit ``scores[worker, key, query] = k · q`` for all rows of the block."""

    def score_step(self, task: Task, block: KeyBlock, step: Expr, strip: Expr) -> None:
        """Emit one step of rows of one strip of queries; asked only if it overlaps."""
        raise AssertionError(f"{type(self).__name__} computes no scores ahead")

    def keep(
        self, task: Task, two: Expr, column: Expr, first: Expr, second: Expr, total: Expr
    ) -> Expr:
        """Emit the storing of weights of keys ``2·two`` and ``2·two + 1``; returns total + both.

        ``column`` is the first of a vector of queries. What is added is what was stored, so that
        rounding cancels in the normalisation as far as it can.
        """

    def apply(self, task: Task, block: KeyBlock) -> None:
        """Emit ``output[worker, d, query] += vᵀ · weights``."""


# --- shared between engines --------------------------------------------------------------------


def pieces(source: Source, index: list[Expr], lanes: int, count: int, sign: float) -> list[Expr]:
    """Elements times ``sign`` as ``count`` bf16 words (uint16 lanes), most significant first.

    The sum of the words is the element to ``8 · count`` bits. ``sign`` is -1, 0 or 1.
    """
    buffer = source.buffer
    if count == 1 and buffer.dtype == "uint16" and sign == 1:
        return [load_raw(buffer, index, lanes)]
    rest = load(buffer, index, lanes)
    if sign != 1:
        rest = rest * splat(T.float32(sign), lanes)
    words = []
    for i in range(count):
        rest = settle(rest, "float32", lanes)
        words.append(settle(from_fp32(rest, "uint16", lanes), "uint16", lanes))
        if i + 1 < count:
            rest = rest - to_fp32(words[-1], "uint16", lanes)
    return words


def guarded(inside: Expr | None, values: list[Expr], dtype: str, lanes: int) -> list[Expr]:
    """The values where the condition holds, else zero; no condition always holds."""
    if inside is None:
        return values
    zero = splat(T.Cast(dtype, T.int32(0)), lanes)
    return [T.Select(splat(inside, lanes), value, zero) for value in values]


def chunks(dim: int, width: int, lanes: int) -> tuple[int, int, bool]:
    """How a head is walked: vector width, blocks of ``width``, whether the last is partial."""
    return vector_width(dim, lanes), -(-dim // width), dim % width != 0


def fill(buffer: Buffer, index: list[Expr], extent: int, lanes: int, value: Expr) -> None:
    """Emit a loop that sets ``extent`` consecutive elements, a multiple of ``lanes``."""
    with T.serial(extent // lanes) as i:
        last = T.ramp(index[-1] + i * lanes, 1, lanes)
        T.buffer_store(buffer, splat(value, lanes), [*index[:-1], last])


__all__ = [
    "Engine",
    "KeyBlock",
    "Operands",
    "Source",
    "Task",
    "chunks",
    "fill",
    "guarded",
    "pieces",
    "typed",
]
