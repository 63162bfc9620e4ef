"""One kernel from one call, or from a small graph of them: pointwise, movement, creation.

:func:`fuse` takes calls in topological order, each with the handle of its result; a
:class:`~zoomc.kernels.tir.kernel.Value` whose ``source`` is one of the handles is that call's
result and never reaches memory. The last call is the kernel's output. :func:`kind` says what an
operator is, so that a caller can group: ``pointwise``, ``movement``, ``creator`` and ``view``
fuse; a ``reduction`` may end a group but nothing may follow it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from tvm.tirx.script import builder as T

from ..tir.convert import store, texts
from ..tir.isa import Isa
from ..tir.kernel import STORAGE, Call, Kernel, Operand, TensorSpec, Unsupported, Value
from ..tir.math import let
from ..tir.primfunc import check_sizes, prim_func
from .lazy import CREATORS, MOVEMENT, VIEWS, Index, OneLane, Scope
from .reduce import REDUCTIONS, ROWS, Source, along_last, axes, result, write_rows
from .scalar import POINTWISE, computed, family, scalar_only

Expr = Any
Buffer = Any

#: Below this much data a parallel launch costs more than it saves.
SMALL = 32 << 10


def kind(op: str) -> str | None:
    """``pointwise``, ``movement``, ``creator``, ``view``, ``reduction``, or None if not ours."""
    if not op.startswith("aten::"):
        return None
    name = family(op)
    families = {
        "pointwise": POINTWISE,
        "movement": MOVEMENT,
        "creator": CREATORS,
        "view": VIEWS,
        "reduction": REDUCTIONS,
    }
    return next((label for label, names in families.items() if name in names), None)


def values(call: Call) -> Iterator[Value]:
    """The tensors among a call's arguments."""
    for x in call.args.values():
        for y in x if isinstance(x, (list, tuple)) else (x,):
            if isinstance(y, Value):
                yield y


def leaves(calls: dict[Hashable, Call]) -> dict[Hashable, Value]:
    """What the calls read from memory, by handle, in order of first use."""
    found: dict[Hashable, Value] = {}
    for call in calls.values():
        # A constructor in the likeness of a tensor reads only its shape.
        if family(call.op) in CREATORS and family(call.op).endswith("_like"):
            continue
        for value in values(call):
            if id(value.source) not in calls:
                found.setdefault(id(value.source), value)
    return found


def group_key(calls: dict[Hashable, Call], isa: Isa) -> Hashable:
    """What determines the code: the calls, how they are linked, and the path."""
    names: dict[Hashable, int] = {}

    def strip(x: Any) -> Hashable:
        if isinstance(x, Value):
            return x.spec, names.setdefault(id(x.source), len(names))
        if isinstance(x, (list, tuple)):
            return tuple(map(strip, x))
        # 1, 1.0 and True are equal, and so are the zeros, but do not give the same code.
        return type(x).__name__, repr(x)

    parts = tuple(
        (
            call.op,
            tuple((n, strip(x)) for n, x in sorted(call.args.items())),
            call.out,
            names.setdefault(handle, len(names)),
        )
        for handle, call in calls.items()
    )
    return "pointwise", isa, parts


def _collapse(calls: dict[Hashable, Call], shape: tuple[int, ...]) -> dict[Hashable, Call]:
    """Merge neighbouring dimensions that every tensor of a pointwise group has or lacks."""
    if not all(family(c.op) in POINTWISE for c in calls.values()):
        return calls
    rank = len(shape)
    specs = {v.spec for c in calls.values() for v in values(c)} | {c.out for c in calls.values()}

    def padded(spec: TensorSpec) -> tuple[int, ...]:
        return (1,) * (rank - len(spec.shape)) + spec.shape

    groups: list[list[int]] = []
    for d in range(rank):
        full = [padded(s)[d] == shape[d] for s in specs]
        if groups:
            before = [padded(s)[groups[-1][-1]] == shape[groups[-1][-1]] for s in specs]
            if full == before:
                groups[-1].append(d)
                continue
        groups.append([d])

    def spec(s: TensorSpec) -> TensorSpec:
        # Scalars keep their rank: it decides how they promote.
        if not s.shape:
            return s
        return TensorSpec(tuple(math.prod(padded(s)[d] for d in g) for g in groups), s.dtype)

    def rebuild(x: Any) -> Any:
        if isinstance(x, Value):
            return dataclasses.replace(x, spec=spec(x.spec))
        return [rebuild(y) for y in x] if isinstance(x, (list, tuple)) else x

    return {
        handle: Call(c.op, {k: rebuild(v) for k, v in c.args.items()}, spec(c.out))
        for handle, c in calls.items()
    }


