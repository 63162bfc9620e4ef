"""Steps of the full UNet on a GPU under every contender, interleaved."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_contenders import compiled
from gpu_machine import Gpu, empty_caches, move
from models import SD2_UNET, seeded, unet_inputs

#: A UNet of one such block for dry runs.
SMALL = SD2_UNET | {
    "block_out_channels": [32],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "attention_head_dim": [1],
    "cross_attention_dim": 32,
    "sample_size": 4,
}


def unet(machine: Gpu, batch: int, side: int) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """The UNet with its inputs, fp32, on the CPU."""
    from diffusers import UNet2DConditionModel

    config = SMALL if machine.dry else SD2_UNET
    args, _ = unet_inputs(config, 1 if machine.dry else batch, 4 if machine.dry else side)
    return seeded(UNet2DConditionModel, config), args


def weight_bytes(records: Sequence[Any], model: torch.nn.Module) -> int:
    """Bytes of weights that a step reads."""
    if records:
        return sum(r.executable.report.get("weight_bytes", 0) for r in records)
    return sum(p.nbytes for p in model.parameters())


def case(
    machine: Gpu, batch: int, side: int, names: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    """Figures of every contender at one size."""
    from zoomc.record import collect

    torch._dynamo.reset()
    # Each contender compiles the same code: as many variants of it must be kept.
    torch._dynamo.config.recompile_limit = 64
    model, args = unet(machine, batch, side)
    model = model.to(machine.device)
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    with torch.no_grad():
        expected = model(*move(args, machine, torch.float32), return_dict=False)[0].double()
    torch.backends.cudnn.allow_tf32 = tf32
    model = model.half().to(memory_format=torch.channels_last)
    args = move(args, machine, torch.float16)
    rows, runs = [], {}
    for name in names:
        gc.collect()
        before = machine.forget_peak()
        step = compiled(model, name, machine)

        def run(step: Any = step) -> Any:
            with torch.no_grad():
                return step(*args, return_dict=False)[0]

        start = time.perf_counter()
        with collect() as records:
            actual = run().double()
        machine.wait()
        row = {
            "contender": name,
            "batch": batch,
            "side": side,
            "warm_first_call_seconds": time.perf_counter() - start,
            "error": float((actual - expected).norm() / expected.norm()),
            "added_peak_gb": (machine.peak() - before) / 1e9,
            "weights_gb": weight_bytes(records, model) / 1e9,
        }
        if records:
            report = records[0].executable.report
            row["cuda_graph"] = report.get("cuda_graph")
            row["leftovers"] = report["fallbacks"]
            row["seconds_by_stage"] = report.get("seconds")
        rows.append(row)
        runs[name] = run
        for _ in range(0 if machine.dry else 3):
            run()
    # In turn, so that a card whose clock drifts drifts for all.
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(machine.seconds(run))
    for row in rows:
        row["seconds"] = times[row["contender"]]
    return rows


def show(machine: Gpu, rows: Sequence[dict[str, Any]]) -> None:
    """Print one case."""
    medians = {row["contender"]: statistics.median(row["seconds"]) for row in rows}
    print(
        f"\n{machine.name}, batch {rows[0]['batch']}, {rows[0]['side']}×{rows[0]['side']} latents"
    )
    for row in rows:
        step = medians[row["contender"]]
        against = f"{medians['inductor'] / step:5.2f}×" if "inductor" in medians else ""
        print(f"{row['contender']:12} {step * 1e3:8.2f} ms {against}  error {row['error']:.1e}"
              f"  adds {row['added_peak_gb']:5.2f} GB at most"
              f"  weights {row['weights_gb']:5.3f} GB", flush=True)  # fmt: skip


def cold(machine: Gpu, names: Sequence[str]) -> dict[str, float]:
    """Seconds of each contender's first call in a process and caches of its own, batch 2."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "seconds.json")
            command = [sys.executable, __file__, name, str(path)]
            done = subprocess.run([*command, *(["dry"] if machine.dry else [])], check=False)
            if done.returncode:
                print(f"{name}: the first call failed in a process of its own")
                continue
            found[name] = json.loads(path.read_text())
        print(f"{name:12} first call from cold caches {found[name]:7.1f} s", flush=True)
    return found


def first_call(machine: Gpu, name: str) -> float:
    """Seconds of a contender's first call, what compiles included."""
    empty_caches()
    model, args = unet(machine, 2, 64)
    model = model.half().to(machine.device).to(memory_format=torch.channels_last)
    args = move(args, machine, torch.float16)
    machine.wait()
    start = time.perf_counter()
    step = compiled(model, name, machine)
    with torch.no_grad():
        step(*args, return_dict=False)[0].sum().item()
    return time.perf_counter() - start


def main() -> None:
    """One contender's first call; the seconds go to a file."""
    from gpu_machine import DryRun

    machine = DryRun() if sys.argv[3:] else Gpu()
    Path(sys.argv[2]).write_text(json.dumps(first_call(machine, sys.argv[1])))


if __name__ == "__main__":
    main()
