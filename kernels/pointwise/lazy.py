"""Tensors as functions from an index to a value, so that operators compose without memory.

An index has one entry a dimension: the first lane's position and what each further lane adds.
Moving data is arithmetic on the entries. Where that arithmetic is not affine in the lane (a
reshape across the vector, a gather), :class:`OneLane` asks the caller to start again with
vectors of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir.kernel import STORAGE, Call, Unsupported, Value
from ..tir.math import let
from ..tir.memory import splat, to_fp32, typed
from .scalar import POINTWISE, computed, convert, family, literal, pointwise

Expr = Any
Buffer = Any


class OneLane(Exception):  # noqa: N818 - an answer
    """The lanes of a vector do not lie at equal steps."""


@dataclass(frozen=True, eq=False)
class Index:
    """Positions of the lanes of one vector, by dimension.

    Attributes:
        at: first lane.
        step: added for each further lane.
        aligned: the last entry is a multiple of the number of lanes, and steps by one.
    """

    at: tuple[Expr, ...]
    step: tuple[int, ...]
    aligned: bool = False

    def pick(self, axes: list[int]) -> Index:
        """The entries of these axes; -1 gives a zero."""
        at = tuple(self.at[a] if a >= 0 else 0 for a in axes)
        step = tuple(self.step[a] if a >= 0 else 0 for a in axes)
        last = bool(axes) and axes[-1] == len(self.at) - 1
        return Index(at, step, self.aligned and last)

    def change(self, axis: int, at: Expr, step: int) -> Index:
        """With another entry for one axis."""
        ats, steps = list(self.at), list(self.step)
        ats[axis], steps[axis] = at, step
        return Index(tuple(ats), tuple(steps), self.aligned and axis != len(ats) - 1)


def dim(axis: int, rank: int) -> int:
    """A dimension counted from the front."""
    return axis % max(rank, 1)


def _between(x: Expr, size: int) -> Expr:
    return T.max(T.min(x, size - 1), 0)


VIEWS = frozenset(
    {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten",
     "_reshape_alias", "view_copy"}
)  # fmt: skip
CREATORS = frozenset(
    {"arange", "full", "zeros", "ones", "empty", "full_like", "zeros_like", "ones_like",
     "empty_like", "scalar_tensor", "eye", "new_full", "new_zeros", "new_ones", "new_empty", "fill"}
)  # fmt: skip


class Scope:
    """Evaluates values at indices within one loop body, each once.

    Args:
        calls: the fused calls, by the handle of their result.
        buffers: flat buffer of every other value, by handle.
        n: lanes.
    """

    def __init__(
        self, calls: Mapping[Hashable, Call], buffers: Mapping[Hashable, Buffer], n: int
    ) -> None:
        self._calls, self._buffers, self.n = calls, buffers, n
        self._seen: dict[Hashable, Any] = {}
        self._single: Scope | None = None

    @property
    def single(self) -> Scope:
        """The same with one lane, for indices that are themselves values."""
        if self.n == 1:
            return self
        self._single = self._single or Scope(self._calls, self._buffers, 1)
        return self._single

    def _once(self, key: Hashable, *keep: Any, make: Callable[[], Any]) -> Any:
        # ``keep`` holds what the key's ids refer to, so that no id is used again.
        if key not in self._seen:
            self._seen[key] = (make(), keep)
        return self._seen[key][0]

    def value(self, value: Value, index: Index) -> Expr:
        """Lanes of a value, in the dtype it is computed in."""
        handle = id(value.source)

        def make() -> Expr:
            if handle in self._calls:
                return let(self.call(self._calls[handle], index))
            return self._load(self._buffers[handle], value, index)

        return self._once((handle, id(index)), value, index, make=make)

    def _load(self, buffer: Buffer, value: Value, index: Index) -> Expr:
        shape, n = value.spec.shape, self.n
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        at = sum((a * s for a, s in zip(index.at, strides, strict=True)), T.int32(0))
        step = sum(a * s for a, s in zip(index.step, strides, strict=True))
        stored = STORAGE[value.spec.dtype]
        if n == 1 or step == 0:
            raw = splat(buffer[at], n)
        elif step == 1:
            raw = buffer.vload([at], dtype=typed(stored, n))
        else:
            raw = buffer[T.ramp(at, step, n)]
        half = value.spec.dtype in (torch.bfloat16, torch.float16)
        return let(to_fp32(raw, stored, n) if half else raw)

    def operand(self, x: Any, index: Index, shape: tuple[int, ...], dtype: torch.dtype) -> Expr:
        """An argument of a pointwise operator, broadcast to ``shape`` and converted."""
        if not isinstance(x, Value):
            return literal(x, dtype, self.n)
        lanes = self.value(x, self.broadcast(index, shape, x.spec.shape))
        return convert(lanes, x.spec.dtype, dtype, self.n)

    def broadcast(self, index: Index, shape: tuple[int, ...], inner: tuple[int, ...]) -> Index:
        """The index into an operand that broadcasts to ``shape``."""
        if shape == inner:
            return index
        lead = len(shape) - len(inner)
        axes = [-1 if size == 1 else i + lead for i, size in enumerate(inner)]
        return self._once((id(index), inner), index, make=lambda: index.pick(axes))

    def lane(self, index: Index, axis: int) -> Expr:
        """Positions along one axis, as int32 lanes."""
        if self.n == 1:
            return T.Cast("int32", index.at[axis])
        if not index.step[axis]:
            return splat(T.Cast("int32", index.at[axis]), self.n)
        return T.ramp(T.Cast("int32", index.at[axis]), index.step[axis], self.n)

    def _moved(self, x: Value, index: Index, out: torch.dtype) -> Expr:
        return convert(self.value(x, index), x.spec.dtype, out, self.n)

    def reshape(self, index: Index, shape: tuple[int, ...], inner: tuple[int, ...]) -> Index:
        """The index into a tensor that is viewed as ``shape``."""
        outer = [i for i, size in enumerate(shape) if size != 1]
        wide = [i for i, size in enumerate(inner) if size != 1]
        if [shape[i] for i in outer] == [inner[i] for i in wide]:
            place = dict(zip(wide, outer, strict=True))
            return index.pick([place.get(i, -1) for i in range(len(inner))])
        aligned = False
        if self.n > 1 and any(index.step):
            whole = shape[-1] % self.n == 0 and inner[-1] % self.n == 0
            aligned = index.aligned and whole and not any(index.step[:-1])
            if not aligned:
                raise OneLane
        flat: Expr = T.int32(0)
        for a, size in zip(index.at, shape, strict=True):
            flat = flat * size + a
        at: list[Expr] = []
        for size in reversed(inner):
            at.insert(0, T.floormod(flat, size))
            flat = T.floordiv(flat, size)
        step = [0] * len(inner)
        if aligned:
            step[-1] = 1
        return Index(tuple(at), tuple(step), aligned)

    def _uniform(self, index: Index, axis: int) -> Expr:
        if self.n > 1 and index.step[axis]:
            raise OneLane
        return index.at[axis]

    def _choose(self, condition: Expr, a: Expr, b: Expr) -> Expr:
        return T.Select(splat(condition, self.n), a, b)

    def call(self, call: Call, index: Index) -> Expr:
        """Lanes of a call's result.

        Raises:
            Unsupported: this call cannot be computed.
            OneLane: not with this many lanes.
        """
        name, args, out, n = family(call.op), call.args, call.out, self.n
        x = args.get("self", args.get("input"))
        rank = len(out.shape)

        if name in POINTWISE:
            return pointwise(call, lambda v, d: self.operand(v, index, out.shape, d), n)
        if name in VIEWS:
            return self._moved(x, self.reshape(index, out.shape, x.spec.shape), out.dtype)
        if name in CREATORS:
            return self._create(name, call, index)
        if name in ("permute", "transpose", "t"):
            if name == "permute":
                order = [dim(d, rank) for d in args["dims"]]
            else:
                order = list(range(rank))
                a, b = (args["dim0"], args["dim1"]) if name == "transpose" else (0, -1)
                if rank:
                    a, b = dim(a, rank), dim(b, rank)
                    order[a], order[b] = order[b], order[a]
            return self._moved(x, index.pick([order.index(i) for i in range(rank)]), out.dtype)
        if name in ("expand", "expand_as", "broadcast_to"):
            return self._moved(x, self.broadcast(index, out.shape, x.spec.shape), out.dtype)
        if name == "slice":
            d = dim(args["dim"], rank)
            size, step = x.spec.shape[d], args["step"]
            start = args["start"] or 0
            start = min(max(start + size if start < 0 else start, 0), size)
            moved = index.change(d, index.at[d] * step + start, index.step[d] * step)
            return self._moved(x, moved, out.dtype)
        if name == "select":
            d = dim(args["dim"], rank + 1)
            position = args["index"] % x.spec.shape[d]
            at, step = list(index.at), list(index.step)
            at.insert(d, T.int32(position))
            step.insert(d, 0)
            return self._moved(x, Index(tuple(at), tuple(step)), out.dtype)
        if name == "flip":
            moved = index
            for d in (dim(d, rank) for d in args["dims"]):
                moved = moved.change(d, out.shape[d] - 1 - moved.at[d], -moved.step[d])
            return self._moved(x, moved, out.dtype)
        if name == "roll":
            moved = index
            if not args["dims"]:
                raise Unsupported("roll of a flattened tensor")
            for shift, d in zip(args["shifts"], args["dims"], strict=True):
                d = dim(d, rank)
                at = self._uniform(index, d) + (-shift % out.shape[d])
                moved = moved.change(d, T.floormod(at, out.shape[d]), 0)
            return self._moved(x, moved, out.dtype)
        if name == "repeat":
            lead = rank - len(x.spec.shape)
            moved = index.pick(list(range(lead, rank)))
            for d, size in enumerate(x.spec.shape):
                if size == 1:
                    moved = moved.change(d, 0, 0)
                elif size != out.shape[lead + d]:
                    at = T.floormod(self._uniform(moved, d), size)
                    moved = moved.change(d, at, 0)
            return self._moved(x, moved, out.dtype)
        if name == "cat":
            tensors = [t for t in args["tensors"] if t.spec.numel]
            d = dim(args["dim"], rank)
            at = self._uniform(index, d) if len(tensors) > 1 else index.at[d]
            result, start = None, 0
            for tensor in tensors:
                size = tensor.spec.shape[d]
                part = index
                if len(tensors) > 1:
                    part = index.change(d, _between(at - start, size), 0)
                lanes = self._moved(tensor, part, out.dtype)
                result = lanes if result is None else self._choose(at < start, result, lanes)
                start += size
            return result
        if name == "stack":
            d = dim(args["dim"], rank)
            at = self._uniform(index, d)
            inner = index.pick([i for i in range(rank) if i != d])
            result = None
            for i, tensor in enumerate(args["tensors"]):
                lanes = self._moved(tensor, inner, out.dtype)
                result = lanes if result is None else self._choose(at < i, result, lanes)
            return result
        if name == "constant_pad_nd":
            pads, moved = args["pad"], index
            inside: Expr = None
            for i in range(len(pads) // 2):
                before, after = pads[2 * i], pads[2 * i + 1]
                d = rank - 1 - i
                if before or after:
                    size = x.spec.shape[d]
                    at = self._uniform(index, d) - before
                    here = T.And(at >= 0, at < size)
                    inside = here if inside is None else T.And(inside, here)
                    moved = moved.change(d, _between(at, size), 0)
            lanes = self._moved(x, moved, out.dtype)
            return (
                lanes
                if inside is None
                else self._choose(inside, lanes, literal(args["value"] or 0, out.dtype, n))
            )
        if name in ("tril", "triu"):
            # Positions differ by less than 2^31, so that the comparison does not wrap.
            row, column = self.lane(index, rank - 2), self.lane(index, rank - 1)
            diagonal = args["diagonal"]
            kept = (T.LE if name == "tril" else T.GE)(column - row, splat(T.int32(diagonal), n))
            return T.Select(kept, self.value(x, index), literal(0, out.dtype, n))
        if name in ("embedding", "index_select", "gather", "index"):
            return self._look_up(name, call, index)
        if name == "upsample_nearest2d":
            return self._upsample(call, index)
        raise Unsupported(f"no CPU kernel for {call.op}")

    def _create(self, name: str, call: Call, index: Index) -> Expr:
        args, out, n = call.args, call.out, self.n
        if name == "arange":
            if out.dtype.is_floating_point:
                kind = computed(out.dtype)
                steps = T.Cast(typed(kind, n), self.lane(index, 0))
                value = steps * literal(args.get("step", 1), out.dtype, n)
                value = value + literal(args.get("start", 0), out.dtype, n)
                wide = torch.float64 if kind == "float64" else torch.float32
                return convert(value, wide, out.dtype, n)
            steps = T.Cast(typed(computed(out.dtype), n), self.lane(index, 0))
            value = steps * literal(args.get("step", 1), out.dtype, n)
            return value + literal(args.get("start", 0), out.dtype, n)
        if name == "eye":
            same = T.EQ(self.lane(index, 0), self.lane(index, 1))
            return T.Select(same, literal(1, out.dtype, n), literal(0, out.dtype, n))
        if name == "scalar_tensor":
            value = args["s"]
        elif name == "fill":
            value = args["value"]
        else:
            value = args.get("fill_value", 1 if "ones" in name else 0)
        if isinstance(value, Value):
            return self.operand(value, index, out.shape, out.dtype)
        if out.dtype.is_floating_point:
            value = torch.tensor(value, dtype=out.dtype).item()
        return literal(value, out.dtype, n)

    def _position(self, x: Value, index: Index, size: int, wrap: bool) -> Expr:
        """An index held in a tensor, kept inside the axis so that no load strays."""
        if self.n > 1 and any(index.step):
            raise OneLane
        if x.spec.dtype is torch.bool:
            raise Unsupported("a boolean mask as an index: the shape depends on data")
        at = let(T.Cast("int32", self.single.value(x, index)))
        if wrap:
            at = T.Select(at < 0, at + size, at)
        return let(_between(at, size))

    def _look_up(self, name: str, call: Call, index: Index) -> Expr:
        args, out = call.args, call.out
        if name == "embedding":
            table, where = args["weight"], args["indices"]
            inner = index.pick(list(range(len(out.shape) - 1)))
            at = self._position(where, inner, table.spec.shape[0], wrap=False)
            moved = Index((at, index.at[-1]), (0, index.step[-1]), index.aligned)
            return self._moved(table, moved, out.dtype)
        x = args["self"]
        rank = len(x.spec.shape)
        if name in ("index_select", "gather"):
            if not rank:
                raise Unsupported(f"{name} of a scalar")
            d = dim(args["dim"], rank)
            where = args["index"]
            inner = index if name == "gather" else index.pick([d] if where.spec.shape else [])
            at = self._position(where, inner, x.spec.shape[d], wrap=False)
            return self._moved(x, index.change(d, at, 0), out.dtype)
        given = [(i, t) for i, t in enumerate(args["indices"]) if t is not None]
        places = [i for i, _ in given]
        if places != list(range(places[0], places[0] + len(places))):
            raise Unsupported("index tensors with a gap between them")
        shape = torch.broadcast_shapes(*(t.spec.shape for _, t in given))
        first, width = places[0], len(shape)
        inner = index.pick(list(range(first, first + width)))
        at, step = list(index.at[:first]), list(index.step[:first])
        for i, t in given:
            place = self.broadcast(inner, tuple(shape), t.spec.shape)
            at.append(self._position(t, place, x.spec.shape[i], wrap=True))
            step.append(0)
        at += index.at[first + width :]
        step += index.step[first + width :]
        return self._moved(x, Index(tuple(at), tuple(step)), out.dtype)

    def _upsample(self, call: Call, index: Index) -> Expr:
        """Nearest neighbours, at the very places where torch's single precision finds them."""
        x = call.args.get("self", call.args.get("input"))
        factors = call.args.get("scale_factors") or (
            call.args.get("scales_h"),
            call.args.get("scales_w"),
        )
        moved = index
        for d, factor in zip((2, 3), factors, strict=True):
            size, wanted = x.spec.shape[d], call.out.shape[d]
            if wanted == size:
                continue
            at = self._uniform(index, d)
            if wanted == 2 * size:  # whatever the factor: 5 * 2.1 is 10 places too
                at = T.floordiv(at, 2)
            else:
                step = 1.0 / factor if factor else size / wanted
                at = T.Cast("int32", T.Cast("float32", at) * T.float32(step))
                at = T.min(at, size - 1)
            moved = moved.change(d, at, 0)
        return self._moved(x, moved, call.out.dtype)


MOVEMENT = frozenset(
    {"permute", "transpose", "t", "expand", "expand_as", "broadcast_to", "slice", "select",
     "flip", "roll", "repeat", "cat", "stack", "constant_pad_nd", "tril", "triu", "embedding",
     "index_select", "gather", "index", "upsample_nearest2d"}
)  # fmt: skip
