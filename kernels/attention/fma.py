"""Attention on fp32 multiply-adds, for any vector length: one key's element at a time, broadcast
against vectors of queries."""

from __future__ import annotations

from typing import Any

import torch
from tvm.tirx.script import builder as T
from typing_extensions import override

from ..tir.kernel import TensorSpec
from ..tir.memory import load, splat
from .engine import Engine, KeyBlock, Source, Task, chunks
from .plan import Plan
from .vector import get, put, transpose

Expr = Any
Buffer = Any


class Fma(Engine):
    """fp32 products. Keys and values of other dtypes are widened first, in their own layout."""

    step = 4

    def __init__(self, plan: Plan, dtype: torch.dtype, sign: float, registers: int) -> None:
        self.plan = plan
        self.widen = dtype is not torch.float32
        self.sign = sign
        self.rows = 8 if registers >= 32 else 4
        # The largest divisor of a head leaves no partial tile of outputs.
        self.columns = max(n for n in range(1, self.rows + 1) if plan.dim % n == 0)

    @override
    def scratch(self) -> dict[str, TensorSpec]:
        p = self.plan
        padded = -(-p.dim // p.lanes) * p.lanes
        specs = {"query": TensorSpec((p.threads, padded, p.block_q), torch.float32)}
        if self.widen:
            wide = TensorSpec((p.batch, p.keys, p.heads * p.dim), torch.float32)
            specs |= {"key": wide, "value": wide}
        return specs

    @override
    def begin(self, sources: tuple[Source, Source, Source], buffers: dict[str, Buffer]) -> None:
        self.query, self.key, self.value = sources
        self.buffers = buffers
        if self.widen:
            self.key = self._widened(self.key, buffers["key"])
            self.value = self._widened(self.value, buffers["value"])

    def _widened(self, source: Source, target: Buffer) -> Source:
        p = self.plan
        width = chunks(p.dim, p.lanes, p.lanes)[0]
        with T.parallel(p.batch * p.keys) as row, T.serial(p.heads * p.dim // width) as c:
            b, key = row // p.keys, row % p.keys
            value = load(source.buffer, source.index(b, key, 0, c * width), width)
            put(target, [b, key, c * width], value, width)
        return Source(target, p.keys, 0, p.dim)

    @override
    def enter(self, worker: Expr) -> None:
        """Nothing to prepare."""

    @override
    def leave(self) -> None:
        """Nothing to release."""

    @override
    def pack_query(self, task: Task) -> None:
        p, packed = self.plan, self.buffers["query"]
        n = p.lanes
        width, blocks, partial = chunks(p.dim, n, n)
        sign = splat(T.float32(self.sign), width)
        with T.serial(p.block_q // n) as s, T.serial(blocks) as c:
            stage = T.alloc_buffer((n, n), "float32", scope="local")
            with T.serial(n) as i:
                row = T.min(task.q0 + s * n + i, p.queries - 1)
                for j in range(0, n, width):

                    def copy(j: int = j) -> None:
                        d = c * n + j
                        value = load(
                            self.query.buffer, self.query.index(task.b, row, task.h, d), width
                        )
                        put(stage, [i, j], value if self.sign == 1 else value * sign, width)

                    if partial and j:
                        with T.If(c * n + j < p.dim), T.Then():
                            copy()
                    else:
                        copy()
            transpose(
                lambda i: get(stage, [i, 0], n),
                lambda i, v: put(packed, [task.worker, c * n + i, s * n], v, n),
                n,
            )

    @override
    def score(self, task: Task, block: KeyBlock) -> None:
        p, packed, scores = self.plan, self.buffers["query"], self.buffers["scores"]
        n, count = p.lanes, self.rows
        with (
            T.serial((block.rows + (count - 1)) // count) as kt,
            T.serial(p.block_q // p.strip) as s,
        ):
            keys = [T.bind(T.min(block.k0 + kt * count + i, p.keys - 1)) for i in range(count)]
            acc = T.alloc_buffer((count, 2 * n), "float32", scope="local")
            for i in range(count):
                for j in range(2):
                    put(acc, [i, j * n], splat(T.float32(0), n), n)
            with T.serial(p.dim) as d:
                qs = [
                    T.bind(get(packed, [task.worker, d, s * p.strip + j * n], n)) for j in range(2)
                ]
                for i in range(count):
                    k = self.key.buffer[tuple(self.key.index(task.b, keys[i], task.h, d))]
                    k = T.bind(splat(k, n))
                    for j in range(2):
                        put(acc, [i, j * n], get(acc, [i, j * n], n) + k * qs[j], n)
            for i in range(count):
                for j in range(2):
                    to = [task.worker, kt * count + i, s * p.strip + j * n]
                    put(scores, to, get(acc, [i, j * n], n), n)

    @override
    def keep(
        self, task: Task, two: Expr, column: Expr, first: Expr, second: Expr, total: Expr
    ) -> Expr:
        n, scores = self.plan.lanes, self.buffers["scores"]
        put(scores, [task.worker, two * 2, column], first, n)
        put(scores, [task.worker, two * 2 + 1, column], second, n)
        return total + (first + second)

    @override
    def apply(self, task: Task, block: KeyBlock) -> None:
        p, weights, output = self.plan, self.buffers["scores"], self.buffers["output"]
        n, count = p.lanes, self.columns
        with T.serial(p.dim // count) as dt, T.serial(p.block_q // p.strip) as s:
            acc = T.alloc_buffer((count, 2 * n), "float32", scope="local")
            at = [
                [[task.worker, dt * count + i, s * p.strip + j * n] for j in range(2)]
                for i in range(count)
            ]
            # A block's own sum first: rounding grows with the number of terms in one sum.
            for i in range(count):
                for j in range(2):
                    put(acc, [i, j * n], splat(T.float32(0), n), n)
            with T.serial(block.count) as key:
                ws = [
                    T.bind(get(weights, [task.worker, key, s * p.strip + j * n], n))
                    for j in range(2)
                ]
                for i in range(count):
                    index = self.value.index(task.b, block.k0 + key, task.h, dt * count + i)
                    v = T.bind(splat(self.value.buffer[tuple(index)], n))
                    for j in range(2):
                        put(acc, [i, j * n], get(acc, [i, j * n], n) + v * ws[j], n)
            for i in range(count):
                for j in range(2):
                    value = get(output, at[i][j], n) + get(acc, [i, j * n], n)
                    put(output, at[i][j], value, n)
