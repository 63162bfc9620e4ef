"""Layer-wise frequency scaling (DFS) beside one level for the network (DVFS), simulated.

    python benchmarks/power.py --npu mobile --limit 1200

Loads come from counting runs on the simulated NPU at its highest clock. Both policies choose under
the same limit; both schedules then run, their set-frequency command in front of every layer, which
gives the simulated gain. The voltage of a clock f is assumed to be
(0.6 + 0.4 f / highest) of the nominal one; voltages only serve DVFS. A second baseline is one clock
for the network whose voltage stays nominal.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections import Counter

from models import SD2_UNET, SD15_UNET, SD21_UNET, SDXL_UNET
from networks import NETWORKS, unet
from npu import job_of, simulate
from zoomc.targets.errors import CapacityError
from zoomc.targets.power import Load, Supply, layerwise, per_network
from zoomc.targets.tiling import Layer
from zoomc.targets.tvm.npu.clock import load_of
from zoomc.targets.tvm.npu.machine import Machine, load
from zoomc.targets.tvm.npu.program import Job, generate


def networks() -> dict[str, list[Layer]]:
    """Eight networks; what the machine does not run is left out of each."""
    found = {
        name: list(NETWORKS[name](1)) for name in ("alexnet", "vgg16", "mobilenet", "resnet50")
    }
    configs = {"sd2": SD2_UNET, "sd1.5": SD15_UNET, "sd2.1": SD21_UNET, "sdxl": SDXL_UNET}
    sizes = {"sd1.5": 64, "sdxl": 64}
    for name, config in configs.items():
        fixed = config | {"use_linear_projection": True}
        if isinstance(config["attention_head_dim"], int):
            fixed["attention_head_dim"] = [config["attention_head_dim"]] * 4
        kinds = len(config["block_out_channels"])
        if kinds == 3:
            fixed["transformer_layers_per_block"] = config["transformer_layers_per_block"]
        found[name] = unet(fixed, sizes.get(name, 0))
    return found


def loads(jobs: Counter[Job], machine: Machine) -> dict[Job, Load]:
    """Every distinct layer's load, from a counting run at the highest clock."""
    result = {}
    for job in jobs:
        with contextlib.suppress(CapacityError):
            result[job] = load_of(generate(job, machine))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npu", default="mobile")
    parser.add_argument("--limit", type=float, default=1200.0, help="milliwatts")
    parser.add_argument("--battery", type=float, default=15.0, help="watt-hours")
    parser.add_argument("--static", type=float, help="static milliwatts; the machine's by default")
    parser.add_argument("--networks", default="", help="comma-separated; all eight by default")
    args = parser.parse_args()
    machine = load(args.npu)
    top = machine.mhz[-1]
    volts = tuple(machine.volts * (0.6 + 0.4 * f / top) for f in machine.mhz)
    static = machine.static_mw if args.static is None else args.static
    supply = Supply(tuple(map(float, machine.mhz)), volts, static, machine.standby_mw)
    fixed = dataclasses.replace(supply, volts=(machine.volts,) * len(volts))
    wanted = args.networks.split(",") if args.networks else None
    print(f"{machine.name}, limit {args.limit:g} mW, static {static:g} mW, modelled")
    for name, layers in networks().items():
        if wanted and name not in wanted:
            continue
        jobs = Counter(job for job in map(job_of, layers) if job is not None)
        known = loads(jobs, machine)
        order = [job for job in jobs if job in known for _ in range(jobs[job])]
        each = [known[job] for job in order]
        base, ours = (p(each, supply, args.limit) for p in (per_network, layerwise))
        flat = per_network(each, fixed, args.limit)
        spent = []
        for policy in (base, ours):
            chosen = dict(zip(order, policy.levels, strict=True))
            runs = [(jobs[j], simulate(j, machine, k)[1]) for j, k in chosen.items()]
            spent.append(sum(calls * counts.nanoseconds for calls, counts in runs))
        print(
            f"{name:10} FPS {base.per_second:8.2f} -> {ours.per_second:8.2f}"
            f" ({ours.per_second / base.per_second - 1:+.1%},"
            f" simulated {spent[0] / spent[1] - 1:+.1%})"
            f"  mJ {base.nanojoules / 1e6:8.2f} -> {ours.nanojoules / 1e6:8.2f}"
            f" ({ours.nanojoules / base.nanojoules - 1:+.1%})"
            f"  one clock at the same voltage: FPS {ours.per_second / flat.per_second - 1:+.1%},"
            f" energy {ours.nanojoules / flat.nanojoules - 1:+.1%}"
            f"  static {base.static_share:.0%} -> {ours.static_share:.0%}"
            f"  {ours.energy.per_second_per_watt:.2f} FPS/W {ours.energy.tops_per_watt:.2f} TOPS/W"
            f"  {ours.energy.battery_hours(args.battery):.1f} h",
            flush=True,
        )


if __name__ == "__main__":
    main()
