"""Everything there is to measure on a GPU, zoomc beside its peers, in one run.

    python benchmarks/gpu_unet.py
    python benchmarks/gpu_unet.py --cases 2x64 --contenders inductor,zoomc,zoomc-int4 --skip cold
    python benchmarks/gpu_unet.py --skip kernels,cold,steps --add
    python benchmarks/gpu_unet.py --dry-run

Kernels alone beside the card's own product and torch's flash attention; every contender's first
call from cold caches; for each case (batch × side of the latents) seconds a step as the median of
interleaved calls, the error against eager in fp32, memory, bytes of weights; bytes that ``ncu``
counts in the heaviest kernels beside those predicted; whole pictures of 20 steps, a second and by
joules. All is printed, held against what is asked for, and written as JSON with the machine's name
under ``benchmarks/results/``. Contenders run in fp16, channels-last; Inductor and zoomc with CUDA
graphs, eager without.

Parts run in processes of their own and are written down as they end. What fails is said, noted in
the JSON, and leaves the rest as it is; the status is then 1.

``--dry-run`` goes through all of it without a GPU, on small models in Triton's interpreter, with
another compiler in Inductor's place and bytes that nobody counted: its figures mean nothing and
are not written unless ``--out`` says where. Past the first case it takes one contender and a peer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_machine import DryRun, Gpu
from models import SD2_UNET

RESULTS = Path(__file__).with_name("results")
#: Whom a dry run takes where it does not take all.
FEW = ("inductor", "zoomc")
#: How much faster than Inductor at batch 2 of 64×64; elsewhere no slower.
GAINS = {"zoomc": 1.3, "zoomc-int8": 1.6, "zoomc-int4": 1.6, "zoomc-w4a8": 1.6}
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
        for name, factor in GAINS.items():
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
    for row in figures.get("kernels", {}).get("rows", []):
        if row["bits"] == 16 and "of_matmul" in row:
            part = row["of_matmul"]
            what = f"{row['kernel']} ≥ 70 % of the card's product"
            found.append((what, f"{part:.0%}", part >= 0.7))
        if "flash" in row["peers"]:
            gain = row["peers"]["flash"] / row["ours"]
            what = f"{row['kernel']} in {row['bits']} bits ≥ torch's flash attention in fp16"
            found.append((what, f"{gain:.2f}×", gain >= 1))
    cold = figures.get("cold", {})
    for name in cold:
        if name.startswith("zoomc") and name != "zoomc-tuned" and "inductor" in cold:
            what = f"{name}'s first call before Inductor's"
            text = f"{cold[name]:.0f} s, {cold['inductor']:.0f} s"
            found.append((what, text, cold[name] < cold["inductor"]))
    return found


class Figures:
    """What was measured, written down as it comes."""

    def __init__(self, machine: Gpu, out: str | None, add: bool) -> None:
        """``add`` to what the file has, parts that run again in place of theirs."""
        from gpu_steps import SMALL

        self.all: dict[str, Any] = {"failures": {}, "steps": [], "counters": {}}
        name = f"gpu_unet_{machine.name.replace(' ', '_')}.json"
        self.path = None if machine.dry and not out else Path(out or RESULTS / name)
        if add and self.path and self.path.exists():
            self.all = json.loads(self.path.read_text())
        self.all |= {**machine.facts(), "model": SMALL if machine.dry else SD2_UNET}
        self.keep()

    def case(self, batch: int, side: int, rows: list[dict[str, Any]]) -> None:
        """Take in the rows of a case."""
        others = [x for x in self.all["steps"] if (x["batch"], x["side"]) != (batch, side)]
        self.all["steps"] = others + rows

    def keep(self) -> None:
        """Write down what there is: a later part may fail."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.all, indent=1))

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[dict[str, str]]:
        """A part that may fail; takes what failed in it, by item."""
        failed: dict[str, str] = {}
        start = time.perf_counter()
        print(f"\n== {name}", flush=True)
        try:
            yield failed
        except Exception as error:
            traceback.print_exc()
            failed["all of it"] = f"{type(error).__name__}: {error}"
        for item, why in failed.items():
            print(f"FAILED   {item}: {why}", flush=True)
        self.all["failures"].pop(name, None)
        if failed:
            self.all["failures"][name] = failed
        self.all.setdefault("part_seconds", {})[name] = time.perf_counter() - start
        self.keep()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="2x64,1x64,8x64,2x96", help="batch x side, by commas")
    parser.add_argument("--contenders", help="by commas; all by default")
    parser.add_argument("--rounds", type=int, default=0, help="11 by default, 1 in a dry run")
    parser.add_argument("--skip", default="", help=f"parts to leave out: {', '.join(PARTS)}")
    parser.add_argument("--dry-run", action="store_true", help="try every step without a GPU")
    parser.add_argument("--out", help="JSON file; by default named after the machine")
    parser.add_argument("--add", action="store_true", help="to what the file has, part by part")
    arguments = parser.parse_args()
    machine = DryRun() if arguments.dry_run else Gpu()
    # These load Triton, which decides at import whether it interprets.
    import gpu_counters
    import gpu_kernels
    import gpu_pipeline
    import gpu_steps
    from gpu_contenders import CONTENDERS

    names = arguments.contenders.split(",") if arguments.contenders else list(CONTENDERS)
    if unknown := set(names) - set(CONTENDERS):
        raise SystemExit(
            f"no contender {', '.join(sorted(unknown))}; known: {', '.join(CONTENDERS)}"
        )
    skipped = set(filter(None, arguments.skip.split(",")))
    if unknown := skipped - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    cases = arguments.cases.split(",")
    if wrong := [text for text in cases if not re.fullmatch(r"\d+x\d+", text)]:
        raise SystemExit(f"no case {', '.join(wrong)}; cases are batch x side, as 2x64")
    rounds = arguments.rounds or (1 if machine.dry else 11)
    few = [n for n in names if n in FEW] or names[:1] if machine.dry else names
    figures = Figures(machine, arguments.out, arguments.add)
    print(json.dumps(machine.facts()))
    if "kernels" not in skipped:
        with figures.part("kernels") as failed:
            ended = gpu_kernels.run(machine)
            figures.all["kernels"] = ended.found
            failed |= ended.failed
    if "cold" not in skipped:
        with figures.part("cold") as failed:
            ended = gpu_steps.cold(machine, [name for name in few if name != "eager"])
            figures.all["cold"] = ended.found
            failed |= ended.failed
    for text in [] if "steps" in skipped else cases:
        with figures.part(f"steps {text}") as failed:
            ended = gpu_steps.run(machine, text, names if text == cases[0] else few, rounds)
            figures.case(*map(int, text.split("x")), ended.found.get("rows", []))
            failed |= ended.failed
    if "counters" not in skipped:
        ours = [name for name in few if name.startswith("zoomc")]
        for name in dict.fromkeys(ours[:1] + ours[-1:]):
            with figures.part(f"counters {name}") as failed:
                ended = gpu_counters.run(machine, name)
                figures.all["counters"][name] = ended.found.get("rows", [])
                failed |= ended.failed
    if "pipeline" not in skipped:
        with figures.part("pipeline") as failed:
            ended = gpu_pipeline.run(machine, few, 1 if machine.dry else 5)
            figures.all["pipeline"] = ended.found.get("rows", [])
            failed |= ended.failed
    figures.all["verdicts"] = verdicts(figures.all)
    figures.keep()
    print()
    for what, measured, reached in figures.all["verdicts"]:
        print(f"{'reached' if reached else 'MISSED ':8} {measured:>14}  {what}")
    for part, failures in figures.all["failures"].items():
        for item, why in failures.items():
            print(f"FAILED   {part}, {item}: {why}")
    print(f"\nwritten to {figures.path}" if figures.path else "\nnothing written")
    if figures.all["failures"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
