"""Bytes that the hardware counts in the heaviest kernels, beside those that were predicted.

NVIDIA's ``ncu`` runs this file as a program of its own: it compiles the UNet, finds the kernels
that take most of a step, and launches each once between the profiler's marks. ``ncu`` empties the
caches before every launch, as the prediction assumes; a small result may still be in the L2 cache,
not yet written, when it stops counting.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from gpu_contenders import compiled
from gpu_machine import DryRun, Gpu, move
from gpu_steps import unet

METRICS = {"dram__bytes_read.sum": "read", "dram__bytes_write.sum": "written"}

#: What ``ncu`` may write behind a number of bytes.
UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "B": 1, "KB": 1e3, "MB": 1e6,
         "GB": 1e9}  # fmt: skip


def heaviest(machine: Gpu, name: str, count: int) -> list[dict[str, Any]]:
    """The kernels a step spends most in, with their choices and predictions."""
    from zoomc.record import collect

    if machine.dry:  # the interpreter would take minutes to time a UNet's kernels
        model, args = torch.nn.Linear(64, 48).half().requires_grad_(False), (torch.ones(5, 64),)
    else:
        model, args = unet(machine, 2, 64)
        model = model.half().to(machine.device).to(memory_format=torch.channels_last)
    with torch.no_grad(), collect(profile=True) as records:
        compiled(model, name, machine)(*move(args, machine, torch.float16))
    (record,) = records
    executable = record.executable
    choices = {node.name: found[0] for node, found in executable._plan.kernels.items()}
    groups: dict[str, dict[str, Any]] = {}
    for row in executable.report["kernels"]:
        group = groups.setdefault(row["symbol"], {"calls": 0, "kernel": choices[row["node"]]})
        group["calls"] += 1
    for symbol, group in groups.items():
        group["seconds"] = record.profile.kernels[symbol]
    return sorted(groups.values(), key=lambda group: -group["seconds"])[:count]


def launch(machine: Gpu, groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Launch the last part of each kernel, which does its work, once between the marks."""
    import dataclasses

    from zoomc.kernels.triton.run import execute

    rows = []
    for group in groups:
        kernel = group["kernel"]
        place = [x.function.__name__ in ("product", "attention") for x in kernel.launches]
        if True not in place:
            continue
        whole = kernel
        kernel = dataclasses.replace(kernel, launches=(kernel.launches[place.index(True)],))
        tensors = {}
        for slot, spec in whole.specs.items():
            value = torch.zeros(spec.shape, device=machine.device)
            # Numbers a multiplication's power depends on, and none that overflow.
            tensors[slot] = value.uniform_(0, 2).to(spec.dtype)
        execute(kernel, tensors)
        machine.wait()
        if not machine.dry:
            torch.cuda.profiler.start()
        execute(kernel, tensors)
        machine.wait()
        if not machine.dry:
            torch.cuda.profiler.stop()
        rows.append({
            "kernel": kernel.name,
            "calls": group["calls"],
            "step_seconds": group["seconds"],
            "tile": kernel.notes.get("tile"),
            "predicted": kernel.notes["dram_bytes"],
        })  # fmt: skip
    return rows


def parse(text: str) -> list[dict[str, float]]:
    """Bytes by launch, in order, from ``ncu --csv``, whose own lines start with ``==``."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    found: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(lines):
        if row["Metric Name"] in METRICS:
            number = float(row["Metric Value"].replace(",", ""))
            launch = found.setdefault(row["ID"], {})
            launch[METRICS[row["Metric Name"]]] = number * UNITS[row["Metric Unit"]]
    return [found[key] for key in sorted(found, key=int)]


def run(machine: Gpu, name: str, count: int = 10) -> list[dict[str, Any]] | str:
    """Predicted and counted bytes of a contender's heaviest kernels; or why there are none."""
    profiler = shutil.which("ncu")
    if profiler is None and not machine.dry:
        return "ncu is not installed"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        command = [sys.executable, __file__, name, str(count), str(path)]
        if machine.dry:
            command.append("dry")
        else:
            metrics = ["--metrics", ",".join(METRICS), "--profile-from-start", "off"]
            command = [str(profiler), "--csv", *metrics, *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not path.exists():
            why = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            return f"the heaviest kernels could not be run under ncu: {why}"
        rows: list[dict[str, Any]] = json.loads(path.read_text())
    counted = parse(done.stdout)
    if not machine.dry and len(counted) != len(rows):
        refused = [line for line in done.stdout.splitlines() if "ERR_" in line]
        return refused[0].strip("= ") if refused else f"ncu counted {len(counted)} launches"
    for row, bytes_of in zip(rows, counted, strict=False):
        row["counted"] = sum(bytes_of.values())
        row |= bytes_of
    return rows


def show(found: list[dict[str, Any]] | str) -> None:
    """Print them."""
    if isinstance(found, str):
        print(f"\nbytes were not counted: {found}")
        return
    print(f"\n{'':36} {'tile':>12} {'calls':>5} {'predicted MB':>13} {'counted MB':>11}")
    for row in found:
        counted = f"{row['counted'] / 1e6:11.2f}" if "counted" in row else f"{'-':>11}"
        print(f"{row['kernel'][:36]:36} {row['tile']:>12} {row['calls']:5}"
              f" {row['predicted'] / 1e6:13.2f} {counted}", flush=True)  # fmt: skip


def main() -> None:
    """What ``ncu`` runs; the rows go to a file."""
    name, count, path, *dry = sys.argv[1:]
    machine = DryRun() if dry else Gpu()
    rows = launch(machine, heaviest(machine, name, int(count)))
    Path(path).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
