"""Attention operands as pairs of bf16, what both bf16 engines compute on."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from tvm.tirx.script import builder as T
from typing_extensions import override

from ..tir.memory import splat, typed
from .engine import Engine, Source, Task, guarded, pieces
from .plan import Plan, vector_width
from .vector import get, put, transpose

Expr = Any
Buffer = Any

CHUNK = 32  # elements of a head, or keys, in one row of pairs: 64 bytes
_TILE = 16


class Packing:
    """Copies heads as bf16 words, ``count`` of them for an element."""

    def __init__(self, plan: Plan, sign: float, count: int) -> None:
        self.plan = plan
        self.sign = sign
        self.count = count
        self.width = vector_width(plan.dim, 16)
        self.chunks = -(-plan.dim // CHUNK)
        self.tiles = -(-plan.dim // _TILE)

    def copy_row(
        self, source: Source, b: Expr, row: Expr, h: Expr, sign: float, inside: Expr | None, to: Any
    ) -> None:
        """Copy one row of a head as words: ``to(piece, chunk, j)`` is (buffer, index)."""
        zero = splat(T.uint16(0), self.width)

        def copy(chunk: Expr, j: int) -> None:
            at = source.index(b, row, h, chunk * CHUNK + j)
            words = pieces(source, at, self.width, self.count, sign)
            for piece, word in enumerate(guarded(inside, words, "uint16", self.width)):
                buffer, index = to(piece, chunk, j)
                put(buffer, index, word, self.width)

        full, rest = divmod(self.plan.dim, CHUNK)
        if full:
            with T.serial(full) as chunk:
                for j in range(0, CHUNK, self.width):
                    copy(chunk, j)
        for j in range(0, CHUNK if rest else 0, self.width):
            if j < rest:
                copy(full, j)
            else:
                for piece in range(self.count):
                    buffer, index = to(piece, full, j)
                    put(buffer, index, zero, self.width)

    def stage_rows(
        self, source: Source, b: Expr, h: Expr, sign: float, row: Any, inside: Any = None
    ) -> Buffer:
        """Copy the rows ``row(i)``, zero unless ``inside(i)``, to ``[word][chunk][16][32]``."""
        n = _TILE
        stage = T.alloc_buffer((self.count, self.chunks, n, CHUNK), "uint16", scope="local")
        with T.serial(n) as i:
            self.copy_row(
                source,
                b,
                T.bind(row(i)),
                h,
                sign,
                inside(i) if inside else None,
                lambda piece, chunk, j: (stage, [piece, chunk, i, j]),
            )
        return stage

    def transposed(self, stage: Buffer, to: Any) -> None:
        """Transpose staged rows as 16 pairs by 16: ``to(word, chunk, i, pairs)`` stores pair i."""
        with T.serial(self.count) as piece, T.serial(self.chunks) as c:
            transpose(
                lambda i: T.reinterpret("int32x16", get(stage, [piece, c, i, 0], CHUNK)),
                lambda i, v: to(piece, c, i, v),
                _TILE,
            )

    def pack_values(self, source: Source, bh: Expr, chunk: Expr, put_values: Any) -> None:
        """Pairs of keys, 16 elements at a time: ``put_values(tile, stage)`` stores them."""
        p, width = self.plan, self.width
        wide = typed("int32", width)
        partial = p.padded_keys != p.keys

        def pair_rows(stage: Buffer, i: Expr, d: Expr, j: int) -> None:
            words = []
            for half in range(2):
                key = chunk * CHUNK + i * 2 + half
                row = T.min(key, p.keys - 1) if partial else key
                at = source.index(bh // p.heads, row, bh % p.heads, d + j)
                got = pieces(source, at, width, self.count, 1.0)
                words.append(guarded(key < p.keys if partial else None, got, "uint16", width))
            for piece in range(self.count):
                low, high = (T.Cast(wide, T.Cast(typed("uint32", width), w[piece])) for w in words)
                both = T.bitwise_or(low, T.shift_left(high, splat(T.int32(16), width)))
                put(stage, [piece, i, j], both, width)

        def tile(index: Expr, inside: int) -> None:
            stage = T.alloc_buffer((self.count, _TILE, _TILE), "int32", scope="local")
            with T.serial(_TILE) as i:
                for j in range(0, _TILE, width):
                    if j < inside:
                        pair_rows(stage, i, index * _TILE, j)
                    else:
                        for piece in range(self.count):
                            put(stage, [piece, i, j], splat(T.int32(0), width), width)
            put_values(index, stage)

        full, rest = divmod(p.dim, _TILE)
        if full:
            with T.serial(full) as t:
                tile(t, _TILE)
        if rest:
            tile(full, rest)


class Packed(Packing, Engine):
    """Packs 32-bit pairs of bf16: of neighbouring elements for q and k, of keys for v.

    A subclass says where they go.
    """

    step = CHUNK

    @override
    def begin(self, sources: tuple[Source, Source, Source], buffers: dict[str, Buffer]) -> None:
        p = self.plan
        self.query, key, value = sources
        self.buffers = buffers
        with T.parallel(p.batch * p.heads * (p.padded_keys // CHUNK)) as i:
            bh = T.bind(i // (p.padded_keys // CHUNK))
            chunk = T.bind(i % (p.padded_keys // CHUNK))
            with T.serial(CHUNK) as r:
                self._pack_key(key, bh, chunk * CHUNK + r)
            self.pack_values(
                value, bh, chunk, lambda t, stage: self.put_values(bh, chunk, t, stage)
            )

    @override
    def enter(self, worker: Expr) -> None:
        """Nothing to prepare."""

    @override
    def leave(self) -> None:
        """Nothing to release."""

    @abstractmethod
    def key_at(self, piece: int, bh: Expr, key: Expr, chunk: Expr, j: int) -> list[Expr]:
        """Index of element ``32 · chunk + j`` of a key in the buffer ``key``, of uint16."""

    @abstractmethod
    def put_query(self, piece: Expr, task: Task, s: Expr, chunk: Expr, i: int, row: Expr) -> None:
        """Store pair i of a chunk of the 16 queries from ``16 · s``."""

    @abstractmethod
    def put_values(self, bh: Expr, chunk: Expr, tile: Expr, stage: Buffer) -> None:
        """Store ``stage[piece, pair of keys, 16 elements]`` of a chunk of keys."""

    @override
    def pack_query(self, task: Task) -> None:
        p, n = self.plan, _TILE
        with T.serial(p.block_q // n) as s:
            stage = self.stage_rows(
                self.query,
                task.b,
                task.h,
                self.sign,
                lambda i: T.min(task.q0 + s * n + i, p.queries - 1),
            )
            self.transposed(stage, lambda piece, c, i, v: self.put_query(piece, task, s, c, i, v))

    def _pack_key(self, source: Source, bh: Expr, key: Expr) -> None:
        p = self.plan
        partial = p.padded_keys != p.keys
        row = T.bind(T.min(key, p.keys - 1)) if partial else key
        self.copy_row(
            source,
            bh // p.heads,
            row,
            bh % p.heads,
            1.0,
            key < p.keys if partial else None,
            lambda piece, chunk, j: (self.buffers["key"], self.key_at(piece, bh, key, chunk, j)),
        )
