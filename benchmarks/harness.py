"""What the benchmarks share: the machine's name and a table of pairs."""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def about() -> dict[str, Any]:
    """What a figure was measured on."""
    import torch

    return {"cpu": cpu_name(), "torch": torch.__version__, "python": platform.python_version()}


def cpu_name() -> str:
    """The CPU as the system names it, with the instruction sets that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = {line.split(":")[0].strip(): line.split(":")[-1].strip() for line in lines if line}
    flags = fields.get("flags", "").split()
    sets = [name for name in ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx2") if name in flags]
    return f"{fields.get('model name', platform.processor())} ({', '.join(sets)})"


def print_table(pairs: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print each pair: seconds a call as median and spread, error, compile time, peak memory
    and the weights' share of it."""
    print(
        f"\n{arguments.model}, {arguments.dtype}, batch {arguments.batch},"
        f" {arguments.threads} threads, {arguments.rounds} rounds, {cpu_name()}"
    )
    print(
        f"{'':12} {'s/call':>8} {'spread':>15} {'error':>9} {'elsewhere':>9}"
        f" {'compile s':>10} {'peak GB':>8} {'weights GB':>10}"
    )
    for pair in pairs:
        for row in (pair["peer"], pair["zoomc"]):
            seconds = row["seconds"]
            spread = f"{min(seconds):.3f}–{max(seconds):.3f}"
            print(
                f"{row['name']:12} {statistics.median(seconds):8.3f} {spread:>15}"
                f" {row['error']:9.1e} {row['error_elsewhere']:9.1e}"
                f" {row['compile_seconds']:10.1f} {row['peak_gb']:8.2f} {row['weights_gb']:10.3f}"
            )
        print(
            f"zoomc is {pair['ratio']:.2f}× as fast as {pair['peer']['name']}"
            f" (pairs: {pair['ratio_low']:.2f}–{pair['ratio_high']:.2f})",
            flush=True,
        )
