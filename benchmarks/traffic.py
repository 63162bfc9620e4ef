"""Bytes that Stable Diffusion 2's UNet moves, layer by layer, as the planner predicts them.

    python benchmarks/traffic.py                 # the UNet, W4A8, 2 MiB of near memory
    python benchmarks/traffic.py --network vgg16 --words 16 --kib 108
    python benchmarks/traffic.py --summary       # every network beside every baseline

One row a distinct layer: calls, bytes, lower bound, and what three fixed schedules and a buffer
per operand would move. The last lines add up a step and show what fusing layers saves.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence

from networks import NETWORKS, chain, unet_steps
from zoomc.targets.errors import CapacityError
from zoomc.targets.tiling import (
    KIB,
    SCHEDULES,
    W4A8,
    W8A8,
    Conv,
    Layer,
    Memory,
    Plan,
    Words,
    lower_bound,
    plan,
    plan_network,
)

WORDS = {"w4a8": W4A8, "w8a8": W8A8, "8": Words(8, 8, 8, 8), "16": Words()}
FIXED = ("output", "weight", "input")


def fixed(layer: Layer, memory: Memory, stationary: str) -> int:
    """Bits under one fixed schedule: one operand waits, one tile per operand, best tile sizes."""
    if not isinstance(layer, Conv):
        return plan(layer, memory).bits
    schedules = [s for s in SCHEDULES if s.stationary == stationary]
    return plan(layer, memory, schedules=schedules, tiles="tied").bits


def apart(layer: Layer, memory: Memory) -> int:
    """Bits with near memory cut into three equal buffers, one per operand."""
    assert isinstance(memory.near, int)
    third = memory.near // 3
    try:
        return plan(layer, dataclasses.replace(memory, near=(third,) * 3)).bits
    except CapacityError:
        return 0


def megabytes(bits: float) -> str:
    return f"{bits / 8e6:10.3f}"


def print_layers(layers: Sequence[Layer], memory: Memory) -> None:
    groups: dict[Layer, list[Plan]] = {}
    start = time.perf_counter()
    for layer in layers:
        groups.setdefault(dataclasses.replace(layer, name=""), []).append(plan(layer, memory))
    seconds = time.perf_counter() - start
    names = [f"{name} st." for name in FIXED]
    print(f"{'calls':>5} {'MB':>10} {'bound':>10}", *(f"{n:>10}" for n in (*names, "3 buffers")))
    for plans in groups.values():
        first = plans[0]
        others = [fixed(first.layer, memory, s) for s in FIXED] + [apart(first.layer, memory)]
        numbers = [first.bits, first.bound, *others]
        print(f"{len(plans):5d}", *map(megabytes, numbers), first.layer.name, "|", first.loops())
    print(f"{len(layers)} layers planned in {seconds:.2f} s")


def totals(layers: Sequence[Layer], memory: Memory) -> dict[str, float]:
    """Bits of a whole network: planned, bound, and every baseline."""
    result = {
        "planned": sum(plan(layer, memory).bits for layer in layers),
        "bound": sum(lower_bound(layer, memory) for layer in layers),
    }
    result |= {f"{s} st.": sum(fixed(x, memory, s) for x in layers) for s in FIXED}
    return result | {"3 buffers": sum(apart(layer, memory) for layer in layers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="unet", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--kib", type=float, default=2048, help="near memory")
    parser.add_argument("--words", default="w4a8", choices=WORDS)
    parser.add_argument("--bus", type=int, default=0, help="bits of a bus word; 0 counts bits")
    parser.add_argument("--summary", action="store_true", help="all networks, beside baselines")
    args = parser.parse_args()
    memory = Memory(int(args.kib * KIB), WORDS[args.words], bus=args.bus)
    if args.summary:
        print(f"MB, {args.kib:g} KiB, {args.words}, batch {args.batch}; fused: across layers")
        for name, make in NETWORKS.items():
            row = totals(make(args.batch), memory)
            steps = unet_steps(batch=args.batch) if name == "unet" else chain(make(args.batch))
            row["fused"] = plan_network(steps, memory).bits
            print(f"{name:10}", *(f"{k} {v / 8e6:.2f}" for k, v in row.items()), sep="  ")
        return
    layers = NETWORKS[args.network](args.batch)
    print_layers(layers, memory)
    row = totals(layers, memory)
    print("  ".join(f"{k} {v / 8e6:.2f} MB" for k, v in row.items()))
    steps = unet_steps(batch=args.batch) if args.network == "unet" else chain(layers)
    print("across layers:", plan_network(steps, memory))


if __name__ == "__main__":
    main()
