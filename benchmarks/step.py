"""Where a denoising step's time goes, kind by kind, each beside its floor.

    python benchmarks/step.py --weights int4
    python benchmarks/step.py --weights keep --dtype fp32 --isa avx512

Kernels are timed inside the compiled graph. A kernel's floor is the longer of two times: its
operations at the rate of products that touch no memory (the instruction that the path multiplies
with), and its bytes, each read or written once, at the rate at which memory is read. Norms and
quantisation that ride in the kernel of a convolution or a linear count there.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections import defaultdict

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
KINDS = {"conv2d": "convolutions", "linear": "linears", "attention": "attention", "norm": "norms"}

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


def kind(name: str) -> str:
    """What a kernel of that name computes."""
    return next((k for start, k in KINDS.items() if name.startswith(start)), "everything else")


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
        moved = kernel["bytes"] / memory
        floor = max(kernel["flops"] / peak if peak else 0.0, moved)
        row = rows[kind(kernel["name"])]
        row["kernels"] += 1
        row["flops"] += kernel["flops"]
        row["bytes"] += kernel["bytes"]
        row["floor"] += floor
    names = {kernel["symbol"]: kernel["name"] for kernel in graph["kernels"]}
    for symbol, seconds in graph["kernel_seconds"].items():
        rows[kind(names.get(symbol, symbol))]["seconds"] += seconds
    table = Table(title=f"{arguments.model}, {arguments.weights}, {machine.name}, {cpu_name()}")
    for column in ("", "kernels", "ms", "of the step", "floor, ms", "GOP", "MB"):
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
