"""Where a denoising step's time goes, kind by kind, each beside its floor.

    python benchmarks/step.py --weights int4
    python benchmarks/step.py --weights keep --dtype fp32 --isa avx512

Kernels are timed inside the compiled graph, and norms and quantisation by the stamps of the
kernels they ride in. Norms are group norms' statistics, and layer norms with the quantisation
that goes row by row with them; quantisation applies group norms and activations on its way.
What is quantised between the two linears of a feed-forward that runs as one kernel counts there.

A product's floor is the longer of two times: its operations at the rate of products that touch no
memory (the instruction that the path multiplies with), and its bytes, each read or written once,
at the rate at which memory is read. What comes before it takes at least the time to read its
input.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections import defaultdict
from typing import Any

import torch
from contender import DTYPES, cast
from harness import cpu_name
from layers import ceiling
from models import build
from rich.console import Console
from rich.table import Table
from zoomc.kernels.tir.isa import isa

import zoomc

#: Kinds of kernels by what their names start with; the rest is the pointwise and reduction code.
KINDS = {
    "conv2d": "convolutions",
    "linear": "linears",
    "mlp": "linears",
    "attention": "attention",
    "norm": "norms",
}
REST = "everything else"

#: Kinds of what comes before a product in its kernel.
STAGES = {"norm": "norms", "quantise": "quantisation", "prepare": "layout, padding"}

_GB = 1 << 30


def bandwidth() -> float:
    """Bytes a second that all threads read from memory together."""
    block = torch.ones(_GB // 4)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - start)
    return _GB / min(times)


def kind(name: str, stage: str = "product") -> str:
    """What a stage of a kernel of that name computes."""
    before = STAGES.get(stage)
    return before or next((k for start, k in KINDS.items() if name.startswith(start)), REST)


def stages(kernel: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Operations and bytes of a kernel's stages, or of all of it as one."""
    found = kernel.get("stages") or {"product": kernel["bytes"]}
    early = {name: (0, reads) for name, reads in found.items() if name != "product"}
    rest = kernel["bytes"] - max((reads for _, reads in early.values()), default=0)
    return early | {"product": (kernel["flops"], rest)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="unet")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--top", type=int, default=0, help="list so many kernels that take longest")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, DTYPES[arguments.dtype])
    machine = isa(arguments.isa, arguments.threads)
    memory = bandwidth()
    peaks = {
        bits: (ceiling(machine, dtype, "int8" if bits else "keep", 0.3) or 0) * 1e9
        for bits in (False, True)
    }
    model, args, kwargs = build(arguments.model)
    model.to(dtype)
    options = {"weights": arguments.weights, "isa": arguments.isa}
    report = zoomc.explain(
        model, *cast(args, dtype), options=options, profile=True, **cast(kwargs, dtype)
    ).to_dict()
    (graph,) = report["graphs"]
    rows: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for kernel in graph["kernels"]:
        coded = re.search(r"_int\d", kernel["name"]) is not None
        peak = peaks[coded]
        for stage, (operations, moved) in stages(kernel).items():
            row = rows[kind(kernel["name"], stage)]
            row["kernels"] += 1
            row["flops"] += operations
            row["bytes"] += moved
            row["floor"] += max(operations / peak if peak else 0.0, moved / memory)
    names = {kernel["symbol"]: kernel["name"] for kernel in graph["kernels"]}
    for symbol, seconds in graph["kernel_seconds"].items():
        for stage, part in graph["stage_seconds"].get(symbol, {"product": seconds}).items():
            rows[kind(names.get(symbol, symbol), stage)]["seconds"] += part
    table = Table(title=f"{arguments.model}, {arguments.weights}, {machine.name}, {cpu_name()}")
    for column in ("", "in kernels", "ms", "of the step", "floor, ms", "GOP", "MB"):
        table.add_column(column, justify="left" if not column else "right")
    total = sum(row["seconds"] for row in rows.values())
    for name, row in [*sorted(rows.items(), key=lambda r: -r[1]["seconds"])]:
        table.add_row(
            name,
            f"{row['kernels']:.0f}",
            f"{row['seconds'] * 1e3:.1f}",
            f"{row['seconds'] / total:.0%}",
            f"{row['floor'] * 1e3:.1f}",
            f"{row['flops'] / 1e9:.0f}",
            f"{row['bytes'] / 1e6:.0f}",
        )
    floor = sum(row["floor"] for row in rows.values())
    table.add_row("step", "", f"{total * 1e3:.1f}", "", f"{floor * 1e3:.1f}", "", "")
    Console().print(table)
    for symbol, seconds in sorted(graph["kernel_seconds"].items(), key=lambda s: -s[1])[
        : arguments.top
    ]:
        calls = [k for k in graph["kernels"] if k["symbol"] == symbol]
        gop, mb = (sum(k[f] for k in calls) / 1e9 for f in ("flops", "bytes"))
        print(
            f"{seconds * 1e3:8.2f} ms {len(calls):3d} calls {gop / seconds:7.0f} GOP/s"
            f" {mb / seconds:5.1f} GB/s  {calls[0]['name'] if calls else symbol}"
        )
    named = {True: "coded", False: "other"}
    rates = ", ".join(f"{named[b]} products {p / 1e9:.0f} GOP/s" for b, p in peaks.items() if p)
    print(f"{rates}; memory {memory / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
