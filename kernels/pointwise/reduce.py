"""Reductions and row-wise scans over any dimensions, of a value that may itself be fused.

Where the last dimension is reduced, lanes run along it and are combined at the end; elsewhere
they run over neighbouring results. Narrow floats are accumulated in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir.kernel import Call, Unsupported
from ..tir.math import let
from ..tir.memory import is_nan, splat, typed
from .lazy import Index, Scope, dim
from .scalar import (
    computed,
    convert,
    elementary,
    family,
    literal,
    maximum,
    minimum,
    truth,
)

Expr = Any
Buffer = Any

_ARG = frozenset({"argmax", "argmin"})
ROWS = frozenset({"softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum"})
_FOLDS = frozenset(
    {"sum", "mean", "prod", "amax", "amin", "max", "min", "any", "all", "var", "std",
     "linalg_vector_norm"}
)  # fmt: skip
REDUCTIONS = _FOLDS | _ARG | ROWS

#: Makes the scope for a number of lanes.
Scopes = Callable[[int], Scope]


def axes(call: Call) -> list[int]:
    """The dimensions a call reduces."""
    rank = len(call["self"].spec.shape)
    given = call.args.get("dim")
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return list(range(rank))
    listed: Iterable[int] = given if isinstance(given, (list, tuple)) else [given]
    return sorted({dim(d, rank) for d in listed}) if rank else []


def along_last(call: Call) -> bool:
    """Whether lanes cannot run over results, because the last dimension is reduced."""
    rank = len(call["self"].spec.shape)
    return rank - 1 in axes(call) or rank == 0


class Cell:
    """A local variable of some lanes."""

    def __init__(self, value: Expr, kind: str, n: int) -> None:
        self._kind, self._n = kind, n
        self._buffer = T.alloc_buffer((n,), kind, scope="local")
        self.set(value)

    def get(self) -> Expr:
        """Its lanes."""
        return (
            self._buffer.vload([0], dtype=typed(self._kind, self._n))
            if self._n > 1
            else self._buffer[0]
        )

    def set(self, value: Expr) -> None:
        """Overwrite it."""
        T.buffer_store(self._buffer, value, [T.ramp(0, 1, self._n) if self._n > 1 else 0])

    def lanes(self) -> list[Expr]:
        """Each lane."""
        return [self._buffer[i] for i in range(self._n)]


class Source:
    """The reduced value at a result's position, lane-parallel or along the last dimension."""

    def __init__(self, call: Call, scopes: Scopes, kept: Index, lanes: int, wide: int) -> None:
        self.call, self.scopes = call, scopes
        self.value = call["self"]
        self.shape = self.value.spec.shape
        self.axes = axes(call)
        self.kept, self.n = kept, lanes
        #: lanes along the last dimension
        self.wide = wide if along_last(call) and self.shape else 1
        self.count = math.prod(self.shape[a] for a in self.axes)

    def index(self, places: dict[int, Expr], last: int) -> Index:
        """The index with the reduced axes in place; ``last`` lanes along the last dimension."""
        rank = len(self.shape)
        full = len(self.kept.at) == rank
        rest = [a for a in range(rank) if a not in self.axes]
        at: list[Expr] = [0] * rank
        step = [0] * rank
        for i, a in enumerate(rest):
            at[a] = self.kept.at[a if full else i]
            step[a] = self.kept.step[a if full else i]
        for a, place in places.items():
            at[a] = place
        if last > 1:
            step[-1] = 1
        return Index(tuple(at), tuple(step))

    def each(self, emit: Callable[[Expr, int, Expr], None], dtype: torch.dtype) -> None:
        """Call ``emit(lanes, how many, flat position)`` along the reduced dimensions."""
        if not self.shape:
            emit(self._read(Index((), ()), self.n, dtype), self.n, T.int32(0))
            return
        inner = self.shape[-1] if along_last(self.call) else 1
        outer_axes = [
            a for a in self.axes if not (along_last(self.call) and a == len(self.shape) - 1)
        ]
        with T.serial(math.prod(self.shape[a] for a in outer_axes)) as o:
            places: dict[int, Expr] = {}
            flat = o
            for a in reversed(outer_axes):
                places[a] = T.floormod(flat, self.shape[a])
                flat = T.floordiv(flat, self.shape[a])

            def one(last: Expr, n: int) -> None:
                here = dict(places)
                if along_last(self.call):
                    here[len(self.shape) - 1] = last
                k = n if along_last(self.call) else self.n
                emit(self._read(self.index(here, n), k, dtype), k, o * inner + last)

            if not along_last(self.call):
                one(T.int32(0), 1)
                return
            whole, rest = divmod(inner, self.wide)
            if whole:
                with T.serial(whole) as v:
                    one(v * self.wide, self.wide)
            if rest:
                with T.serial(rest) as i:
                    one(whole * self.wide + i, 1)

    def _read(self, index: Index, n: int, dtype: torch.dtype) -> Expr:
        lanes = self.scopes(n).value(self.value, index)
        return let(convert(lanes, self.value.spec.dtype, _wide(dtype), n))

    def fold(
        self,
        start: Any,
        dtype: torch.dtype,
        combine: Callable[[Expr, Expr, int], Expr],
        term: Callable[[Expr, int], Expr] = lambda x, n: x,
        read: torch.dtype | None = None,
    ) -> Expr:
        """Reduce ``term`` of every element; the accumulator has ``dtype``."""
        kind = computed(dtype)
        k = self.wide if along_last(self.call) else self.n
        whole = Cell(literal(start, dtype, k), kind, k)
        apart = k > 1 and along_last(self.call)
        tail = Cell(literal(start, dtype, 1), kind, 1) if apart else whole

        def emit(lanes: Expr, n: int, at: Expr) -> None:
            cell = whole if n == k else tail
            cell.set(combine(cell.get(), let(term(lanes, n)), n))

        self.each(emit, read or dtype)
        if not along_last(self.call):
            return whole.get()
        terms = whole.lanes() + ([tail.get()] if apart else [])
        while len(terms) > 1:
            paired = [let(combine(a, b, 1)) for a, b in zip(terms[::2], terms[1::2], strict=False)]
            terms = paired + ([terms[-1]] if len(terms) % 2 else [])
        return let(terms[0])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _lowest(dtype: torch.dtype) -> Any:
    return -math.inf if dtype.is_floating_point else _info(dtype)[0]


