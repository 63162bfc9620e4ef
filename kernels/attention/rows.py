"""Attention by rows on AMX: the loop around :mod:`.micro_rows`.

The sums of weights need a reference point for each query, and any near the largest score does:
bf16 and fp32 are as precise at 2^-60 as at 1. It is guessed from the first keys, which leaves 60
octaves above it, and the sums tell afterwards if that was not enough. Only then, or where operands
are so large or not finite that a guess could hide it, is the true maximum found by a pass over all
keys and the block computed again. So no running maximum is kept and nothing is ever rescaled.

Of fp32 and fp16 an element is a sum of bf16 words; their weights are made in fp32, and each step's
outputs are summed up on their own before they are added to the rest, as sums of many terms round.
"""

from __future__ import annotations

from typing import Any

import torch
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ..tir.kernel import STORAGE, TensorSpec
from ..tir.llvm import Text, imported
from ..tir.memory import splat, store
from .engine import Source, Task
from .flash import Problem
from .micro_rows import PIECE, QUERIES, ROUND, SUM, apply, module, peak, unit
from .micro_weights import FRACTION
from .packed import CHUNK, Packing
from .plan import Plan, vector_width
from .vector import get, put, tile, tile_configure

Expr = Any
Buffer = Any

_OCTAVE = 2.0**FRACTION
_GUESSED = 63  # the exponent, of 0 to 127, of weights at a guessed reference
_FOUND = 126  # and at the true maximum
#: Scores in fixed point below this surely convert to 32-bit integers.
_SAFE = 2.0**28
#: Sums by which a guess has proved good: no weight was cut off, and none was lost below. In fp32
#: a guessed reference weighs 1.
_CODED, _EXACT = (2.0**-80, 0.5), (0.5, 2.0**60)


