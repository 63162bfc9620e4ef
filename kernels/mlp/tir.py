"""CPU kernels of ``zoomc::mlp`` on coded weights: what stands between never leaves the cache.

A worker takes a run of rows through both products. The first's result, of as many rows as fit the
second-level cache, is quantised there for the second, which reads it from there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir import coded, convert, quantise
from ..tir.codes import Codes
from ..tir.epilogue import Epilogue, IntegerSums, finishing
from ..tir.gemm import Rows
from ..tir.integer_product import IntegerProduct, Read, share
from ..tir.isa import Isa
from ..tir.kernel import Call, Kernel, Operand, TensorSpec, Unsupported, Value, lowers
from ..tir.key import call_key
from ..tir.micro_int8 import micro as choose
from ..tir.pack import round_up
from ..tir.plan import Plan
from ..tir.primfunc import check_sizes, prim_func
from ..tir.stages import NORM, PRODUCT, QUANTISE, Stages

_FIRST = ("norm", "norm_weight", "norm_bias", "norm_eps", "activation")
_CODED = ("table", "group_scale", "channel_scale", "kept_steps")

#: What a linear's call has and these have not.
_PLAIN = {"weight_only": False, "bounds": None, "pre_activation": "none", "residual": None}


def linears(call: Call) -> tuple[Call, Call]:
    """The two linears that a call is."""
    x, down = call["x"], call["down"]
    hidden = TensorSpec((*x.spec.shape[:-1], down.spec.shape[1]), x.spec.dtype)
    first = {name: call[name] for name in ("x", "weight", "bias", *_FIRST, *_CODED)}
    second = {name: call[f"down_{name}"] for name in ("bias", *_CODED)}
    second |= {"x": Value(hidden), "weight": down, "norm": False, "activation": "none"}
    second["residual"] = call["residual"]
    op = "zoomc::linear"
    return Call(op, _PLAIN | first, hidden), Call(op, _PLAIN | second, call.out)


@lowers("zoomc::mlp")
def mlp(call: Call, isa: Isa) -> Kernel:
    """Both products, run by run.

    Raises:
        Unsupported: see :func:`~zoomc.kernels.tir.coded.check`; weights without codes; empty
            tensors; few rows, whose hidden values stay near without that: workers would decode
            all weights each.
    """
    first, second = linears(call)
    if first["channel_scale"] is None or second["channel_scale"] is None:
        raise Unsupported("weights that are not in codes")
    x, residual = call["x"], call["residual"]
    check_sizes([*(v.spec for v in call.args.values() if isinstance(v, Value)), call.out])
    hidden = second["weight"].spec.shape[1]
    k = x.spec.shape[-1]
    coded.check(first, {x.spec.dtype}, k)
    coded.check(second, {x.spec.dtype}, hidden)
    count = x.spec.numel // k
    if first.out.nbytes <= isa.threads * isa.l2:
        raise Unsupported(f"{count} rows of {hidden} hidden values, which stay in the caches")
    micro = choose(isa)
    rows = Rows(1, 1, count, count, count, exact=False)
    run = _run(isa, micro.block, count, hidden, x.spec.dtype.itemsize)
    room = isa.threads * run
    wide = quantise.Blocks(isa, micro, k, round_up(count, micro.rows))
    near = quantise.Blocks(isa, micro, hidden, room)
    up = _product(first, wide, rows, run, gated=call["activation"] == "geglu")
    down = _product(second, near, rows, run, gated=False)

    operands = {"x": Operand((x,))}
    operands |= coded.operands(first, up, micro.zero)
    operands |= {f"down_{n}": o for n, o in coded.operands(second, down, micro.zero).items()}
    for name in ("norm_weight", "norm_bias"):
        if call["norm"] and call[name] is not None:
            operands[name] = Operand((call[name],))
    if residual is not None:
        operands["residual"] = Operand((residual,))
    prepare = NORM if call["norm"] else QUANTISE
    stages = Stages.of(isa, [x], prepare)
    each = TensorSpec((count,), torch.float32)
    scratch = stages.scratch() | {
        "a": wide.spec,
        "scales": each,
        "hidden": TensorSpec((room, hidden), x.spec.dtype),
        "near": near.spec,
        "down_scales": each,
        "row": TensorSpec((isa.threads * max(k, hidden),), torch.float32),
    }
    work, more = up.scratch(), down.scratch()

    def body(buffers: list[Any]) -> None:
        named = dict(zip([*operands, "out", *scratch], buffers, strict=False))
        gain, offset = named.get("norm_weight"), named.get("norm_bias")
        source = quantise.RowSource(
            named["x"], call["norm"], gain, offset, call["norm_eps"], "none"
        )
        between = quantise.RowSource(named["hidden"], False, None, None, 0.0, "none")
        rest = buffers[-len(work) - len(more) :]
        spaces = rest[: len(work)], rest[len(work) :]

        def read(product: IntegerProduct, a: str, prefix: str, space: list[Any]) -> Read:
            offsets = product.listed(named.get(f"{prefix}offsets"), space)
            table = named.get(f"{prefix}table")
            return Read(named[a], named[f"{prefix}panels"], table, offsets, space)

        def finish(prefix: str, scales: str, out: str, **kwargs: Any) -> Epilogue:
            sums = IntegerSums(
                named[f"{prefix}factors"], named[scales], named.get(f"{prefix}correction")
            )
            bias = named.get(f"{prefix}columns")
            return Epilogue(isa, micro, out=named[out], bias=bias, integer=sums, **kwargs)

        stages.begin(prepare, named)
        quantise.rows(wide, source, named["row"], named["a"], named["scales"], count)
        stages.begin(PRODUCT, named)
        reads = read(up, "a", "", spaces[0]), read(down, "near", "down_", spaces[1])
        with T.parallel(isa.threads) as worker:
            micro.begin()
            begin, stop = share(worker, isa.threads, up.blocks)
            with T.serial(T.floordiv(stop - begin + up.plan.blocks - 1, up.plan.blocks)) as turn:
                base = T.bind(begin + turn * up.plan.blocks)
                blocks = base, T.bind(T.min(base + up.plan.blocks, stop))
                # A worker's rows of this run lie in its part of what is near.
                origin = T.bind(base * micro.block - worker * run)
                inner = finish(
                    "",
                    "scales",
                    "hidden",
                    columns=hidden,
                    activation=call["activation"],
                    origin=origin,
                )
                up.turn(reads[0], worker, blocks, (0, up.codes.panels), inner)
                last = T.bind(T.min(blocks[1] * micro.block, count))
                with T.serial(base * micro.block, last) as m:
                    quantise.row(
                        near,
                        between,
                        named["row"],
                        T.bind(worker * max(k, hidden)),
                        named["near"],
                        named["down_scales"],
                        m,
                        origin=origin,
                    )
                outer = finish(
                    "down_",
                    "down_scales",
                    "out",
                    columns=call.out.shape[-1],
                    residual=named.get("residual"),
                )
                local = dataclasses.replace(reads[1], origin=origin)
                down.turn(local, worker, blocks, (0, down.codes.panels), outer)
            micro.end()
        stages.end(named)

    specs = [*(o.spec for o in operands.values()), call.out, *scratch.values(), *work, *more]
    texts = [*convert.texts(isa), *quantise.lane_texts(isa), micro.text]
    texts += [*up.codes.texts(isa), *down.codes.texts(isa)]
    bits = sorted({up.codes.bits, down.codes.bits})
    parts = ["mlp", "int" + "_".join(map(str, bits)), *(["norm"] if call["norm"] else [])]
    flops = sum(
        2 * count * c["weight"].spec.numel * p.codes.steps // p.codes.depth
        for c, p in ((first, up), (second, down))
    )
    return Kernel(
        "_".join([*parts, *([call["activation"]] if call["activation"] != "none" else [])]),
        call_key(call, isa),
        lambda: prim_func(specs, texts, body),
        tuple(operands.values()),
        call.out,
        (*scratch.values(), *work, *more),
        flops=flops,
        notes={"micro": micro.name, "rows": run, "chunks": (up.plan.chunk, down.plan.chunk)},
        stages=stages.reads,
    )


def _run(isa: Isa, block: int, count: int, hidden: int, itemsize: int) -> int:
    """Rows of a run: whole blocks, whose hidden values and codes leave room beside them."""
    fit = max(isa.l2 * 5 // 8 // (hidden * (itemsize + 1)) // block, 1)
    total = -(-count // block)
    each = -(-total // isa.threads)
    turns = -(-each // fit)
    return -(-each // turns) * block


def _product(
    call: Call, layout: quantise.Blocks, rows: Rows, run: int, gated: bool
) -> IntegerProduct:
    """A product in runs: every worker its own rows, by all panels."""
    isa, micro = layout.isa, layout.micro
    codes = Codes.of(call, micro, gated)
    planned = IntegerProduct.of(isa, layout, rows, (0,), codes, finishing(call))
    cut = Plan(1, isa.threads, 1, run // micro.block, planned.plan.chunk, False)
    return dataclasses.replace(planned, plan=cut, micro=micro)
