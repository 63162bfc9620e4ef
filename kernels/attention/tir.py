"""``zoomc::attention`` on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from ..tir.isa import Isa
from ..tir.kernel import Call, Kernel, Operand, TensorSpec, Unsupported, Value, lowers
from ..tir.plan import chosen
from .dot import Dot
from .engine import Engine
from .flash import Flash, Problem
from .fma import Fma
from .micro_rows import PIECE, QUERIES
from .plan import Blocks, Plan, plan, plan_rows
from .rows import Rows
from .tiles import PIECES, Tiles

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _mask(call: Call, batch: int, heads: int, queries: int, keys: int) -> TensorSpec | None:
    """The mask's spec, checked."""
    value: Value | None = call["mask"]
    if value is None:
        return None
    full = (batch, heads, queries, keys)
    shape = (1,) * (4 - len(value.spec.shape)) + value.spec.shape
    if len(shape) > 4 or any(m not in (1, f) for m, f in zip(shape, full, strict=True)):
        raise Unsupported(f"mask of shape {value.spec.shape} for scores of shape {full}")
    if value.spec.dtype not in (*_FLOATS, torch.bool):
        raise Unsupported(f"mask of dtype {value.spec.dtype}")
    return value.spec


def _generator(
    call: Call, problem: Problem, heads: int, dim: int, sign: float, isa: Isa
) -> tuple[Plan, Flash | Rows, str, Callable[[], Iterator[Blocks]]]:
    """The path's blocks, what emits the kernel, its engine's name, and the blocks nearby."""
    q, keys = problem.q, problem.k.shape[1]
    words = PIECES[q.dtype]

    def cut(blocks: Plan, unit: int, step: int) -> tuple[Plan, Callable[[], Iterator[Blocks]]]:
        blocks = blocks.using(chosen(blocks.blocks, call.plan), unit, step)
        return blocks, lambda: blocks.nearby(unit, step)

    # Of several words, few keys do not repay what comes before the first step.
    worth = words == 1 or keys >= 256
    if isa.amx and worth and dim <= Rows.widest and not problem.edits_scores:
        planned = plan_rows(q, keys, heads, dim, isa, words, QUERIES)
        blocks, nearby = cut(planned, QUERIES, PIECE)
        return blocks, Rows(problem, blocks, sign), Rows.__name__, nearby
    if isa.amx:
        step, nbytes = Tiles.step, 2 * PIECES[q.dtype]
    elif isa.bf16_dot and q.dtype is torch.bfloat16:
        step, nbytes = Dot.step, 2
    else:
        step, nbytes = 8, 4
    planned = plan(q, keys, heads, dim, isa, step, nbytes)
    blocks, nearby = cut(planned, planned.strip, step)
    engine: Engine
    if isa.amx:
        engine, precise = Tiles(blocks, q.dtype, sign), q.dtype is not torch.bfloat16
    elif isa.bf16_dot and q.dtype is torch.bfloat16:
        engine, precise = Dot(blocks, sign), False
    else:
        engine, precise = Fma(blocks, q.dtype, sign, isa.registers), True
    return blocks, Flash(problem, engine, isa, precise), type(engine).__name__, nearby


@lowers("zoomc::attention")
def attention(call: Call, isa: Isa) -> Kernel:
    """Flash attention on the best engine the path has for the dtype.

    Raises:
        Unsupported: mixed or other dtypes, an empty operand, a mask that does not broadcast.
    """
    values = (call["q"], call["k"], call["v"])
    q, k, v = (value.spec for value in values)
    if q.dtype not in _FLOATS or not q.dtype == k.dtype == v.dtype:
        raise Unsupported(f"attention of {q.dtype}, {k.dtype} and {v.dtype}")
    heads, dim, scale = call["heads"], call["head_dim"], float(call["scale"])
    batch, queries, _ = q.shape
    keys = k.shape[1]
    if not (k.shape[0] == v.shape[0] == batch and v.shape[1] == keys):
        raise Unsupported(f"attention between shapes {q.shape}, {k.shape} and {v.shape}")
    if 0 in (batch, heads, dim, queries, keys):
        raise Unsupported("attention over nothing")
    mask = _mask(call, batch, heads, queries, keys)
    # The sign of the scale goes into q, exactly; its size into the exponent. A zero scale zeroes
    # q and leaves the exponent alone.
    sign = math.copysign(1.0, scale) if scale else 0.0
    factor = (abs(scale) or 1.0) * math.log2(math.e)
    problem = Problem(q, k, v, call.out, mask, tuple(call["offsets"]), factor, bool(call["causal"]))
    blocks, generator, engine, nearby = _generator(call, problem, heads, dim, sign, isa)
    operands = tuple(Operand((value,)) for value in values)
    if mask is not None:
        operands += (Operand((call["mask"],)),)
    return Kernel(
        name="attention",
        key=("attention", isa.name, engine, problem, blocks, sign),
        build=generator.build,
        operands=operands,
        out=call.out,
        scratch=tuple(generator.scratch().values()),
        flops=4 * batch * heads * queries * keys * dim,
        notes={"engine": engine, "queries": blocks.block_q, "keys": blocks.block_k},
        plan=blocks.blocks,
        nearby=nearby,
    )
