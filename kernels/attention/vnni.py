"""Integer attention's operands and products: four bytes at a time into 32-bit lanes of queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir.isa import Isa
from ..tir.kernel import TensorSpec
from ..tir.memory import load, splat, typed
from ..tir.quantise import magnitude, scale_of
from .engine import Operands, Source, Task
from .integer import BLOCK
from .plan import Plan, vector_width
from .vector import get, put, settle, transpose

Expr = Any
Buffer = Any

#: Words a turn of a loop: the addresses of every word would take slots from the products.
_TURN = 8

ONES = 0x01010101  # four bytes of 1
#: Added to an fp32, it leaves the nearest integer in the low bits.
ROUND = 1.5 * 2.0**23
#: Keys are stored unsigned, by this more than they are: scores rise by as much times the sum of
#: the query's codes, whatever the key.
ZERO = 128


class Vnni(Operands):
    """Packs operands and multiplies them; vectors hold one key or column for many queries.

    Attributes:
        lanes: queries in a vector.
        rows: keys or columns multiplied together, each by two vectors.
        words: 32-bit words of a head.
    """

    def __init__(self, plan: Plan, sign: float, isa: Isa) -> None:
        self.plan = plan
        self.sign = sign
        self.lanes = isa.lanes
        self.rows = 8 if isa.registers >= 32 else 4
        self.width = vector_width(plan.dim, isa.lanes)
        self.words = -(-plan.dim // 4)
        self.columns = -(-plan.dim // isa.lanes) * isa.lanes

    def scratch(self) -> dict[str, TensorSpec]:
        """Workspace by name."""
        p, n = self.plan, self.lanes
        heads, words = p.batch * p.heads, -(-self.words // n) * n
        real, whole = torch.float32, torch.int32
        return {
            "sums": TensorSpec((heads, p.blocks_k, self.columns), real),
            "key": TensorSpec((heads, p.padded_keys, self.words * 4), torch.uint8),
            "key_scale": TensorSpec((heads, p.blocks_k), real),
            "value": TensorSpec((heads, p.padded_keys // 4, self.columns), whole),
            "value_scale": TensorSpec((heads, p.blocks_k, self.columns), real),
            "query": TensorSpec((p.threads, words, p.block_q), whole),
            "query_scale": TensorSpec((p.threads, p.block_q), real),
            "query_sum": TensorSpec((p.threads, p.block_q), whole),
        }

    def dot(self, total: Expr, unsigned: Expr, signed: Expr) -> Expr:
        """``total`` plus products of four bytes a lane; operands are int32 vectors."""
        n = self.lanes
        bytes_ = (T.reinterpret(typed("int8", 4 * n), x) for x in (unsigned, signed))
        name = f"llvm.x86.avx512.vpdpbusd.{32 * n}"
        return T.call_llvm_pure_intrin(typed("int32", n), name, total, *bytes_)

    # --- keys and values -----------------------------------------------------------------------

    def _chunks(self, emit: Callable[[Expr], None]) -> None:
        """Emit for the first column of every vector of a head."""
        with T.serial(self.plan.dim // self.width) as c:
            emit(T.bind(c * self.width))

    def begin(self, sources: tuple[Source, Source, Source], buffers: dict[str, Buffer]) -> None:
        """Take the operands and the workspace, emit the passes over all keys and values."""
        self.query, key, value = sources
        self.buffers = buffers
        p = self.plan

        def by_block(emit: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
            with T.parallel(p.batch * p.heads * p.blocks_k) as i:
                bh, block = T.bind(i // p.blocks_k), T.bind(i % p.blocks_k)
                first = T.bind(block * BLOCK)
                emit(bh, block, first, T.bind(T.min(BLOCK, p.keys - first)))

        def quantise(*block: Expr) -> None:
            self._quantise_keys(key, *block)
            self._quantise_values(value, *block)

        by_block(lambda *block: self._sum_keys(key, *block))
        by_block(quantise)

    def enter(self, worker: Expr) -> None:
        """Nothing to prepare."""

    def leave(self) -> None:
        """Nothing to release."""

    def _vector(self, dtype: str, value: Expr) -> Buffer:
        """A vector as wide as chunks, set to a scalar."""
        buffer = T.alloc_buffer((self.width,), dtype, scope="local")
        put(buffer, [0], splat(value, self.width), self.width)
        return buffer

    def _held(self, buffer: Buffer) -> Expr:
        return get(buffer, [0], self.width) if self.width > 1 else buffer[0]

    def _row(self, source: Source, bh: Expr, row: Expr, d: Expr) -> Expr:
        """fp32 values of a chunk of one row."""
        p = self.plan
        return load(source.buffer, source.index(bh // p.heads, row, bh % p.heads, d), self.width)

    def _sum_keys(self, key: Source, bh: Expr, block: Expr, first: Expr, count: Expr) -> None:
        def chunk(d: Expr) -> None:
            total = self._vector("float32", T.float32(0))
            with T.serial(count) as r:
                put(total, [0], self._held(total) + self._row(key, bh, first + r, d), self.width)
            put(self.buffers["sums"], [bh, block, d], self._held(total), self.width)

        self._chunks(chunk)

    def _quantise_keys(self, key: Source, bh: Expr, block: Expr, first: Expr, count: Expr) -> None:
        p, b, width = self.plan, self.buffers, self.width
        mean = T.alloc_buffer((self.columns,), "float32", scope="local")
        largest = self._vector("int32", T.int32(0))

        def average(d: Expr) -> None:
            total = self._vector("float32", T.float32(0))
            with T.serial(p.blocks_k) as i:
                put(total, [0], self._held(total) + get(b["sums"], [bh, i, d], width), width)
            put(mean, [d], self._held(total) / splat(T.float32(p.keys), width), width)

        def less(r: Expr, d: Expr) -> Expr:
            x = self._row(key, bh, first + r, d) - get(mean, [d], width)
            return settle(x, "float32", width)

        def look(d: Expr) -> None:
            with T.serial(count) as r:
                most = T.max(self._held(largest), magnitude(less(r, d), width))
                put(largest, [0], most, width)

        self._chunks(average)
        self._chunks(look)
        inverse, back = scale_of(T.reinterpret("float32", self._most(self._held(largest))))
        T.buffer_store(b["key_scale"], back, [bh, block])

        def codes(d: Expr) -> None:
            with T.serial(count) as r:
                x = self._rounded(less(r, d) * splat(inverse, width), ZERO)
                put(b["key"], [bh, first + r, d], T.Cast(typed("uint8", width), x), width)

        self._chunks(codes)

    def _quantise_values(
        self, value: Source, bh: Expr, block: Expr, first: Expr, count: Expr
    ) -> None:
        b, width = self.buffers, self.width

        def chunk(d: Expr) -> None:
            largest = self._vector("int32", T.int32(0))
            with T.serial(count) as r:
                x = settle(self._row(value, bh, first + r, d), "float32", width)
                put(largest, [0], T.max(self._held(largest), magnitude(x, width)), width)
            inverses = T.alloc_buffer((width,), "float32", scope="local")
            for j in range(width):
                inverse, back = scale_of(T.reinterpret("float32", largest[j]))
                T.buffer_store(inverses, inverse, [j])
                T.buffer_store(b["value_scale"], back, [bh, block, d + j])
            with T.serial((count + 3) // 4) as four:
                word = None
                for i in range(4):
                    row = first + T.min(four * 4 + i, count - 1)
                    x = self._row(value, bh, row, d) * self._held(inverses)
                    # A byte's bits; what is above them is shifted out, or belongs to the next.
                    x = T.bitwise_and(self._rounded(x, 0), splat(T.int32(0xFF), width))
                    x = T.shift_left(x, splat(T.int32(8 * i), width))
                    word = x if word is None else T.bitwise_or(word, x)
                put(b["value"], [bh, first // 4 + four, d], word, width)

        self._chunks(chunk)

    def _most(self, x: Expr) -> Expr:
        """The largest lane of int32 that are not negative."""
        if self.width == 1:
            return x
        return T.bind(T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smax", x))

    def _rounded(self, x: Expr, zero: int) -> Expr:
        """The nearest integers, ties to even, plus ``zero``, in the low bytes of int32."""
        magic = splat(T.float32(ROUND + zero), self.width)
        return settle(T.reinterpret(typed("int32", self.width), x + magic), "int32", self.width)

    # --- one block of queries ------------------------------------------------------------------

    def pack_query(self, task: Task, factor: float) -> None:
        """Emit the packing of a query block; its missing rows repeat the last.

        Scales are multiplied by ``factor``.
        """
        p, b, n, w, width = self.plan, self.buffers, self.lanes, task.worker, self.width
        padded = b["query"].shape[1]
        with T.serial(p.block_q // n) as s:
            stage = T.alloc_buffer((n, 4 * padded), "uint8", scope="local")
            with T.serial(n) as i:
                row = T.bind(T.min(task.q0 + s * n + i, p.queries - 1))
                largest = self._vector("int32", T.int32(0))

                def read(d: Expr, row: Expr = row) -> Expr:
                    return settle(self._row(self.query, task.bh, row, d), "float32", width)

                def look(d: Expr, largest: Buffer = largest, read: Any = read) -> None:
                    most = T.max(self._held(largest), magnitude(read(d), width))
                    put(largest, [0], most, width)

                self._chunks(look)
                most = T.reinterpret("float32", self._most(self._held(largest)))
                inverse, back = scale_of(most)
                inverse = T.bind(inverse * T.float32(self.sign))
                T.buffer_store(b["query_scale"], back * T.float32(factor), [w, s * n + i])

                def codes(d: Expr, i: Expr = i, read: Any = read, inverse: Expr = inverse) -> None:
                    x = self._rounded(read(d) * splat(inverse, width), 0)
                    put(stage, [i, d], T.Cast(typed("uint8", width), x), width)

                self._chunks(codes)
                with T.serial(4 * padded - p.dim) as d:
                    T.buffer_store(stage, T.uint8(0), [i, p.dim + d])
            total = T.alloc_buffer((n,), "int32", scope="local")
            put(total, [0], splat(T.int32(0), n), n)
            with T.serial(padded // n) as c:

                def store(i: int, v: Expr, c: Expr = c) -> None:
                    put(b["query"], [w, c * n + i, s * n], v, n)
                    put(total, [0], self.dot(get(total, [0], n), splat(T.int32(ONES), n), v), n)

                def words(i: int, c: Expr = c, stage: Buffer = stage) -> Expr:
                    return T.reinterpret(typed("int32", n), get(stage, [i, c * (4 * n)], 4 * n))

                transpose(words, store, n)
            put(b["query_sum"], [w, s * n], get(total, [0], n) * splat(T.int32(ZERO), n), n)

    def multiply(
        self,
        rows: int,
        steps: Expr,
        row: Callable[[Expr, int], Expr],
        vector: Callable[[Expr, int], Expr],
        unsigned: str,
        out: Callable[[int, int, Expr], None],
    ) -> None:
        """Emit broadcast words of some rows times two vectors, added up over steps.

        Args:
            rows: how many.
            steps: words.
            row: the word of a row at a step.
            vector: one of the two vectors at a step.
            unsigned: ``row`` or ``vector``.
            out: takes row, vector and sum.
        """
        n = self.lanes
        total = T.alloc_buffer((rows, 2 * n), "int32", scope="local")
        for i in range(rows):
            for j in range(2):
                put(total, [i, j * n], splat(T.int32(0), n), n)

        def add(step: Expr) -> None:
            vectors = [T.bind(vector(step, j)) for j in range(2)]
            for i in range(rows):
                word = T.bind(splat(row(step, i), n))
                for j in range(2):
                    pair = (word, vectors[j]) if unsigned == "row" else (vectors[j], word)
                    put(total, [i, j * n], self.dot(get(total, [i, j * n], n), *pair), n)

        with T.serial(steps // _TURN) as turn:
            for i in range(_TURN):
                add(turn * _TURN + i)
        if not isinstance(steps, int) or steps % _TURN:
            with T.serial(steps % _TURN) as rest:
                add(steps // _TURN * _TURN + rest)
        for i in range(rows):
            for j in range(2):
                out(i, j, get(total, [i, j * n], n))
