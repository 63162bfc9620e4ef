"""The loop of integer attention: as :mod:`.flash`, but weights are codes by their block's own
largest score, so that every block is scaled into the sum of all.

It is for vectors. On tiles the exponentials are what takes time already with bf16 products, and
codes need more of it: a maximum first, a shift for each weight, and a scale for each block of
outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from tvm.tirx.script import builder as T
from typing_extensions import override

from ..tir.isa import Isa
from ..tir.kernel import TensorSpec
from ..tir.memory import splat, typed
from .engine import Task, fill
from .flash import LOWEST, Flash, Problem
from .integer import BLOCK, WEIGHT
from .plan import Plan
from .vector import exp2, get, put, settle
from .vnni import ONES, ROUND, Vnni

Expr = Any
Buffer = Any

#: Four rounded floats, shifted by 0, 8, 16 and 24 bits and added, also add up the bits of their
#: exponents. These summands cancel that in the two upper bytes.
_ROUNDS = (ROUND, ROUND, ROUND + 0xC0, ROUND + 0x74)


class Int8(Flash):
    """Emits one kernel."""

    def __init__(self, problem: Problem, plan: Plan, sign: float, isa: Isa) -> None:
        self.problem = problem
        self.plan = plan
        self.isa = isa
        self.products = Vnni(plan, sign, isa)
        self.operands = self.products

    @override
    def scratch(self) -> dict[str, TensorSpec]:
        p = self.plan
        by_query = TensorSpec((p.threads, p.block_q), torch.float32)
        return {
            "scores": TensorSpec((p.threads, BLOCK, p.strip), torch.int32),
            "weights": TensorSpec((p.threads, BLOCK // 4, p.strip), torch.int32),
            "output": TensorSpec((p.threads, self.products.columns, p.block_q), torch.float32),
            "peak": by_query,
            "total": by_query,
            **self.products.scratch(),
        }

    @override
    def _task(self, task: Task, mask: Buffer | None, out: Buffer) -> None:
        p, b, n = self.plan, self.buffers, self.plan.lanes
        self.products.pack_query(task, self.problem.factor)
        fill(b["peak"], [task.worker, 0], p.block_q, n, T.float32(LOWEST))
        fill(b["total"], [task.worker, 0], p.block_q, n, T.float32(0))
        with T.serial(b["output"].shape[1]) as d:
            fill(b["output"], [task.worker, d, 0], p.block_q, n, T.float32(0))
        with T.serial(p.blocks_k) as block:
            count = T.bind(T.min(BLOCK, p.keys - block * BLOCK))
            with T.serial(p.block_q // p.strip) as s:
                self._attend(task, block, count, T.bind(s * p.strip))
        self._finish(task, out)

    def _attend(self, task: Task, block: Expr, count: Expr, first: Expr) -> None:
        """One block of keys for one strip of queries."""
        b, n, w = self.buffers, self.plan.lanes, task.worker
        top = self._scores(task, block, count, first)
        scale, shrink, part = [], [], []
        for j in range(2):
            at = [w, first + j * n]

            def state(name: str, at: list[Expr] = at) -> Expr:
                return get(b[name], at, n)

            largest = T.bind(get(top, [j * n], n))
            by_block = splat(b["key_scale"][task.bh, block], n)
            scale.append(settle(state("query_scale") * by_block, "float32", n))
            here = T.Cast(typed("float32", n), largest - state("query_sum")) * scale[j]
            here = settle(here, "float32", n)
            new = settle(T.max(state("peak"), here), "float32", n)
            shrink.append(exp2(state("peak") - new, self.isa, False))
            part.append(exp2(here - new, self.isa, False))
            put(b["peak"], at, new, n)
        sums = self._weights(count, w, scale, top)
        for j in range(2):
            at = [w, first + j * n]
            added = T.Cast(typed("float32", n), get(sums, [j * n], n)) * part[j]
            put(b["total"], at, get(b["total"], at, n) * shrink[j] + added, n)
        self._outputs(task, block, count, first, shrink, part)

    def _scores(self, task: Task, block: Expr, count: Expr, first: Expr) -> Buffer:
        """Store the strip's scores; returns where each query's largest are."""
        b, n, w, products = self.buffers, self.plan.lanes, task.worker, self.products
        top = T.alloc_buffer((2 * n,), "int32", scope="local")
        for j in range(2):
            put(top, [j * n], splat(T.int32(-(2**31)), n), n)

        def tile(key: Expr, rows: int) -> None:
            def word(step: Expr, i: int) -> Expr:
                at = [task.bh, block * BLOCK + key + i, step * 4]
                return T.reinterpret("int32", get(b["key"], at, 4))

            def keep(i: int, j: int, x: Expr) -> None:
                put(b["scores"], [w, key + i, j * n], x, n)
                put(top, [j * n], T.max(get(top, [j * n], n), x), n)

            products.multiply(
                rows,
                products.words,
                word,
                lambda step, j: get(b["query"], [w, step, first + j * n], n),
                "row",
                keep,
            )

        self._by(count, products.rows, tile)
        return top

    def _by(self, count: Expr, size: int, emit: Any) -> None:
        """Emit for so many keys of a block at a time, then for what is left: ``emit(key, n)``."""
        with T.serial(count // size) as i:
            emit(i * size, size)
        rest = self.plan.keys % size
        if rest:  # blocks are whole multiples, except the last
            with T.If(count % size != 0), T.Then():
                emit(T.bind(count // size * size), rest)

    def _weights(self, count: Expr, w: Expr, scale: list[Expr], top: Buffer) -> Buffer:
        """Turn scores into weights, four keys to a word; returns where their sums are."""
        b, n = self.buffers, self.plan.lanes
        whole = typed("int32", n)
        sums = T.alloc_buffer((2 * n,), "int32", scope="local")
        for j in range(2):
            put(sums, [j * n], splat(T.int32(0), n), n)

        def four(key: Expr, rows: int) -> None:
            for j in range(2):
                word = None
                for i, magic in enumerate(_ROUNDS):
                    e = splat(T.float32(0), n)
                    if i < rows:
                        # Whole numbers first: none is above zero then, whatever the scale.
                        below = get(b["scores"], [w, key + i, j * n], n) - get(top, [j * n], n)
                        below = T.Cast(typed("float32", n), below) * scale[j]
                        e = exp2(below, self.isa, False)
                    e = e * splat(T.float32(WEIGHT), n) + splat(T.float32(magic), n)
                    bits = T.shift_left(T.reinterpret(whole, e), splat(T.int32(8 * i), n))
                    word = bits if word is None else word + bits
                word = settle(word, "int32", n)
                put(b["weights"], [w, key // 4, j * n], word, n)
                added = self.products.dot(get(sums, [j * n], n), word, splat(T.int32(ONES), n))
                put(sums, [j * n], added, n)

        self._by(count, 4, four)
        return sums

    def _outputs(
        self,
        task: Task,
        block: Expr,
        count: Expr,
        first: Expr,
        shrink: list[Expr],
        part: list[Expr],
    ) -> None:
        """Add the block's weights times values to what is there, both scaled."""
        b, n, w, products = self.buffers, self.plan.lanes, task.worker, self.products
        rows = products.rows
        with T.serial(-(-self.plan.dim // rows)) as t:

            def add(i: int, j: int, x: Expr) -> None:
                by_column = splat(b["value_scale"][task.bh, block, t * rows + i], n)
                x = T.Cast(typed("float32", n), x) * (part[j] * by_column)
                at = [w, t * rows + i, first + j * n]
                put(b["output"], at, get(b["output"], at, n) * shrink[j] + x, n)

            products.multiply(
                rows,
                (count + 3) // 4,
                lambda step, i: b["value"][task.bh, block * (BLOCK // 4) + step, t * rows + i],
                lambda step, j: get(b["weights"], [w, step, j * n], n),
                "vector",
                add,
            )
