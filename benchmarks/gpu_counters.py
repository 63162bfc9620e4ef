"""Bytes that the hardware counts in the heaviest kernels, beside those that were predicted.

NVIDIA's ``ncu`` runs this file as a program of its own: it compiles the UNet, finds the kernels
that take most of a step, and launches each once between the profiler's marks. ``ncu`` empties the
caches before every launch, as the prediction assumes; a small result may still be in the L2 cache,
not yet written, when it stops counting.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_apart import Ended, Notes, apart, serve
from gpu_contenders import compiled
from gpu_machine import Gpu, move
from gpu_steps import unet

METRICS = {"dram__bytes_read.sum": "read", "dram__bytes_write.sum": "written"}

#: What ``ncu`` may write behind a number of bytes.
UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "B": 1, "KB": 1e3, "MB": 1e6,
         "GB": 1e9}  # fmt: skip

#: Functions whose traffic is what a kernel's prediction counts.
COUNTED = ("product", "attention", "integer_attention")

#: Where ``ncu`` lies if not on the path.
PLACES = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*")


def heaviest(machine: Gpu, name: str, count: int) -> list[dict[str, Any]]:
    """The kernels with a prediction that a step spends most in, with their choices."""
    from zoomc.record import collect

    model, args = unet(machine, 2, 64)
    model = model.half().to(machine.device).to(memory_format=torch.channels_last)
    with torch.no_grad(), collect(profile=True) as records:
        compiled(model, name, machine)(*move(args, machine, torch.float16), return_dict=False)
    (record,) = records
    executable = record.executable
    choices = {node.name: found[0] for node, found in executable._plan.kernels.items()}
    groups: dict[str, dict[str, Any]] = {}
    for row in executable.report["kernels"]:
        kernel = choices[row["node"]]
        if any(launch.function.__name__ in COUNTED for launch in kernel.launches):
            group = groups.setdefault(row["symbol"], {"calls": 0, "kernel": kernel})
            group["calls"] += 1
    for symbol, group in groups.items():
        group["seconds"] = record.profile.kernels[symbol]
    return sorted(groups.values(), key=lambda group: -group["seconds"])[:count]


def launch(machine: Gpu, group: dict[str, Any]) -> dict[str, Any]:
    """Launch the part of a kernel that the prediction counts, once between the marks."""
    from zoomc.kernels.triton.run import execute

    whole = group["kernel"]
    counted = next(x for x in whole.launches if x.function.__name__ in COUNTED)
    kernel = dataclasses.replace(whole, launches=(counted,))
    tensors = {}
    for slot, spec in whole.specs.items():
        value = torch.zeros(spec.shape, device=machine.device)
        # Numbers a multiplication's power depends on, and none that overflow.
        tensors[slot] = value.uniform_(0, 2).to(spec.dtype)
    execute(kernel, tensors)
    machine.wait()
    with machine.profiled():
        execute(kernel, tensors)
        machine.wait()
    return {
        "kernel": kernel.name,
        "calls": group["calls"],
        "step_seconds": group["seconds"],
        "tile": str(kernel.notes.get("tile")),
        "predicted": kernel.notes["dram_bytes"],
    }


def sample(rows: Sequence[dict[str, Any]]) -> str:
    """What ``ncu`` would print of these launches: half of the predicted bytes read and written."""
    lines = ['"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    for number, row in enumerate(rows):
        for metric in METRICS:
            half = f"{row['predicted'] // 2:,}"
            lines.append(f'"{number}","{row["kernel"]}","{metric}","byte","{half}"')
    return "\n".join(["==PROF== Connected to process 7", *lines])


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


def profiler() -> str | None:
    """Where ``ncu`` is."""
    places = [str(path) for place in PLACES for path in sorted(Path("/").glob(place[1:]))]
    return shutil.which("ncu") or shutil.which("ncu", path=os.pathsep.join(places[::-1]))


def command(machine: Gpu) -> list[str] | None:
    """What runs this file; None if it is not installed."""
    if machine.dry:
        return ["env"]  # its output is caught as ncu's
    found = profiler()
    metrics = ["--metrics", ",".join(METRICS), "--print-units", "base"]
    # Inductor's compiling processes are none of the profiler's business.
    quiet = ["env", "TORCHINDUCTOR_COMPILE_THREADS=1", "LC_ALL=C"]
    return [*quiet, found, "--csv", *metrics, "--profile-from-start", "off"] if found else None


def run(machine: Gpu, name: str, count: int = 10) -> Ended:
    """Predicted and counted bytes of a contender's heaviest kernels; or why there are none."""
    before = command(machine)
    if before is None:
        return Ended({}, {name: "ncu is not installed"}, "")
    ended = apart(machine, __file__, {"names": [name], "count": count}, before)
    rows = ended.found.get("rows", [])
    counted = parse(ended.output)
    refused = [line for line in ended.output.splitlines() if "ERR_" in line or "==ERROR==" in line]
    if rows and len(counted) == len(rows):
        for row, bytes_of in zip(rows, counted, strict=True):
            row["counted"] = sum(bytes_of.values())
            row |= bytes_of
    elif refused:
        ended.failed[name] = refused[0].strip("= ")
    elif rows:
        ended.failed.setdefault(name, f"ncu counted {len(counted)} of {len(rows)} launches")
    elif not ended.failed:
        last = (ended.output.strip() or ended.why or "no output").splitlines()[-1]
        ended.failed[name] = f"the heaviest kernels could not be run under ncu: {last}"
    show(name, ended)
    return ended


def show(name: str, ended: Ended) -> None:
    """Print them."""
    print(f"\n{name:36} {'tile':>12} {'calls':>5} {'predicted MB':>13} {'counted MB':>11}")
    for row in ended.found.get("rows", []):
        found = "counted" in row
        counted = f"{row['counted'] / 1e6:11.2f}" if found else f"{'-':>11}"
        ratio = f"  {row['counted'] / row['predicted']:.2f}× of predicted" if found else ""
        print(f"{row['kernel'][:36]:36} {row['tile']:>12} {row['calls']:5}"
              f" {row['predicted'] / 1e6:13.2f} {counted}{ratio}", flush=True)  # fmt: skip
    for why in ended.failed.values():
        print(f"bytes were not counted: {why}", flush=True)


def work(machine: Gpu, notes: Notes, names: list[str], count: int) -> None:
    """What ``ncu`` runs."""
    rows: list[dict[str, Any]] = []
    with notes.at(names[0]):
        for group in heaviest(machine, names[0], count):
            rows.append(launch(machine, group))
            notes.found["rows"] = rows
            notes.keep()
    if machine.dry:
        print(sample(rows))


if __name__ == "__main__":
    serve(work)
