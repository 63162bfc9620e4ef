"""DRAM energy and time of whole networks: planner and mapping together, beside a stated baseline.

    python benchmarks/dram.py --device ddr3-1600 --kib 64

Baseline: one fixed schedule (the best tiles under it), maps as NCHW and weights as OIHW, addresses
spread row first. Ours: the planner's schedule, maps in blocks of a tile's channels, weight tiles in
one piece, the same addresses. Words of 8 bits, sums of 32.
"""

from __future__ import annotations

import argparse
import dataclasses

from networks import NETWORKS
from zoomc.targets.dram import PRESETS, Cost, Dram, stream_cost
from zoomc.targets.stream import Stream
from zoomc.targets.tiling import KIB, SCHEDULES, Conv, Memory, Plan, Words, plan


def layer_cost(found: Plan, dram: Dram, tiled: bool) -> Cost:
    return stream_cost(dram, Stream(found, dram, tiled))


def best(layer: Conv, memory: Memory, dram: Dram) -> Cost:
    """The cheapest in DRAM of the planner's answers for a few granules: channels of a burst."""
    plans = {}
    for channels in (1, dram.burst, 2 * dram.burst):
        found = plan(layer, dataclasses.replace(memory, granule=(channels, channels)))
        plans[found.schedule, found.tiles] = found
    costs = [layer_cost(found, dram, True) for found in plans.values()]
    return min(costs, key=lambda cost: cost.nanojoules)


def baseline(layer: Conv, memory: Memory, dram: Dram, kind: str) -> Cost:
    schedules = [s for s in SCHEDULES if s.stationary == kind]
    return layer_cost(plan(layer, memory, schedules=schedules, tiles="tied"), dram, False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="ddr3-1600", choices=PRESETS)
    parser.add_argument("--kib", type=float, default=64)
    parser.add_argument("--networks", default="alexnet,vgg16,mobilenet")
    parser.add_argument("--fixed", default="output", choices=("output", "weight", "input"))
    parser.add_argument(
        "--apart", action="store_true", help="a third of near memory for each operand, both sides"
    )
    args = parser.parse_args()
    dram = PRESETS[args.device]
    near = int(args.kib * KIB)
    memory = Memory((near // 3,) * 3 if args.apart else near, Words(8, 8, 8, 32))
    where = f"{args.kib:g} KiB " + ("in three buffers" if args.apart else "shared")
    print(f"{args.device}, {where}, against a fixed {args.fixed}-stationary schedule")
    for name in args.networks.split(","):
        unique: dict[Conv, int] = {}
        for layer in NETWORKS[name](1):
            if isinstance(layer, Conv):
                nameless = dataclasses.replace(layer, name="")
                unique[nameless] = unique.get(nameless, 0) + 1
        sums = {"base": [0.0] * 4, "ours": [0.0] * 4}
        for layer, count in unique.items():
            for who, cost in (
                ("base", baseline(layer, memory, dram, args.fixed)),
                ("ours", best(layer, memory, dram)),
            ):
                values = (cost.nanojoules, cost.nanoseconds, cost.bursts, cost.activations)
                sums[who] = [a + count * b for a, b in zip(sums[who], values, strict=True)]
        (e0, t0, b0, a0), (e1, t1, b1, a1) = sums["base"], sums["ours"]
        print(
            f"{name:10} energy {e0 / 1e6:8.3f} -> {e1 / 1e6:8.3f} mJ ({1 - e1 / e0:.1%} less)"
            f"  time {t0 / 1e6:.2f} -> {t1 / 1e6:.2f} ms"
            f"  bytes {b0 * dram.burst / 1e6:.1f} -> {b1 * dram.burst / 1e6:.1f} MB"
            f"  rows opened {a0:,.0f} -> {a1:,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
