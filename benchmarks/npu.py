"""Networks on the simulated NPU: bytes moved beside the prediction, time, energy by component.

    python benchmarks/npu.py --network unet --npu mobile

Every distinct layer with W4A8 words runs through its program, counted and timed without computing.
What the machine does not run (attention, grouped and dilated convolutions) is left out, and said.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import Counter

from networks import NETWORKS
from zoomc.targets.errors import CapacityError
from zoomc.targets.tiling import Conv, Layer
from zoomc.targets.tvm.npu.clock import count
from zoomc.targets.tvm.npu.machine import Machine, load
from zoomc.targets.tvm.npu.program import Job, generate
from zoomc.targets.tvm.npu.simulator import Counts


def job_of(layer: Layer) -> Job | None:
    """The W4A8 job of a layer, results in bf16; None if the machine does not run it."""
    if not isinstance(layer, Conv) or layer.groups > 1 or layer.rows.gaps or layer.columns.gaps:
        return None
    even = dataclasses.replace(
        layer, name="", in_channels=layer.in_channels + layer.in_channels % 2, extra_reads=0
    )
    return Job(
        even,
        residual=layer.extra_reads > 0,
        per_row=layer.kind == "matmul",
        activation="geglu" if layer.gated else "none",
        half=True,
    )


def simulate(job: Job, machine: Machine, level: int | None = None) -> tuple[int, Counts]:
    """Predicted bytes, and what running the program counts."""
    program = generate(job, machine, level)
    return program.plan.bytes, count(program)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="unet", choices=NETWORKS)
    parser.add_argument("--npu", default="mobile", help="preset or path of a TOML file")
    args = parser.parse_args()
    machine = load(args.npu)
    jobs: Counter[Job] = Counter()
    left_out: Counter[str] = Counter()
    for layer in NETWORKS[args.network](1):
        job = job_of(layer)
        if job is None:
            left_out[type(layer).__name__] += 1
        else:
            jobs[job] += 1
    start = time.perf_counter()
    moved = predicted = macs = 0
    spent = busy = 0.0
    energy: Counter[str] = Counter()
    for job, calls in jobs.items():
        try:
            expected, counts = simulate(job, machine)
        except CapacityError as error:
            left_out[str(error)] += calls
            continue
        if expected != counts.bytes:
            raise SystemExit(f"{job}: predicted {expected:,} bytes, moved {counts.bytes:,}")
        moved += calls * counts.bytes
        predicted += calls * expected
        macs += calls * counts.macs
        spent += calls * counts.nanoseconds
        busy += calls * counts.compute_ns
        for name, nanojoules in counts.energy.items():
            energy[name] += calls * nanojoules
    joules = sum(energy.values()) / 1e9
    print(
        f"{args.network} on {machine.name}: {sum(jobs.values())} layers, {len(jobs)} distinct,"
        f" simulated in {time.perf_counter() - start:.1f} s; left out: {dict(left_out) or 'none'}"
    )
    print(f"DMA {moved:,} bytes, predicted {predicted:,}, layer by layer the same")
    print(f"{spent / 1e6:.2f} ms, array busy {busy / spent:.0%}, {2 * macs / spent / 1e3:.2f} TOPS")
    parts = ", ".join(f"{name} {value / 1e6:.2f}" for name, value in energy.items())
    print(f"{joules * 1e3:.2f} mJ ({parts}), {2 * macs / 1e12 / joules:.2f} TOPS/W")


if __name__ == "__main__":
    main()
