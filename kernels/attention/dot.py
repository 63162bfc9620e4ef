"""Attention on ``vdpbf16ps``: a pair of one key's bf16 elements, broadcast, at a time."""

from __future__ import annotations

from typing import Any

import torch
from tvm.tirx.script import builder as T
from typing_extensions import override

from ..tir.kernel import TensorSpec
from ..tir.memory import splat
from .engine import KeyBlock, Task
from .packed import CHUNK, Packed
from .plan import Plan
from .vector import dot, get, pair, put

Expr = Any
Buffer = Any

_ONES = 0x3F803F80  # a pair of bf16 ones
_ROWS = 8  # rows of accumulators, two vectors each


class Dot(Packed):
    """bf16 products of pairs, fp32 sums."""

    def __init__(self, plan: Plan, sign: float) -> None:
        super().__init__(plan, sign, 1)

    @override
    def scratch(self) -> dict[str, TensorSpec]:
        p = self.plan
        heads = p.batch * p.heads
        return {
            "key": TensorSpec((heads, p.padded_keys, self.chunks * CHUNK), torch.bfloat16),
            "value": TensorSpec((heads, p.padded_keys // 2, self.tiles * 16), torch.int32),
            "query": TensorSpec((p.threads, self.chunks * 16, p.block_q), torch.int32),
            "weights": TensorSpec((p.threads, p.block_k // 2, p.block_q), torch.int32),
        }

    @override
    def key_at(self, piece: int, bh: Expr, key: Expr, chunk: Expr, j: int) -> list[Expr]:
        return [bh, key, chunk * CHUNK + j]

    @override
    def put_query(self, piece: Expr, task: Task, s: Expr, chunk: Expr, i: int, row: Expr) -> None:
        put(self.buffers["query"], [task.worker, chunk * 16 + i, s * 16], row, 16)

    @override
    def put_values(self, bh: Expr, chunk: Expr, tile: Expr, stage: Buffer) -> None:
        with T.serial(16) as i:
            value = get(stage, [0, i, 0], 16)
            put(self.buffers["value"], [bh, chunk * 16 + i, tile * 16], value, 16)

    def _tile(self, steps: Expr, row: Any, column: Any, out: Any) -> None:
        """Eight broadcast rows against two vectors; ``out(i, j, sum)`` takes the results."""
        acc = T.alloc_buffer((_ROWS, 32), "float32", scope="local")
        for i in range(_ROWS):
            for j in range(2):
                put(acc, [i, j * 16], splat(T.float32(0), 16), 16)
        with T.serial(steps) as step:
            columns = [T.bind(column(step, j)) for j in range(2)]
            for i in range(_ROWS):
                value = T.bind(splat(row(step, i), 16))
                for j in range(2):
                    put(acc, [i, j * 16], dot(get(acc, [i, j * 16], 16), columns[j], value), 16)
        for i in range(_ROWS):
            for j in range(2):
                out(i, j, get(acc, [i, j * 16], 16))

    @override
    def score(self, task: Task, block: KeyBlock) -> None:
        p, b, w = self.plan, self.buffers, task.worker
        with T.serial(block.rows // _ROWS) as kt, T.serial(p.block_q // 32) as s:
            self._tile(
                (p.dim + 1) // 2,
                lambda d, i: T.reinterpret(
                    "int32", get(b["key"], [task.bh, block.k0 + kt * _ROWS + i, d * 2], 2)
                ),
                lambda d, j: get(b["query"], [w, d, s * 32 + j * 16], 16),
                lambda i, j, x: put(b["scores"], [w, kt * _ROWS + i, s * 32 + j * 16], x, 16),
            )

    @override
    def keep(
        self, task: Task, two: Expr, column: Expr, first: Expr, second: Expr, total: Expr
    ) -> Expr:
        both = T.bind(pair(first, second))
        put(self.buffers["weights"], [task.worker, two, column], both, 16)
        return dot(total, both, splat(T.int32(_ONES), 16))

    @override
    def apply(self, task: Task, block: KeyBlock) -> None:
        p, b, w = self.plan, self.buffers, task.worker
        with T.serial(self.tiles * 16 // _ROWS) as dt, T.serial(p.block_q // 32) as s:

            def add(i: int, j: int, x: Expr) -> None:
                at = [w, dt * _ROWS + i, s * 32 + j * 16]
                put(b["output"], at, get(b["output"], at, 16) + x, 16)

            self._tile(
                block.rows // 2,
                lambda k, i: b["value"][task.bh, block.k0 // 2 + k, dt * _ROWS + i],
                lambda k, j: get(b["weights"], [w, k, s * 32 + j * 16], 16),
                add,
            )
