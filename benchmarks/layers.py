"""GFLOP/s of convolutions and linears at the shapes of Stable Diffusion 2's UNet, beside torch.

    python benchmarks/layers.py --isa amx --dtype bf16 --torch
    python benchmarks/layers.py --isa amx --weights int4
    python benchmarks/layers.py --isa amx --weights int4+blocks50%
    python benchmarks/layers.py --isa amx --weights keep+blocks50%

One row a distinct layer, with how often a denoising step runs it; the last row adds up a step.
A kernel is timed alone and repeatedly, so weights that fit a cache come from there; in a model
they come from memory. Percentages are of the rate of products that touch no memory: of the whole
layer, and behind "product" of that stage alone, which decodes the weights and finishes the sums,
where norms, quantisation or padding come before it.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable, Iterator

import torch
import zoomc.kernels.conv2d.op
import zoomc.kernels.linear.op  # noqa: F401
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.tir.isa import PATHS, Isa
from zoomc.kernels.tir.isa import isa as choose_isa
from zoomc.kernels.tir.kernel import Kernel, TensorSpec, lower
from zoomc.kernels.tir.llvm import attributes
from zoomc.kernels.tir.micro_amx import CONFIGURE, PRELUDE, RELEASE, products
from zoomc.kernels.tir.primfunc import prim_func
from zoomc.kernels.tir.run import Loaded, bind, load
from zoomc.kernels.weights import Encoding, prune
from zoomc.kernels.weights.pruning import kept_steps

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PAD = [1, 1, 1, 1]

Layer = tuple[str, int, Callable[[torch.dtype], tuple[tuple, dict]]]


def conv(side: int, channels: tuple[int, ...], out: int, kernel: int = 3, **kwargs) -> Callable:
    def make(dtype: torch.dtype) -> tuple[tuple, dict]:
        inputs = [torch.randn(1, side, side, c).to(dtype) for c in channels]
        total = sum(channels)
        weight = (torch.randn(out, total, kernel, kernel) / (total * kernel**2) ** 0.5).to(dtype)
        args = dict(kwargs)
        if kernel == 3:
            args.setdefault("padding", PAD)
        if args.get("norm_groups"):
            args["norm_weight"] = torch.randn(total).to(dtype)
            args["norm_bias"] = torch.randn(total).to(dtype)
        if args.pop("shift", False):
            args["shift"] = torch.randn(1, out).to(dtype)
        if args.pop("residual", False):
            args["residual"] = torch.randn(1, side, side, out).to(dtype)
        return (inputs, weight, torch.randn(out).to(dtype)), args

    return make


def linear(rows: int, k: int, columns: int, **kwargs) -> Callable:
    def make(dtype: torch.dtype) -> tuple[tuple, dict]:
        args = dict(kwargs)
        if args.get("norm"):
            args["norm_weight"] = torch.randn(k).to(dtype)
            args["norm_bias"] = torch.randn(k).to(dtype)
        if args.pop("residual", False):
            args["residual"] = torch.randn(1, rows, columns).to(dtype)
        weight = (torch.randn(columns, k) / k**0.5).to(dtype)
        return (torch.randn(1, rows, k).to(dtype), weight, torch.randn(columns).to(dtype)), args

    return make


def layers() -> Iterator[Layer]:
    """Name, calls a step, and a maker of arguments, for every distinct layer."""
    first = {"norm_groups": 32, "pre_activation": "silu", "shift": True}
    second = {"norm_groups": 32, "pre_activation": "silu", "residual": True}
    yield "conv_in", 1, conv(64, (9,), 320)
    for side, c, one, two in (
        (64, 320, [((320,), 2), ((640, 320), 1), ((320, 320), 2)], 5),
        (
            32,
            640,
            [((320,), 1), ((640,), 1), ((1280, 640), 1), ((640, 640), 1), ((640, 320), 1)],
            5,
        ),
        (16, 1280, [((640,), 1), ((1280,), 1), ((1280, 1280), 2), ((1280, 640), 1)], 5),
        (8, 1280, [((1280,), 4), ((1280, 1280), 3)], 7),
    ):
        for inputs, count in one:
            yield f"res1 {side} {inputs}->{c}", count, conv(side, inputs, c, **first)
            if inputs != (c,):
                yield f"skip {side} {inputs}->{c}", count, conv(side, inputs, c, 1)
        yield f"res2 {side} {c}", two, conv(side, (c,), c, **second)
    for side, c in ((64, 320), (32, 640), (16, 1280)):
        yield f"down {side} {c}", 1, conv(side, (c,), c, stride=[2, 2])
        wide = {64: 640, 32: 1280, 16: 1280}[side]
        yield f"up {side} {wide}", 1, conv(side // 2, (wide,), wide, upsample=True)
    yield "conv_out", 1, conv(64, (320,), 4, norm_groups=32, pre_activation="silu")
    for rows, c, count in ((4096, 320, 5), (1024, 640, 5), (256, 1280, 5), (64, 1280, 1)):
        yield f"proj {rows} {c}", 2 * count, linear(rows, c, c, residual=True)
        yield f"qkv {rows} {c}", count, linear(rows, c, 3 * c, norm=True)
        yield f"q {rows} {c}", count, linear(rows, c, c, norm=True)
        yield f"out {rows} {c}", 2 * count, linear(rows, c, c, residual=True)
        yield f"kv 77 {c}", count, linear(77, 1024, 2 * c)
        yield f"geglu {rows} {c}", count, linear(rows, c, 8 * c, norm=True, activation="geglu")
        yield f"ff2 {rows} {c}", count, linear(rows, 4 * c, c, residual=True)
    yield "time 1", 1, linear(1, 320, 1280, activation="silu")
    yield "time 2", 22, linear(1, 1280, 1280)


def encoded(weights: str, inputs: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments with weights pruned or in random codes: speed depends on blocks only."""
    encoding = Encoding.parse(weights)
    x, weight, *rest = inputs
    extra = {}
    if encoding.kind != "keep":
        extra["channel_scale"] = torch.full((len(weight),), 1e-3)
    if encoding.kind == "keep":
        codes = weight.clone()
    elif encoding.kind == "int8":
        codes = torch.randint(-127, 128, weight.shape, dtype=torch.int8)
    else:
        codes = torch.randint(0, 16, weight.shape, dtype=torch.uint8)
        groups = (weight.shape[0], -(-weight.shape[1] // 64), *weight.shape[2:])
        extra["table"] = torch.arange(-8, 8, dtype=torch.int8)
        extra["group_scale"] = torch.randint(1, 16, groups, dtype=torch.int8)
    if encoding.pruning:
        codes[prune(weight.float(), encoding.pruning) == 0] = 8 if "table" in extra else 0
        gated = kwargs.get("activation") == "geglu"
        extra["kept_steps"] = kept_steps(tuple(weight.shape), encoding.pruning, gated)
    return (x, codes, *rest), kwargs | extra


#: Products in flight where the ceiling is measured: enough to hide each one's latency.
IN_FLIGHT = 12


def tile_products(weights: str) -> tuple[str, int]:
    """IR that multiplies tiles over and over, and what a turn computes."""
    product, values = ("tdpbf16ps", 32) if weights.startswith("keep") else ("tdpbssd", 64)
    text = PRELUDE + turning([], products(product), "")
    text += attributes(("amx-tile", "amx-bf16", "amx-int8"))
    return text, 4 * 2 * 16 * 16 * values


def vector_products(machine: Isa, dtype: torch.dtype, weights: str) -> tuple[str, int] | None:
    """The same in vector registers; None for paths that make products of several instructions."""
    n = machine.lanes
    keep = weights.startswith("keep")
    if keep and dtype is torch.float32:
        name, operand, lane, values = f"@llvm.fma.v{n}f32", f"<{n} x float>", "float", 1
    elif not keep and machine.vnni:
        name, operand, lane, values = (
            f"@llvm.x86.avx512.vpdpbusd.{n * 32}",
            f"<{n * 4} x i8>",
            "i32",
            4,
        )
    else:
        return None
    held = f"<{n} x {lane}>"
    order = (lambda s: f"{operand} %a, {operand} %b, {held} {s}") if lane == "float" else None
    start = [f"  %a = load volatile {operand}, ptr %p", f"  %b = load volatile {operand}, ptr %p"]
    sums, body = [], []
    for i in range(IN_FLIGHT):
        sums.append(f"  %s{i} = phi {held} [zeroinitializer, %entry], [%t{i}, %loop]")
        listed = order(f"%s{i}") if order else f"{held} %s{i}, {operand} %a, {operand} %b"
        body.append(f"  %t{i} = call {held} {name}({listed})")
    kept = "\n".join(f"  store volatile {held} %t{i}, ptr %p" for i in range(IN_FLIGHT))
    kinds = f"{operand}, {operand}, {held}" if order else f"{held}, {operand}, {operand}"
    text = f"declare {held} {name}({kinds})\n" + turning([*start], [*sums, *body], kept)
    features = ("avx512f", "avx512vnni") if n == 16 else ("avx2", "fma", "avxvnni")
    return text + attributes(features if machine.vnni else ()), IN_FLIGHT * 2 * n * values


def turning(before: list[str], body: list[str], after: str) -> str:
    """A function that runs IR lines many times."""
    return "\n".join(
        [
            "define void @zoomc_ceiling(ptr %p, i64 %n) #0 {",
            "entry:",
            *before,
            "  br label %loop",
            "loop:",
            "  %k = phi i64 [0, %entry], [%k1, %loop]",
            *body,
            "  %k1 = add nuw nsw i64 %k, 1",
            "  %end = icmp eq i64 %k1, %n",
            "  br i1 %end, label %done, label %loop",
            "done:",
            after,
            "  ret void",
            "}\n",
        ]
    )


def ceiling(
    machine: Isa, dtype: torch.dtype, weights: str, seconds: float, tiles: bool = True
) -> float | None:
    """GOP/s of products that touch no memory; None where no single instruction makes them.

    Without ``tiles``, those of vector registers even where there are tiles.
    """
    from tvm.tirx.script import builder as T

    tiles = tiles and machine.amx
    found = tile_products(weights) if tiles else vector_products(machine, dtype, weights)
    if found is None or (tiles and weights.startswith("keep") and dtype is torch.float32):
        return None
    text, operations = found
    turns = 100_000

    def body(buffers: list) -> None:
        with T.parallel(machine.threads):
            if tiles:
                T.evaluate(T.call_extern("void", CONFIGURE))
            place = T.address_of(buffers[0][0])
            T.evaluate(T.call_extern("void", "zoomc_ceiling", place, T.int64(turns)))
            if tiles:
                T.evaluate(T.call_extern("void", RELEASE))

    out = TensorSpec((64,), torch.float32)
    build = functools.partial(prim_func, [out], [text], body)
    run = load(Kernel("ceiling", "ceiling", build, (), out), machine)
    return machine.threads * turns * operations / best(run, seconds) / 1e9


def best(fn: Callable[[], object], seconds: float) -> float:
    """The least time of a call, in seconds."""
    fn()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return min(times)


def fastest(fn: Loaded, seconds: float) -> tuple[float, float]:
    """The least time of a call, and the least time of its product, in seconds."""
    products = []

    def call() -> None:
        start = time.perf_counter()
        fn()
        took = time.perf_counter() - start
        products.append(took * fn.stages().get("product", 1.0))

    return best(call, seconds), min(products[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", default="auto", choices=["auto", *(p.name for p in PATHS)])
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--weights", default="keep", help="keep, int8 or int4, also +blocks50%%")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="part of a layer's name")
    parser.add_argument("--seconds", type=float, default=0.15, help="per layer")
    parser.add_argument("--torch", action="store_true", help="time torch's eager operators too")
    args = parser.parse_args()
    if not any(args.only in name for name, _, _ in layers()):
        parser.error(
            f"no layer's name contains {args.only!r}: {', '.join(name for name, _, _ in layers())}"
        )
    machine = choose_isa(args.isa, args.threads)
    torch.set_num_threads(args.threads)
    dtype = DTYPES[args.dtype]
    torch.manual_seed(0)
    top = ceiling(machine, dtype, args.weights, 0.3)
    if top:
        print(f"ceiling: {top:.0f} GOP/s of products that touch no memory")
    vectors = ceiling(machine, dtype, args.weights, 0.3, tiles=False) if machine.amx else None
    if vectors:
        print(f"without tiles: {vectors:.0f} GOP/s, the second percentage")
    total = total_flops = total_torch = compile_time = 0.0
    for name, count, make in layers():
        if args.only not in name:
            continue
        op = "zoomc::conv2d" if isinstance(make(dtype)[0][0], list) else "zoomc::linear"
        inputs, kwargs = encoded(args.weights, *make(dtype))
        call = bind(op, *inputs, **kwargs)
        kernel = lower(call, machine)
        start = time.perf_counter()
        fn = load(kernel, machine)
        compiled = time.perf_counter() - start
        compile_time += compiled
        seconds, product = fastest(fn, args.seconds)
        row = f"{name:32s} x{count:<3d} {seconds * 1e3:8.3f} ms {kernel.flops / seconds / 1e9:7.0f}"
        for limit in filter(None, (top, vectors)):
            row += f" {kernel.flops / seconds / 1e7 / limit:3.0f} %"
        if product < seconds:
            row += f" product {kernel.flops / product / 1e9:6.0f}"
            for limit in filter(None, (top, vectors)):
                row += f" {kernel.flops / product / 1e7 / limit:3.0f} %"
        if args.torch:
            theirs = best(lambda: OPERATORS[op].reference(*inputs, **kwargs), args.seconds)  # noqa: B023
            total_torch += theirs * count
            row += f" torch {kernel.flops / theirs / 1e9:7.0f}"
        notes = {k: v for k, v in kernel.notes.items() if k != "micro"}
        print(row, f" compile {compiled:.2f}", notes, flush=True)
        total += seconds * count
        total_flops += kernel.flops * count
    print(
        f"step {total * 1e3:.1f} ms, {total_flops / 1e9:.0f} GFLOP, "
        f"{total_flops / total / 1e9:.0f} GFLOP/s, compile {compile_time:.1f} s"
        + (f", torch {total_torch * 1e3:.1f} ms" if args.torch else "")
    )


if __name__ == "__main__":
    main()