class Rows:
    """Emits one kernel.

    Attributes:
        widest: the largest head; beyond it the unrolled step outgrows the instruction cache.
    """

    widest = 128

    def __init__(self, problem: Problem, plan: Plan, sign: float, words: int) -> None:
        self.problem = problem
        self.plan = plan
        self.words = words
        self.exact = self.words > 1
        self.strips = plan.block_q // QUERIES
        self.packing = Packing(plan, sign, self.words)
        self.pieces = plan.block_k // PIECE
        self.chunks, self.tiles = self.packing.chunks, self.packing.tiles
        self.unit = unit(self.chunks, self.tiles, self.words, self.pieces)
        self.apply = apply(self.tiles, self.words, self.pieces)
        self.peak = peak(self.chunks, self.words)

    def scratch(self) -> dict[str, TensorSpec]:
        """All workspace, by name, in parameter order."""
        p, c, t, n = self.plan, self.chunks, self.tiles, self.words
        heads, steps = p.batch * p.heads, p.padded_keys // PIECE
        words, numbers = torch.int32, torch.float32
        specs = {
            "key": TensorSpec((heads, steps, n, c, 2, 16, 16), words),
            "value": TensorSpec((heads, steps, n, t, 16, 16), words),
            "largest": TensorSpec((heads, steps), words),
            "query": TensorSpec((p.threads, self.strips, 2, n, c, 16, 32), torch.bfloat16),
            "scores": TensorSpec((p.threads, 2, QUERIES * PIECE), numbers),
            "weights": TensorSpec((p.threads, 2, n * QUERIES * p.block_k), torch.bfloat16),
            # One more takes what the first step adds in vain.
            "output": TensorSpec((p.threads, self.strips + 1, 2, self.each, 16, 16), numbers),
            "base": TensorSpec((p.threads, self.strips, QUERIES), numbers),
            "palette": TensorSpec((p.threads, 64), torch.uint8),
        }
        if self.exact:
            specs["part"] = TensorSpec((p.threads, 2, 2, t, 16, 16), numbers)
            specs["total"] = TensorSpec((p.threads, self.strips, QUERIES, 16), numbers)
        return specs

    @property
    def each(self) -> int:
        """Tiles of an output, the sums among them unless they are kept apart."""
        return self.tiles if self.exact else self.tiles + 1

    def build(self) -> Any:
        """The PrimFunc."""
        p, problem = self.plan, self.problem
        with IRBuilder() as ib, T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True})

            def argument(name: str, spec: TensorSpec) -> Buffer:
                handle = T.arg(name, T.handle())
                return T.match_buffer(handle, spec.shape, STORAGE[spec.dtype], align=64)

            operands = zip("qkv", (problem.q, problem.k, problem.v), problem.offsets, strict=True)
            sources = [Source(argument(n, s), s.shape[1], o, p.dim) for n, s, o in operands]
            out = argument("out", problem.out)
            self.buffers = {n: argument(n, s) for n, s in self.scratch().items()}
            texts = module(self.unit, self.apply, self.peak, SUM)
            with T.sblock("root"), imported([texts]):
                self._pack(*sources[1:])
                with T.parallel(p.threads) as worker:
                    tile_configure(self.buffers["palette"], worker)
                    with T.serial((p.tasks + p.threads - 1 - worker) // p.threads) as i:
                        task_id = T.bind(i * p.threads + worker)
                        bh = T.bind(task_id // p.blocks_q)
                        q0 = T.bind(task_id % p.blocks_q * p.block_q)
                        self._task(
                            Task(worker, bh // p.heads, bh % p.heads, bh, q0), sources[0], out
                        )
                    tile("tilerelease")
        return ib.get()

    # --- operands ------------------------------------------------------------------------------

    def _pack(self, key: Source, value: Source) -> None:
        p, buffers = self.plan, self.buffers
        steps = p.padded_keys // PIECE
        partial = p.padded_keys != p.keys
        with T.parallel(p.batch * p.heads * steps) as i:
            bh, step = T.bind(i // steps), T.bind(i % steps)
            b, h = bh // p.heads, bh % p.heads
            largest = T.alloc_buffer((32,), "uint16", scope="local")
            put(largest, [0], splat(T.uint16(0), 32), 32)
            for half in range(2):

                def at(r: Expr, half: int = half) -> Expr:
                    return step * PIECE + (r // 4 * 8 + r % 4 + half * 4)

                stage = self.packing.stage_rows(
                    key,
                    b,
                    h,
                    1.0,
                    lambda r, at=at: T.min(at(r), p.keys - 1) if partial else at(r),
                    (lambda r, at=at: at(r) < p.keys) if partial else None,
                )
                self.packing.transposed(
                    stage,
                    lambda n, c, r, v, half=half: put(
                        buffers["key"], [bh, step, n, c, half, r, 0], v, 16
                    ),
                )
                self._note_largest(stage, largest)
            T.buffer_store(buffers["largest"], self._reduced(largest), [bh, step])

            def put_values(t: Expr, stage: Buffer) -> None:
                with T.serial(self.words) as n, T.serial(16) as r:
                    put(buffers["value"], [bh, step, n, t, r, 0], get(stage, [n, r, 0], 16), 16)

            self.packing.pack_values(value, bh, step, put_values)

    def _note_largest(self, stage: Buffer, largest: Buffer) -> None:
        """Keep the largest magnitudes, as bits of bf16: NaN and infinities are the largest."""
        with T.serial(self.chunks) as c, T.serial(16) as r:
            bits = T.bitwise_and(get(stage, [0, c, r, 0], CHUNK), splat(T.uint16(0x7FFF), 32))
            put(largest, [0], T.max(get(largest, [0], 32), bits), 32)

    @staticmethod
    def _reduced(largest: Buffer) -> Expr:
        whole = get(largest, [0], 32)
        one = T.call_llvm_pure_intrin("uint16", "llvm.vector.reduce.umax", whole)
        return T.Cast("int32", one)

    # --- one block of queries ------------------------------------------------------------------

    def _task(self, task: Task, query: Source, out: Buffer) -> None:
        p, buffers, w = self.plan, self.buffers, task.worker
        largest = T.alloc_buffer((32,), "uint16", scope="local")
        put(largest, [0], splat(T.uint16(0), 32), 32)
        with T.serial(2 * self.strips) as half:
            stage = self.packing.stage_rows(
                query,
                task.b,
                task.h,
                self.packing.sign,
                lambda r: T.min(task.q0 + half * 16 + r, p.queries - 1),
            )
            with T.serial(self.words) as n, T.serial(self.chunks) as c, T.serial(16) as r:
                row = get(stage, [n, c, r, 0], CHUNK)
                put(buffers["query"], [w, half // 2, half % 2, n, c, r, 0], row, CHUNK)
            self._note_largest(stage, largest)
        of_keys = T.alloc_buffer((1,), "int32", scope="local")
        T.buffer_store(of_keys, T.int32(0), [0])
        with T.serial(p.padded_keys // PIECE) as step:
            T.buffer_store(of_keys, T.max(of_keys[0], buffers["largest"][task.bh, step]), [0])
        magnitudes = [
            T.reinterpret("float32", T.shift_left(bits, T.int32(16)))
            for bits in (self._reduced(largest), of_keys[0])
        ]
        bound = magnitudes[0] * magnitudes[1] * T.float32(p.dim * self.problem.factor * _OCTAVE)
        good = T.alloc_buffer((1,), "int32", scope="local")
        T.buffer_store(good, T.int32(0), [0])
        with T.serial(2) as attempt:
            guess = T.And(attempt == 0, bound <= T.float32(_SAFE))
            with T.If(T.Or(guess, T.And(attempt == 1, good[0] == 0))), T.Then():
                self._references(task, attempt)
                self._pipeline(task)
                T.buffer_store(good, self._proved(task), [0])
        self._finish(task, out)

    def _references(self, task: Task, attempt: Expr) -> None:
        """What scores in octaves start from, by query; zero the outputs."""
        p, b, w = self.plan, self.buffers, task.worker
        pieces = T.Select(attempt == 0, T.int32(1), T.int32(-(-p.keys // PIECE)))
        exponent = T.Select(attempt == 0, T.float32(_GUESSED), T.float32(_FOUND))
        start = T.float32(0) if self.exact else exponent * T.float32(_OCTAVE) + T.float32(ROUND)
        zero = splat(T.float32(0), 16)
        with T.serial(self.strips) as i:
            s = self.strips - 1 - i  # the last leaves scores of the first piece for the first unit
            self._call(
                self.peak,
                T.address_of(b["query"][w, s, 0, 0, 0, 0, 0]),
                T.address_of(b["key"][task.bh, 0, 0, 0, 0, 0, 0]),
                T.Cast("int64", pieces),
                T.int32(p.keys),
                T.address_of(b["scores"][w, 0, 0]),
                T.address_of(b["base"][w, s, 0]),
            )
            for j in range(0, QUERIES, 16):
                top = get(b["base"], [w, s, j], 16)
                put(b["base"], [w, s, j], splat(start, 16) - top * splat(self._factor, 16), 16)
            with T.serial(2) as half, T.serial(self.each) as t, T.serial(16) as r:
                put(b["output"], [w, s, half, t, r, 0], zero, 16)
            if self.exact:
                with T.serial(QUERIES) as r:
                    put(b["total"], [w, s, r, 0], zero, 16)
        if self.exact:
            with T.serial(2) as half, T.serial(self.tiles) as t, T.serial(16) as r:
                put(b["part"], [w, 0, half, t, r, 0], zero, 16)

    @property
    def _factor(self) -> Expr:
        return T.float32(self.problem.factor * (1.0 if self.exact else _OCTAVE))

    @staticmethod
    def _call(text: Text, *args: Expr) -> None:
        T.evaluate(T.call_extern("void", text.name, *args))

    def _pipeline(self, task: Task) -> None:
        """All keys: step u weighs unit u, scores ahead of it and applies unit u - 1.

        The first piece has been scored.
        """
        p, b, w, strips = self.plan, self.buffers, task.worker, self.strips
        n, odd = p.blocks_k * strips, self.pieces % 2

        def query(u: Expr) -> Expr:
            return T.address_of(b["query"][w, u % strips, 0, 0, 0, 0, 0])

        def keys(u: Expr) -> Expr:
            return T.address_of(b["key"][task.bh, u // strips * self.pieces, 0, 0, 0, 0, 0])

        def values(u: Expr) -> Expr:
            return T.address_of(b["value"][task.bh, u // strips * self.pieces, 0, 0, 0, 0])

        def output(strip: Expr) -> Expr:
            return T.address_of(b["output"][w, strip, 0, 0, 0, 0])

        def part(i: Expr) -> Expr:
            return T.address_of(b["part"][w, i, 0, 0, 0, 0])

        with T.serial(n) as u:
            flip = u % 2 if odd else 0
            following, last = T.bind(T.min(u + 1, n - 1)), T.bind(T.max(u - 1, 0))
            if self.exact:
                before = T.max(u - 2, 0) % strips
                total = T.address_of(b["total"][w, u % strips, 0, 0])
                more = [part(T.Select(u == 0, 1, 0)), total, part(0), output(before)]
            else:
                more = [output(T.Select(u == 0, strips, last % strips))]
            self._call(
                self.unit,
                query(u),
                keys(u),
                query(following),
                keys(following),
                T.address_of(b["scores"][w, flip, 0]),
                T.address_of(b["scores"][w, 1 - flip, 0]),
                T.address_of(b["base"][w, u % strips, 0]),
                T.address_of(b["weights"][w, u % 2, 0]),
                T.min(p.keys - u // strips * p.block_k, p.block_k),
                self._factor,
                T.address_of(b["weights"][w, (u + 1) % 2, 0]),
                values(last),
                *more,
            )
        end = (n - 1) % strips
        results = [output(end)]
        if self.exact:
            results = [part(0), output(max(n - 2, 0) % strips), output(end)]
        weights = T.address_of(b["weights"][w, (n - 1) % 2, 0])
        self._call(self.apply, weights, values(n - 1), *results)

    def _sum(self, task: Task, row: Expr) -> Expr:
        w, s = task.worker, row // QUERIES
        if self.exact:
            lanes = get(self.buffers["total"], [w, s, row % QUERIES, 0], 16)
            return T.call_extern("float32", SUM.name, lanes)
        return self.buffers["output"][w, s, row // 16 % 2, self.tiles, row % 16, 0]

    def _proved(self, task: Task) -> Expr:
        """Whether the sums say that the guess was good."""
        good = T.alloc_buffer((1,), "int32", scope="local")
        T.buffer_store(good, T.int32(1), [0])
        least, most = _EXACT if self.exact else _CODED
        with T.serial(self.plan.block_q) as row:
            total = T.alloc_buffer((1,), "float32", scope="local")
            T.buffer_store(total, self._sum(task, row), [0])
            proved = T.And(total[0] > T.float32(least), total[0] < T.float32(most))
            T.buffer_store(good, T.Select(proved, good[0], T.int32(0)), [0])
        return good[0]

    def _finish(self, task: Task, out: Buffer) -> None:
        """Divide by the sums and store in the dtype of the result."""
        p, b, w = self.plan, self.buffers, task.worker
        width = vector_width(p.dim, 16)
        with T.serial(T.min(p.block_q, p.queries - task.q0)) as row:
            s, half = row // QUERIES, row // 16 % 2
            inverse = T.alloc_buffer((1,), "float32", scope="local")
            T.buffer_store(inverse, T.float32(1) / self._sum(task, row), [0])
            for d in range(0, p.dim, width):
                value = get(b["output"], [w, s, half, d // 16, row % 16, d % 16], width)
                at = [task.b, task.q0 + row, task.h * p.dim + d]
                store(out, at, value * splat(inverse[0], width), width)