def _highest(dtype: torch.dtype) -> Any:
    return math.inf if dtype.is_floating_point else _info(dtype)[1]


def _info(dtype: torch.dtype) -> tuple[int, int]:
    if dtype is torch.bool:
        return 0, 1
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


def result(call: Call, source: Source) -> Expr:
    """Lanes of a reduction's result, in the dtype the output is computed in.

    Raises:
        Unsupported: this reduction is not known here.
    """
    name, out, n = family(call.op), call.out.dtype, source.n
    wide = _wide(out)

    def add(a: Expr, b: Expr, k: int) -> Expr:
        del k
        return a + b

    if name in ("sum", "mean"):
        total = source.fold(0, wide, add)
        return total / literal(source.count, wide, n) if name == "mean" else total
    if name == "prod":
        return source.fold(1, wide, lambda a, b, k: a * b)
    if name in ("amax", "max"):
        return source.fold(_lowest(wide), wide, lambda a, b, k: maximum(a, b, wide, k))
    if name in ("amin", "min"):
        return source.fold(_highest(wide), wide, lambda a, b, k: minimum(a, b, wide, k))
    if name in ("any", "all"):
        held = call["self"].spec.dtype
        join = T.bitwise_or if name == "any" else T.bitwise_and

        def test(x: Expr, k: int) -> Expr:
            return truth(x, _wide(held), k)

        bits = source.fold(name == "all", torch.bool, lambda a, b, k: join(a, b), test, read=held)
        return convert(bits, torch.bool, out, n)
    if name in ("var", "std"):
        correction = call.args.get("correction", 1 if call.args.get("unbiased", True) else 0)
        degrees = source.count - (1 if correction is None else correction)
        mean = source.fold(0, wide, add)
        mean = let(mean / literal(source.count, wide, n))

        def square(x: Expr, k: int) -> Expr:
            d = let(x - (mean if k == n else splat(mean, k)))
            return d * d

        squares = source.fold(0, wide, add, square)
        # No degree of freedom gives 0 / 0, as in torch.
        variance = squares / literal(max(degrees, 0), wide, n)
        return variance if name == "var" else T.sqrt(variance)
    if name == "linalg_vector_norm":
        order = call["ord"]
        if order == 2:
            return T.sqrt(source.fold(0, wide, add, lambda x, k: x * x))
        if order == 1:
            return source.fold(0, wide, add, lambda x, k: T.abs(x))
        if order == math.inf:
            return source.fold(
                0, wide, lambda a, b, k: maximum(a, b, wide, k), lambda x, k: T.abs(x)
            )
        raise Unsupported(f"a vector norm of order {order}")
    if name in _ARG:
        return _extreme(call, source)
    raise Unsupported(f"no CPU kernel for {call.op}")


def _extreme(call: Call, source: Source) -> Expr:
    """Position of the first extreme value, a NaN counting as one; a lane at a time."""
    held = _wide(call["self"].spec.dtype)
    more = T.GT if family(call.op) == "argmax" else T.LT
    best = Cell(literal(0, held, 1), computed(held), 1)
    where = Cell(T.int32(-1), "int32", 1)

    def emit(x: Expr, n: int, at: Expr) -> None:
        del n
        old = let(best.get())
        better = T.Or(T.EQ(where.get(), -1), more(x, old))
        if held.is_floating_point:
            better = T.Or(better, T.And(is_nan(x, 1), T.EQ(old, old)))
        with T.If(better), T.Then():
            best.set(x)
            where.set(at)

    source.each(emit, held)
    return T.Cast("int64", where.get())


def write_rows(call: Call, source: Source, write: Callable[[Expr, Expr, int], None]) -> None:
    """Emit softmax, log-softmax or a running sum: ``write(position, lanes, how many)``.

    Raises:
        Unsupported: this operator is not known here.
    """
    name, wide, n = family(call.op), _wide(call.out.dtype), source.n
    if name == "cumsum":
        running = Cell(literal(0, wide, n), computed(wide), n)

        def step(x: Expr, k: int, at: Expr) -> None:
            running.set(running.get() + x)
            write(at, running.get(), k)

        source.each(step, call.out.dtype)
        return
    highest = let(source.fold(-math.inf, wide, lambda a, b, k: maximum(a, b, wide, k)))

    def lowered(x: Expr, k: int) -> Expr:
        return let(x - (highest if k == n else splat(highest, k)))

    total = let(
        source.fold(
            0, wide, lambda a, b, k: a + b, lambda x, k: elementary("exp", lowered(x, k), wide, k)
        )
    )
    if "log" in name:
        total = let(elementary("log", total, wide, n))

    def emit(x: Expr, k: int, at: Expr) -> None:
        scale = total if k == n else splat(total, k)
        y = lowered(x, k)
        write(at, y - scale if "log" in name else elementary("exp", y, wide, k) / scale, k)

    source.each(emit, call.out.dtype)
