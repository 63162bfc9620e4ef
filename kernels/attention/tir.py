"""``zoomc::attention`` on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from ..tir.isa import Isa
from ..tir.kernel import Call, Kernel, Operand, TensorSpec, Unsupported, Value, lowers
from ..tir.plan import StalePlan, chosen
from .dot import Dot
from .engine import Engine
from .flash import Flash, Problem
from .fma import Fma
from .int8 import Int8
from .integer import BLOCK, WIDEST
from .micro_rows import PIECE, QUERIES
from .plan import Blocks, Plan, plan, plan_codes, plan_rows
from .rows import Rows
from .tiles import PIECES, Tiles

#: What the engines do on SD2's 32×32 and 64×64 attention, in GFLOP/s of two cores of an Emerald
#: Rapids: tiles by the words of an element, the others by the lanes of a vector.
_TILES = {1: 2200.0, 2: 900.0, 3: 470.0}
_BY_LANE = {"Dot": 12.5, "Fma": 16.0, "Int8": 44.0}

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
    words = 1 if call["arithmetic"] == "bf16" else PIECES[q.dtype]

    def cut(blocks: Plan, unit: int, step: int) -> tuple[Plan, Callable[[], Iterator[Blocks]]]:
        blocks = blocks.using(chosen(blocks.blocks, call.plan), unit, step)
        return blocks, lambda: blocks.nearby(unit, step)

    if call["arithmetic"] == "int8":
        blocks, _ = cut(plan_codes(q, keys, heads, dim, isa, BLOCK), 2 * isa.lanes, BLOCK)
        if blocks.block_k != BLOCK:
            raise StalePlan(f"int8 attention takes {BLOCK} keys at a time, not {blocks.block_k}")

        def others() -> Iterator[Blocks]:
            return (b for b in blocks.nearby(blocks.strip, BLOCK) if b.keys == BLOCK)

        return blocks, Int8(problem, blocks, sign, isa), Int8.__name__, others
    # Of several words, few keys do not repay what comes before the first step.
    worth = words == 1 or keys >= 256
    if isa.amx and worth and dim <= Rows.widest and not problem.edits_scores:
        planned = plan_rows(q, keys, heads, dim, isa, words, QUERIES)
        blocks, nearby = cut(planned, QUERIES, PIECE)
        return blocks, Rows(problem, blocks, sign, words), Rows.__name__, nearby
    bf16 = isa.bf16_dot and words == 1
    if isa.amx:
        step, nbytes = Tiles.step, 2 * words
    elif bf16:
        step, nbytes = Dot.step, 2
    else:
        step, nbytes = 8, 4
    planned = plan(q, keys, heads, dim, isa, step, nbytes)
    blocks, nearby = cut(planned, planned.strip, step)
    engine: Engine
    if isa.amx:
        engine = Tiles(blocks, sign, words)
    elif bf16:
        engine = Dot(blocks, sign)
    else:
        engine = Fma(blocks, q.dtype, sign, isa.registers)
    precise = not bf16
    return blocks, Flash(problem, engine, isa, precise), type(engine).__name__, nearby


def _check(arithmetic: str, dim: int, edits_scores: bool, isa: Isa) -> None:
    """Refuse arithmetic that the path has no instructions for."""
    if arithmetic == "bf16" and not isa.bf16_dot:
        raise Unsupported(f"attention in bf16: the path {isa.name!r} has no bf16 products")
    if arithmetic != "int8":
        return
    if not isa.vnni:
        raise Unsupported("attention in int8: this CPU multiplies no bytes (VNNI)")
    if edits_scores:
        raise Unsupported("attention in int8 under a mask")
    if dim > WIDEST:
        raise Unsupported(f"attention in int8 with heads of {dim}; the widest are {WIDEST}")


@lowers("zoomc::attention")
def attention(call: Call, isa: Isa) -> Kernel:
    """Flash attention on the best engine the path has for the dtype.

    Raises:
        Unsupported: mixed or other dtypes, an empty operand, a mask that does not broadcast, an
            arithmetic that the path does not have.
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
    _check(call["arithmetic"], dim, problem.edits_scores, isa)
    blocks, generator, engine, nearby = _generator(call, problem, heads, dim, sign, isa)
    flops = 4 * batch * heads * queries * keys * dim
    words = 1 if call["arithmetic"] == "bf16" else PIECES[q.dtype]
    rate = _BY_LANE[engine] * isa.lanes if engine in _BY_LANE else _TILES[words]
    operands = tuple(Operand((value,)) for value in values)
    if mask is not None:
        operands += (Operand((call["mask"],)),)
    return Kernel(
        name="attention",
        key=("attention", isa.name, engine, call["arithmetic"], problem, blocks, sign),
        build=generator.build,
        operands=operands,
        out=call.out,
        scratch=tuple(generator.scratch().values()),
        flops=flops,
        cost=flops / rate,
        notes={"engine": engine, "queries": blocks.block_q, "keys": blocks.block_k},
        plan=blocks.blocks,
        nearby=nearby,
    )
