"""The attention loop every instruction path shares: blocks of queries against blocks of keys with
an online softmax, after FlashAttention (Dao et al. 2022), transposed: vector lanes are queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ..tir.isa import Isa
from ..tir.kernel import STORAGE, TensorSpec
from ..tir.memory import load, splat, store
from .engine import Engine, KeyBlock, Operands, Source, Task, chunks, fill
from .vector import BF16_HELPERS, exp2, get, largest, put, transpose

Expr = Any
Buffer = Any

LOWEST = float(torch.finfo(torch.float32).min)
_LOG2E = math.log2(math.e)
# A row maximum may rise by this many octaves before its sums are rescaled: weights up to 256 lose
# no precision in floating point, and rescaling becomes rare.
_SLACK = 8.0


@dataclass(frozen=True)
class Problem:
    """What one kernel computes.

    Attributes:
        q, k, v: operand specs.
        out: result spec.
        mask: spec of the mask, or none.
        offsets: first columns of q, k and v.
        factor: positive factor on scores, in octaves (base-2 logarithm).
        causal: a query sees no later key.
    """

    q: TensorSpec
    k: TensorSpec
    v: TensorSpec
    out: TensorSpec
    mask: TensorSpec | None
    offsets: tuple[int, int, int]
    factor: float
    causal: bool

    @property
    def mask_by_query(self) -> bool:
        """Whether the mask differs between queries."""
        return self.mask is not None and len(self.mask.shape) > 1 and self.mask.shape[-2] > 1

    @property
    def edits_scores(self) -> bool:
        """Whether scores change between the product and the softmax."""
        return self.mask is not None or self.causal


class Flash:
    """Emits one kernel."""

    def __init__(self, problem: Problem, engine: Engine, isa: Isa, precise: bool) -> None:
        self.problem = problem
        self.engine = engine
        self.operands: Operands = engine
        self.plan = engine.plan
        self.isa = isa
        self.precise = precise

    def scratch(self) -> dict[str, TensorSpec]:
        """All workspace, by name, in parameter order."""
        p = self.plan
        padded = -(-p.dim // p.lanes) * p.lanes
        block = (p.threads, p.block_k, p.block_q)
        specs = {
            "scores": TensorSpec(
                (p.threads, p.block_k * (1 + self.engine.overlaps), p.block_q), torch.float32
            ),
            "output": TensorSpec((p.threads, padded, p.block_q), torch.float32),
            "peak": TensorSpec((p.threads, p.block_q), torch.float32),
            "total": TensorSpec((p.threads, p.block_q), torch.float32),
        }
        if self.problem.mask_by_query:
            specs["mask_block"] = TensorSpec(block, torch.float32)
        return specs | self.engine.scratch()

    def build(self) -> Any:
        """The PrimFunc."""
        p, problem = self.plan, self.problem
        with IRBuilder() as ib, T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True})

            def argument(name: str, spec: TensorSpec) -> Buffer:
                handle = T.arg(name, T.handle())
                return T.match_buffer(handle, spec.shape, STORAGE[spec.dtype], align=64)

            def source(name: str, spec: TensorSpec, offset: int) -> Source:
                return Source(argument(name, spec), spec.shape[1], offset, p.dim)

            of_q, of_k, of_v = problem.offsets
            sources = (
                source("q", problem.q, of_q),
                source("k", problem.k, of_k),
                source("v", problem.v, of_v),
            )
            mask = argument("mask", problem.mask) if problem.mask else None
            out = argument("out", problem.out)
            self.buffers = {n: argument(n, s) for n, s in self.scratch().items()}
            with T.sblock("root"):
                if self.isa.bf16_dot:
                    with T.attr(0, "pragma_import_llvm", BF16_HELPERS):
                        self._body(sources, mask, out)
                else:
                    self._body(sources, mask, out)
        return ib.get()

    def _body(
        self, sources: tuple[Source, Source, Source], mask: Buffer | None, out: Buffer
    ) -> None:
        p = self.plan
        self.operands.begin(sources, self.buffers)
        with T.parallel(p.threads) as worker:
            self.operands.enter(worker)
            # Neighbouring tasks go to different workers: causal blocks grow along a head.
            with T.serial((p.tasks + p.threads - 1 - worker) // p.threads) as i:
                task_id = T.bind(i * p.threads + worker)
                bh = T.bind(task_id // p.blocks_q)
                q0 = T.bind(task_id % p.blocks_q * p.block_q)
                self._task(Task(worker, bh // p.heads, bh % p.heads, bh, q0), mask, out)
            self.operands.leave()

    def _task(self, task: Task, mask: Buffer | None, out: Buffer) -> None:
        p, buffers = self.plan, self.buffers
        self.engine.pack_query(task)
        n = p.lanes
        zero = T.float32(0)
        fill(buffers["peak"], [task.worker, 0], p.block_q, n, T.float32(LOWEST))
        fill(buffers["total"], [task.worker, 0], p.block_q, n, zero)
        with T.serial(buffers["output"].shape[1]) as d:
            fill(buffers["output"], [task.worker, d, 0], p.block_q, n, zero)
        blocks = p.blocks_k
        if self.problem.causal:
            blocks = T.min(blocks, (task.q0 + (p.block_q + p.block_k - 1)) // p.block_k)
        blocks = T.bind(blocks) if self.problem.causal else blocks
        overlaps = self.engine.overlaps
        if overlaps:
            self.engine.score(task, self._block(T.int32(0)))
        with T.serial(blocks) as kb:
            block = self._block(kb)
            ahead = None
            if overlaps:
                following = self._block(kb + 1)
                steps = following.rows // self.engine.step
                ahead = following, T.bind(T.Select(kb + 1 < blocks, steps, 0))
            else:
                self.engine.score(task, block)
            if p.keys % self.engine.step:
                with T.serial(block.rows - block.count) as r:
                    index = [task.worker, block.base + block.count + r, 0]
                    fill(buffers["scores"], index, p.block_q, n, T.float32(-math.inf))
            if self.problem.mask_by_query:
                self._mask_block(task, block, mask)
            with T.serial(p.block_q // p.strip) as s:
                self._softmax(task, block, ahead, s, mask)
            self.engine.apply(task, block)
        self._finish(task, out)

    def _block(self, kb: Expr) -> KeyBlock:
        p, step = self.plan, self.engine.step
        k0 = T.bind(kb * p.block_k)
        count: Expr = p.block_k
        if p.padded_keys != p.keys:
            count = T.bind(T.min(p.block_k, p.keys - k0))
        rows = count if p.keys % step == 0 else T.bind((count + step - 1) // step * step)
        base = T.bind(kb % 2 * p.block_k) if self.engine.overlaps else 0
        return KeyBlock(k0, count, rows, base)

    # --- masks ---------------------------------------------------------------------------------

    def _mask_at(self, mask: Buffer, task: Task, query: Expr, key: Expr) -> Expr:
        """One mask element as octaves to add. Finite values stay finite, as they do in eager."""
        spec = self.problem.mask
        assert spec is not None
        shape = spec.shape
        full = (task.b, task.h, query, key)[4 - len(shape) :]
        index = [i if extent > 1 else 0 for i, extent in zip(full, shape, strict=True)]
        if spec.dtype is torch.bool:
            seen = mask[tuple(index)] != T.uint8(0)
            return T.Select(seen, T.float32(0), T.float32(-math.inf))
        x = T.bind(load(mask, index))
        y = T.bind(x * T.float32(_LOG2E))
        lowest, highest = T.float32(LOWEST), T.float32(-LOWEST)
        y = T.Select(T.And(y < lowest, x >= lowest), lowest, y)
        return T.bind(T.Select(T.And(y > highest, x <= highest), highest, y))

    def _mask_block(self, task: Task, block: KeyBlock, mask: Buffer) -> None:
        """Transpose the mask of this block, so that its lanes are queries too."""
        p = self.plan
        with T.serial(p.block_q) as i, T.serial(block.rows) as r:
            query = T.min(task.q0 + i, p.queries - 1)
            key = T.min(block.k0 + r, p.keys - 1)
            value = self._mask_at(mask, task, query, key)
            T.buffer_store(self.buffers["mask_block"], value, [task.worker, r, i])

    # --- softmax -------------------------------------------------------------------------------

    def _softmax(
        self,
        task: Task,
        block: KeyBlock,
        ahead: tuple[KeyBlock, Expr] | None,
        strip: Expr,
        mask: Buffer | None,
    ) -> None:
        """Scores to weights for one strip of queries, and their running maximum and sum.

        ``ahead`` is the next block and how many steps of its scores to compute on the way.
        """
        p, buffers, problem = self.plan, self.buffers, self.problem
        n, w = p.lanes, task.worker
        columns = [T.bind(strip * p.strip + j * n) for j in range(2)]

        def state(name: str, j: int) -> Expr:
            return get(buffers[name], [w, columns[j]], n)

        top = T.alloc_buffer((2 * n,), "float32", scope="local")
        for j in range(2):
            put(top, [j * n], state("peak", j), n)
        factor = 1.0 if problem.edits_scores else problem.factor
        c = splat(T.float32(factor), n)
        with T.serial(block.rows // 4) as r:
            for j in range(2):
                x = [self._score(task, block, r * 4 + i, columns[j], mask) for i in range(4)]
                pairs = T.max(T.max(x[0], x[1]), T.max(x[2], x[3]))
                put(top, [j * n], T.max(pairs, get(top, [j * n], n)), n)
        rise = [get(top, [j * n], n) - state("peak", j) for j in range(2)]
        with T.If(largest(T.max(*rise)) * T.float32(factor) > T.float32(_SLACK)), T.Then():
            shrink = []
            for j in range(2):
                new = T.bind(get(top, [j * n], n))
                old = state("peak", j)
                fall = old * c - new * c if self.isa.fma else (old - new) * c
                shrink.append(exp2(fall, self.isa, self.precise))
                put(buffers["peak"], [w, columns[j]], new, n)
                put(buffers["total"], [w, columns[j]], state("total", j) * shrink[j], n)
            with T.serial(p.dim) as d:
                for j in range(2):
                    at = [w, d, columns[j]]
                    put(buffers["output"], at, get(buffers["output"], at, n) * shrink[j], n)
        total = T.alloc_buffer((2 * n,), "float32", scope="local")
        base = []
        for j in range(2):
            put(total, [j * n], splat(T.float32(0), n), n)
            # Without fused multiply-add, subtracting first loses nothing of a large score.
            peak = state("peak", j) * c if self.isa.fma else state("peak", j)
            base.append(T.bind(splat(T.float32(0), n) - peak))

        def weigh(two: Expr) -> None:
            for j in range(2):
                e = []
                for i in range(2):
                    at = [w, block.base + two * 2 + i, columns[j]]
                    s = get(buffers["scores"], at, n)
                    if factor == 1.0:
                        t = s + base[j]
                    else:
                        t = s * c + base[j] if self.isa.fma else (s + base[j]) * c
                    e.append(exp2(t, self.isa, self.precise))
                added = self.engine.keep(task, two, columns[j], e[0], e[1], get(total, [j * n], n))
                put(total, [j * n], added, n)

        if ahead:
            step = self.engine.step
            with T.serial(block.rows // step) as i:
                with T.If(i < ahead[1]), T.Then():
                    self.engine.score_step(task, ahead[0], i, strip)
                with T.serial(step // 2) as two:
                    weigh(i * (step // 2) + two)
        else:
            with T.serial(block.rows // 2) as two:
                weigh(two)
        for j in range(2):
            value = state("total", j) + get(total, [j * n], n)
            put(buffers["total"], [w, columns[j]], value, n)

    def _score(self, task: Task, block: KeyBlock, r: Expr, q: Expr, mask: Buffer | None) -> Expr:
        """A vector of scores with factor, mask and causality applied, and written back if so."""
        problem, n = self.problem, self.plan.lanes
        at = [task.worker, block.base + r, q]
        score = get(self.buffers["scores"], at, n)
        if not problem.edits_scores:
            return T.bind(score)
        score = score * splat(T.float32(problem.factor), n)
        key = block.k0 + r
        if problem.mask_by_query:
            score = score + get(self.buffers["mask_block"], [task.worker, r, q], n)
        elif mask is not None:
            value = self._mask_at(mask, task, 0, T.min(key, self.plan.keys - 1))
            score = score + splat(value, n)
        if problem.causal:
            queries = T.ramp(task.q0 + q, 1, n)
            score = T.Select(queries >= splat(key, n), score, splat(T.float32(-math.inf), n))
        score = T.bind(score)
        put(self.buffers["scores"], at, score, n)
        return score

    # --- output --------------------------------------------------------------------------------

    def _finish(self, task: Task, out: Buffer) -> None:
        """Divide by the sums, transpose, store in the dtype of the result."""
        p, buffers = self.plan, self.buffers
        n, w = p.lanes, task.worker
        width, blocks, partial = chunks(p.dim, n, n)
        one, zero = splat(T.float32(1), n), splat(T.float32(0), n)
        with T.serial(p.block_q // n) as s:
            total = T.bind(get(buffers["total"], [w, s * n], n))
            inverse = one / total
            if self.problem.mask is not None:
                # A query that sees no key gets zero, as in torch.
                inverse = T.Select(total.equal(zero), zero, inverse)
            inverse = T.bind(inverse)
            with T.serial(blocks) as c:
                stage = T.alloc_buffer((n, n), "float32", scope="local")
                transpose(
                    lambda i: get(buffers["output"], [w, c * n + i, s * n], n) * inverse,
                    lambda i, v: put(stage, [i, 0], v, n),
                    n,
                )
                row = task.q0 + s * n
                with T.serial(T.min(n, T.max(p.queries - row, 0))) as i:
                    for j in range(0, n, width):
                        at = [task.b, row + i, task.h * p.dim + c * n + j]
                        value = get(stage, [i, j], width)
                        if partial and j:
                            with T.If(c * n + j < p.dim), T.Then():
                                store(out, at, value, width)
                        else:
                            store(out, at, value, width)
