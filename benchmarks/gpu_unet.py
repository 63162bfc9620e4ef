"""Everything there is to measure on a GPU, zoomc beside its peers, in one run.

    python benchmarks/gpu_unet.py
    python benchmarks/gpu_unet.py --cases 2x64 --contenders inductor,zoomc,zoomc-int4 --skip cold
    python benchmarks/gpu_unet.py --dry-run

Kernels alone beside the card's own product and torch's flash attention; every contender's first
call from cold caches; for each case (batch × side of the latents) seconds a step as the median of
interleaved calls, the error against eager in fp32, memory, bytes of weights; bytes that ``ncu``
counts in the heaviest kernels beside those predicted; whole pictures of 20 steps, a second and by
joules. All is printed, held against what is asked for, and written as JSON with the machine's name
under ``benchmarks/results/``. Contenders run in fp16, channels-last; Inductor and zoomc with CUDA
graphs, eager without.

``--dry-run`` goes through all of it without a GPU, on a small model in Triton's interpreter: its
figures mean nothing and are not written unless ``--out`` says where.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_machine import DryRun, Gpu

RESULTS = Path(__file__).with_name("results")
PARTS = ("kernels", "cold", "steps", "counters", "pipeline")


def medians(rows: Sequence[dict[str, Any]], batch: int, side: int) -> dict[str, float]:
    """Seconds a step of one case by contender."""
    mine = [row for row in rows if (row["batch"], row["side"]) == (batch, side)]
    return {row["contender"]: statistics.median(row["seconds"]) for row in mine}


def verdicts(figures: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """What is asked for: ``(what, measured, whether it is reached)``, as far as measured."""
    found: list[tuple[str, str, bool]] = []
    steps = figures.get("steps", [])
    sizes = dict.fromkeys((row["batch"], row["side"]) for row in steps)
    for batch, side in sizes:
        times = medians(steps, batch, side)
        base = times.get("inductor")
        for name, factor in (("zoomc", 1.3), ("zoomc-int8", 1.6), ("zoomc-int4", 1.6)):
            if base is None or name not in times:
                continue
            least = factor if (batch, side) == (2, 64) else 1.0
            gain = base / times[name]
            what = f"{name} ≥ {least}× Inductor, batch {batch}, {side}×{side}"
            found.append((what, f"{gain:.2f}×", gain >= least))
    for row in steps:
        if row["contender"] == "zoomc-int4" and (row["batch"], row["side"]) == (2, 64):
            size = row["weights_gb"]
            found.append(("int4 weights ≤ 0.47 GB", f"{size:.3f} GB", size <= 0.47))
    kernels = figures.get("kernels", {})
    for row in kernels.get("products", []):
        if row["bits"] == 16:
            part = row["of_matmul"]
            what = f"{row['kernel']} ≥ 70 % of the card's product"
            found.append((what, f"{part:.0%}", part >= 0.7))
    for row in kernels.get("attention", []):
        gain = row["flash"] / row["ours"]
        found.append((f"{row['kernel']} ≥ flash", f"{gain:.2f}×", gain >= 1))
    cold = figures.get("cold", {})
    for name in cold:
        if name.startswith("zoomc") and name != "zoomc-tuned" and "inductor" in cold:
            what = f"{name}'s first call before Inductor's"
            text = f"{cold[name]:.0f} s, {cold['inductor']:.0f} s"
            found.append((what, text, cold[name] < cold["inductor"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="2x64,1x64,8x64,2x96", help="batch x side, by commas")
    parser.add_argument("--contenders", help="by commas; all by default")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--skip", default="", help=f"parts to leave out: {', '.join(PARTS)}")
    parser.add_argument("--dry-run", action="store_true", help="try every step without a GPU")
    parser.add_argument("--out", help="JSON file; by default named after the machine")
    arguments = parser.parse_args()
    machine = DryRun() if arguments.dry_run else Gpu()
    # These load Triton, which decides at import whether it interprets.
    import gpu_counters
    import gpu_kernels
    import gpu_pipeline
    import gpu_steps
    from gpu_contenders import CONTENDERS
    from models import SD2_UNET

    names = arguments.contenders.split(",") if arguments.contenders else list(CONTENDERS)
    if unknown := set(names) - set(CONTENDERS):
        raise SystemExit(
            f"no contender {', '.join(sorted(unknown))}; known: {', '.join(CONTENDERS)}"
        )
    skipped = set(filter(None, arguments.skip.split(",")))
    if unknown := skipped - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    figures: dict[str, Any] = {**machine.facts(), "model": SD2_UNET}
    path = Path(arguments.out or RESULTS / f"gpu_unet_{machine.name.replace(' ', '_')}.json")

    def keep() -> None:
        """Write down what there is: a later part may fail."""
        if machine.dry and not arguments.out:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1))

    if "kernels" not in skipped:
        figures["kernels"] = gpu_kernels.run(machine)
        keep()
    if "cold" not in skipped:
        figures["cold"] = gpu_steps.cold(machine, [name for name in names if name != "eager"])
        keep()
    figures["steps"] = []
    for text in [] if "steps" in skipped else arguments.cases.split(","):
        batch, side = map(int, text.split("x"))
        rows = gpu_steps.case(machine, batch, side, names, arguments.rounds)
        gpu_steps.show(machine, rows)
        figures["steps"] += rows
        keep()
    if "counters" not in skipped:
        ours = [name for name in names if name.startswith("zoomc")]
        figures["counters"] = {}
        for name in ours[:1] + ours[-1:] if len(ours) > 1 else ours:
            figures["counters"][name] = gpu_counters.run(machine, name)
            gpu_counters.show(figures["counters"][name])
        keep()
    if "pipeline" not in skipped:
        print()
        figures["pipeline"] = gpu_pipeline.run(machine, names, 1 if machine.dry else 5)
        keep()
    print()
    for what, measured, reached in verdicts(figures):
        print(f"{'reached' if reached else 'MISSED ':8} {measured:>14}  {what}")
    print("\nnothing written" if machine.dry and not arguments.out else f"\nwritten to {path}")


if __name__ == "__main__":
    main()
