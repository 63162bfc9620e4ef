"""Attention on AMX tiles, bf16 products; other dtypes as sums of bf16 pieces."""

from __future__ import annotations

from typing import Any

import torch
from tvm.tirx.script import builder as T
from typing_extensions import override

from ..tir.kernel import TensorSpec
from ..tir.memory import splat
from .engine import KeyBlock, Task
from .packed import Packed
from .vector import (
    dot,
    get,
    pair,
    put,
    settle,
    tile,
    tile_configure,
    tile_load,
    tile_store,
    transpose,
)

Expr = Any
Buffer = Any

_ONES = 0x3F803F80  # a pair of bf16 ones
_HIGH = -0x10000  # the half of an fp32 that bf16 keeps

#: bf16 pieces that hold a dtype's mantissa. fp16 has 11 bits, fp32 has 24.
PIECES = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}


def products(count: int) -> list[tuple[int, int]]:
    """Pairs of pieces whose products matter at fp32, smallest first so that they round least.

    Piece i is about ``2^(-8 i)``: what is left out is about ``2^-24``.
    """
    pairs = [(a, b) for a in range(count) for b in range(count) if a + b <= 2]
    return sorted(pairs, key=sum, reverse=True)


class Tiles(Packed):
    """Tile products: keys times queries, and transposed values times weights.

    Every tile lies contiguous: 16 rows of 16 pairs.
    """

    overlaps = True

    @override
    def scratch(self) -> dict[str, TensorSpec]:
        p, n = self.plan, self.count
        heads, keys, queries = p.batch * p.heads, p.padded_keys, p.block_q // 16
        specs = {
            "key": TensorSpec((heads, n, keys // 16, self.chunks, 16, 32), torch.bfloat16),
            "value": TensorSpec((heads, n, self.tiles, keys // 32, 16, 16), torch.int32),
            "query": TensorSpec((p.threads, n, queries, self.chunks, 16, 16), torch.int32),
            "weights": TensorSpec((p.threads, n, p.block_k // 32, queries, 16, 16), torch.int32),
            "palette": TensorSpec((p.threads, 64), torch.uint8),
        }
        if n > 1:
            specs["partial"] = TensorSpec((p.threads, 32, 32), torch.float32)
        return specs

    @override
    def enter(self, worker: Expr) -> None:
        tile_configure(self.buffers["palette"], worker)

    @override
    def leave(self) -> None:
        tile("tilerelease")

    @override
    def key_at(self, piece: int, bh: Expr, key: Expr, chunk: Expr, j: int) -> list[Expr]:
        return [bh, piece, key // 16, chunk, key % 16, j]

    @override
    def put_query(self, piece: Expr, task: Task, s: Expr, chunk: Expr, i: int, row: Expr) -> None:
        put(self.buffers["query"], [task.worker, piece, s, chunk, i, 0], row, 16)

    @override
    def put_values(self, bh: Expr, chunk: Expr, index: Expr, stage: Buffer) -> None:
        with T.serial(self.count) as piece:
            transpose(
                lambda i: get(stage, [piece, i, 0], 16),
                lambda i, v: put(self.buffers["value"], [bh, piece, index, chunk, i, 0], v, 16),
                16,
            )

    def _multiply(self, steps: int | Expr, rows: int, left: Any, right: Any) -> None:
        """Tiles 0 to 3 += up to 2 × 2 products; ``left(piece, step, i)`` is (buffer, index)."""
        pairs = products(self.count)

        def piece(which: int, i: Expr) -> Expr:
            # Two bits a product in one constant: a loop, where unrolled code is slow to compile.
            if len(pairs) == 1:
                return 0
            table = sum(pair[which] << (2 * n) for n, pair in enumerate(pairs))
            return T.bind(T.bitwise_and(T.shift_right(T.int32(table), i * 2), T.int32(3)))

        with T.serial(len(pairs)) as i:
            a, b = piece(0, i), piece(1, i)
            with T.serial(steps) as step:
                for j in range(2):
                    tile_load(6 + j, *right(b, step, j))
                for j in range(rows):
                    tile_load(4 + j, *left(a, step, j))
                    for k in range(2):
                        tile("tdpbf16ps", T.int8(2 * j + k), T.int8(4 + j), T.int8(6 + k))

    @override
    def score(self, task: Task, block: KeyBlock) -> None:
        with T.serial(block.rows // 32) as step, T.serial(self.plan.block_q // 32) as strip:
            self.score_step(task, block, step, strip)

    @override
    def score_step(self, task: Task, block: KeyBlock, step: Expr, strip: Expr) -> None:
        p, b, w = self.plan, self.buffers, task.worker
        for register in range(4):
            tile("tilezero", T.int8(register))
        self._multiply(
            self.chunks,
            2,
            lambda a, c, i: (b["key"], [task.bh, a, block.k0 // 16 + step * 2 + i, c, 0, 0]),
            lambda a, c, j: (b["query"], [w, a, strip * 2 + j, c, 0, 0]),
        )
        for i in range(2):
            for j in range(2):
                to = [w, block.base + step * 32 + i * 16, strip * 32 + j * 16]
                tile_store(2 * i + j, b["scores"], to, p.block_q * 4)

    @override
    def keep(
        self, task: Task, two: Expr, column: Expr, first: Expr, second: Expr, total: Expr
    ) -> Expr:
        def save(piece: int, both: Expr) -> None:
            at = [task.worker, piece, two // 16, column // 16, two % 16, 0]
            put(self.buffers["weights"], at, both, 16)

        if self.count == 1:
            both = T.bind(pair(first, second))
            save(0, both)
            return dot(total, both, splat(T.int32(_ONES), 16))
        total = T.bind(total + (first + second))
        for piece in range(self.count - 1):
            # Cut, not rounded: what is left is exact, and the last piece holds the rest.
            heads = []
            for x in (first, second):
                bits = T.bitwise_and(T.reinterpret("int32x16", x), splat(T.int32(_HIGH), 16))
                heads.append(T.bind(bits))
            low = T.shift_right(T.reinterpret("uint32x16", heads[0]), splat(T.uint32(16), 16))
            save(piece, T.bitwise_or(T.reinterpret("int32x16", low), heads[1]))
            first, second = (
                settle(x - T.reinterpret("float32x16", head), "float32", 16)
                for x, head in zip((first, second), heads, strict=True)
            )
        save(self.count - 1, pair(first, second))
        return total

    @override
    def apply(self, task: Task, block: KeyBlock) -> None:
        with T.serial(self.plan.block_q // 32) as s:
            if self.tiles > 1:
                with T.serial(self.tiles // 2) as t:
                    self._outputs(task, block, t * 2, s, 2)
            if self.tiles % 2:
                self._outputs(task, block, self.tiles - 1, s, 1)

    def _outputs(self, task: Task, block: KeyBlock, first: Expr, s: Expr, rows: int) -> None:
        """One or two tiles of elements for 32 queries."""
        p, b, w = self.plan, self.buffers, task.worker
        exact = self.count > 1
        target, stride = (b["partial"], 128) if exact else (b["output"], p.block_q * 4)

        def at(i: int, j: int) -> list[Expr]:
            if exact:
                return [w, i * 16, j * 16]
            return [w, (first + i) * 16, s * 32 + j * 16]

        for i in range(rows):
            for j in range(2):
                if exact:
                    tile("tilezero", T.int8(2 * i + j))
                else:
                    tile_load(2 * i + j, target, at(i, j), stride)
        self._multiply(
            block.rows // 32,
            rows,
            lambda a, c, i: (b["value"], [task.bh, a, first + i, block.k0 // 32 + c, 0, 0]),
            lambda a, c, j: (b["weights"], [w, a, c, s * 2 + j, 0, 0]),
        )
        for i in range(rows):
            for j in range(2):
                tile_store(2 * i + j, target, at(i, j), stride)
        if exact:
            # A block's own sum first: rounding grows with the number of terms in one sum.
            with T.serial(16 * rows) as r:
                for j in range(2):
                    to = [w, first * 16 + r, s * 32 + j * 16]
                    value = get(b["output"], to, 16) + get(target, [w, r, j * 16], 16)
                    put(b["output"], to, value, 16)