def put(isa: Isa, out: Buffer, spec: TensorSpec, at: Expr, value: Expr, n: int) -> None:
    """Store lanes, computed in the dtype of ``spec``, at a flat index."""
    if computed(spec.dtype) == "float32":
        store(isa, out, at, value, n)
    else:
        T.buffer_store(out, value, [T.ramp(at, 1, n) if n > 1 else at])


def position(flat: Expr, shape: Sequence[int]) -> list[Expr]:
    """The index into ``shape`` of a flat position."""
    at: list[Expr] = []
    for size in reversed(shape):
        at.insert(0, T.floormod(flat, size))
        flat = T.floordiv(flat, size)
    return at


def loops(isa: Isa, nbytes: int, shape: tuple[int, ...], n: int, emit: Callable[..., None]) -> None:
    """Call ``emit(leading index, last index, lanes, aligned)`` for every vector of a shape."""
    last = shape[-1] if shape else 1
    outer = math.prod(shape[:-1])
    loop = T.serial if nbytes < SMALL else T.parallel
    whole, rest = divmod(last, n)
    blocks = 1
    if loop is T.parallel and outer < 4 * isa.threads:
        blocks = max(min(whole, 4 * isa.threads), 1)
    per = -(-whole // blocks)
    with loop(outer * blocks) as task:
        lead = position(T.floordiv(task, blocks), shape[:-1])
        if whole:
            block = T.floormod(task, blocks)
            count = T.bind(T.max(T.min(whole - block * per, per), 0))
            with T.serial(count) as v:
                emit(lead, (block * per + v) * n, n, True)
        if rest:
            final = T.EQ(T.floormod(task, blocks), blocks - 1)
            with T.If(final), T.Then(), T.serial(rest) as i:
                emit(lead, whole * n + i, 1, False)


def fuse(calls: Sequence[tuple[Any, Call]], isa: Isa, name: str | None = None) -> Kernel:
    """One kernel for calls in topological order, each with the handle of its result.

    Raises:
        Unsupported: one of the calls cannot be computed here.
    """
    linked: dict[Hashable, Call] = {id(handle): call for handle, call in calls}
    out = calls[-1][1].out
    inputs = leaves(linked)
    specs = [*(v.spec for v in inputs.values()), out]
    check_sizes([*specs, *(c.out for c in linked.values())])
    for call in linked.values():
        check(call)
    flat = _collapse(linked, out.shape)
    root = list(flat)[-1]
    shape = flat[root].out.shape
    nbytes = sum(s.nbytes for s in specs)
    lanes = 1 if any(scalar_only(c) for c in linked.values()) else isa.lanes

    def body(buffers: list[Buffer], n: int) -> None:
        held = dict(zip(inputs, buffers, strict=False))

        def region(scope_calls: Any, target: Any, extent: tuple[int, ...], shift: int) -> None:
            def emit(lead: list[Expr], at: Expr, k: int, whole: bool) -> None:
                scope = Scope(scope_calls, held, k)
                where = [*lead, at] if extent else []
                aligned = whole and extent[-1] % k == 0 if extent else False
                step = (0,) * (len(where) - 1) + (1,) if where else ()
                index = Index(tuple(where), step if k > 1 else (0,) * len(where), aligned)
                value = target(scope, index)
                flat_at: Expr = T.int32(0)
                for d, (i, size) in enumerate(zip(where, shape, strict=True)):
                    flat_at = flat_at * size + (i + shift if d == axis else i)
                put(isa, buffers[-1], out, flat_at, value, k)

            loops(isa, nbytes, extent, n, emit)

        call, axis = flat[root], -1
        if family(call.op) in REDUCTIONS:
            reduce_into(isa, flat, call, held, buffers[-1], nbytes, n)
        elif family(call.op) == "cat":  # a loop for each part: no choice inside
            axis, start = call["dim"] % len(shape), 0
            for tensor in call["tensors"]:
                extent = tuple(
                    tensor.spec.shape[axis] if d == axis else s for d, s in enumerate(shape)
                )
                region(flat, lambda s, i, t=tensor: s._moved(t, i, out.dtype), extent, start)
                start += tensor.spec.shape[axis]
        else:
            region(flat, lambda s, i: s.call(call, i), shape, 0)

    def build() -> Any:
        try:
            return prim_func(specs, texts(isa), lambda b: body(b, lanes))
        except OneLane:
            return prim_func(specs, texts(isa), lambda b: body(b, 1))

    names = list(dict.fromkeys(family(c.op).strip("_") for c in linked.values()))
    return Kernel(
        name=name or "_".join(names)[:60],
        key=group_key(linked, isa),
        build=build,
        operands=tuple(Operand((v,)) for v in inputs.values()),
        out=out,
        flops=sum(c.out.numel for c in linked.values() if family(c.op) in POINTWISE),
        notes={"fused": len(linked)},
    )


def reduce_into(
    isa: Isa,
    calls: dict[Hashable, Call],
    call: Call,
    held: dict[Hashable, Buffer],
    out: Buffer,
    nbytes: int,
    n: int,
) -> None:
    """Emit the loops of a reduction that ends a group."""
    spec = call.out
    rows = family(call.op) in ROWS
    source_shape = call["self"].spec.shape
    wide = 1 if family(call.op) in ("argmax", "argmin", "cumsum") else n
    over = 1 if along_last(call) or family(call.op) in ("argmax", "argmin") else n
    reduced = axes(call)
    shape = (
        tuple(1 if i in reduced else s for i, s in enumerate(spec.shape)) if rows else spec.shape
    )

    def emit(lead: list[Expr], at: Expr, k: int, aligned: bool) -> None:
        del aligned
        where = [*lead, at] if shape else []
        step = (0,) * (len(where) - 1) + (1 if k > 1 else 0,) if where else ()
        source = Source(call, lambda m: Scope(calls, held, m), Index(tuple(where), step), k, wide)

        def flat(place: list[Expr]) -> Expr:
            position_: Expr = T.int32(0)
            for i, size in zip(place, spec.shape, strict=True):
                position_ = position_ * size + i
            return position_

        if not rows:
            put(isa, out, spec, flat(where), let(result(call, source)), k)
            return

        def write(position_: Expr, value: Expr, m: int) -> None:
            place = list(where)
            if source_shape:
                place[reduced[0]] = position_
            put(isa, out, spec, flat(place), let(value), m)

        write_rows(call, source, write)

    loops(isa, nbytes, shape, over, emit)


def check(call: Call) -> None:
    """Find out that a call is not supported before its kernel is built.

    Raises:
        Unsupported: with the reason.
    """
    for value in values(call):
        if value.spec.dtype not in STORAGE:
            raise Unsupported(f"no kernels for {value.spec.dtype}")
    if family(call.op) not in REDUCTIONS:
        _dry_run(call)
        return
    if call.op.removeprefix("aten::") in ("max.dim", "min.dim", "max.other", "min.other"):
        raise Unsupported(f"no CPU kernel for {call.op}")
    if family(call.op) in ROWS and not call.out.dtype.is_floating_point and "cumsum" not in call.op:
        raise Unsupported("a softmax of integers")
    if family(call.op) == "linalg_vector_norm" and call["ord"] not in (1, 2, math.inf):
        raise Unsupported(f"a vector norm of order {call['ord']}")


def _dry_run(call: Call) -> None:
    # Evaluating the call at one position takes well under a millisecond.
    specs = [v.spec for v in values(call)]

    def body(buffers: list[Buffer]) -> None:
        handles: list[Hashable] = [id(v.source) for v in values(call)]
        held = dict(zip(handles, buffers, strict=False))
        zero = (T.int32(0),) * len(call.out.shape)
        scope = Scope({}, held, 1)
        T.evaluate(scope.call(call, Index(zero, (0,) * len(zero))))

    prim_func([*specs, call.out], [], body)
