"""Steps of the full UNet on a GPU under every contender, interleaved."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from gpu_apart import Ended, Notes, apart, persist, serve
from gpu_contenders import PEER, compiled
from gpu_machine import Gpu, empty_caches, move
from models import SD2_UNET, seeded, unet_inputs

#: A UNet of one block down and one up, for dry runs.
SMALL = SD2_UNET | {
    "block_out_channels": [32],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "mid_block_type": None,
    "up_block_types": ["UpBlock2D"],
    "attention_head_dim": [1],
    "cross_attention_dim": 32,
    "norm_num_groups": 2,
    "sample_size": 4,
}


def unet(machine: Gpu, batch: int, side: int) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """The UNet with its inputs, fp32, on the CPU."""
    from diffusers import UNet2DConditionModel

    config = SMALL if machine.dry else SD2_UNET
    args, _ = unet_inputs(config, batch, side // 32 if machine.dry else side)
    return seeded(UNet2DConditionModel, config), args


def weight_bytes(records: Sequence[Any], model: torch.nn.Module) -> int:
    """Bytes of weights that a step reads."""
    if records:
        return sum(r.executable.report.get("weight_bytes", 0) for r in records)
    return sum(p.nbytes for p in model.parameters())


def told(records: Sequence[Any]) -> dict[str, Any]:
    """What zoomc says of what it compiled; nothing of others.

    Raises:
        RuntimeError: it did not compile the model, which would run in eager.
    """
    if not records:
        return {}
    if records[0].executable is None:
        raise RuntimeError(f"not compiled: {records[0].fallbacks[0]['reason']}")
    report = records[0].executable.report
    return {
        "cuda_graph": report.get("cuda_graph"),
        "leftovers": report["fallbacks"],
        "seconds_by_stage": report.get("seconds"),
    }


def case(
    machine: Gpu, notes: Notes, names: Sequence[str], batch: int, side: int, rounds: int
) -> None:
    """Figures of every contender at one size."""
    from zoomc.record import collect

    # Each contender compiles the same code: as many variants of it must be kept.
    torch._dynamo.config.recompile_limit = 64
    model, args = unet(machine, batch, side)
    model = model.to(machine.device)
    torch.backends.cudnn.allow_tf32, before = False, torch.backends.cudnn.allow_tf32
    with torch.no_grad():
        expected = model(*move(args, machine, torch.float32), return_dict=False)[0].double()
    torch.backends.cudnn.allow_tf32 = before
    model = model.half().to(memory_format=torch.channels_last)
    args = move(args, machine, torch.float16)
    rows, runs = [], {}
    for name in names:
        with notes.at(name):
            gc.collect()
            used = machine.forget_peak()
            step = compiled(model, name, machine)

            def run(step: Any = step) -> Any:
                with torch.no_grad():
                    return step(*args, return_dict=False)[0]

            start = time.perf_counter()
            with collect() as records:
                actual = run()
                machine.wait()
            seconds = time.perf_counter() - start
            error = float((actual.double() - expected).norm() / expected.norm())
            if not error < 1:
                raise RuntimeError(f"its result is wrong: a relative error of {error}")
            rows.append({
                "contender": name,
                "batch": batch,
                "side": side,
                "warm_first_call_seconds": seconds,
                "error": error,
                "added_peak_gb": (machine.peak() - used) / 1e9,
                "weights_gb": weight_bytes(records, model) / 1e9,
                **told(records),
            })  # fmt: skip
            for _ in range(0 if machine.dry else 3):
                run()
            runs[name] = run
    # In turn, so that a card whose clock drifts drifts for all.
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in list(runs):
            with notes.at(name):
                times[name].append(machine.seconds(runs[name]))
            if name in notes.failed:
                del runs[name]
    rows = [row | {"seconds": times[row["contender"]]} for row in rows if row["contender"] in runs]
    notes.found["rows"] = [row | figures(row, rows) for row in rows]


def figures(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and spread of a row's times, and how much faster it is than others of its case."""
    median = statistics.median(row["seconds"])
    return {
        "median": median,
        "least": min(row["seconds"]),
        "most": max(row["seconds"]),
        "times_as_fast_as": {
            other["contender"]: statistics.median(other["seconds"]) / median
            for other in rows
            if not other["contender"].startswith("zoomc")
        },
    }


def show(machine: Gpu, rows: Sequence[dict[str, Any]]) -> None:
    """Print one case."""
    for row in rows[:1]:
        print(f"\n{machine.name}, batch {row['batch']}, {row['side']}×{row['side']} latents, fp16;"
              f" ms a step as median (least–most of {len(row['seconds'])})")  # fmt: skip
    for row in rows:
        gain = row["times_as_fast_as"].get(PEER)
        against = f"{gain:5.2f}× {PEER}" if gain else ""
        print(f"{row['contender']:12} {row['median'] * 1e3:8.2f} ms ({row['least'] * 1e3:.2f}–"
              f"{row['most'] * 1e3:.2f}) {against}  error {row['error']:.1e} against fp32"
              f"  adds {row['added_peak_gb']:5.2f} GB at most"
              f"  weights {row['weights_gb']:5.3f} GB", flush=True)  # fmt: skip
        if row.get("cuda_graph", True) is not True:
            print(f"{'':12} CUDA graph: {row['cuda_graph']}", flush=True)
        eager = [x for x in row.get("leftovers", ()) if "in eager" in x["reason"]]
        if eager:
            first = f"{eager[0]['operator']}: {eager[0]['reason']}"
            print(f"{'':12} {len(eager)} operators in eager, as {first}", flush=True)


def run(machine: Gpu, text: str, names: Sequence[str], rounds: int) -> Ended:
    """One case, ``batch x side``, in a process of its own."""
    batch, side = map(int, text.split("x"))
    arguments = {"batch": batch, "side": side, "rounds": rounds}
    ended = persist(machine, __file__, names, arguments)
    show(machine, ended.found.get("rows", []))
    return ended


def cold(machine: Gpu, names: Sequence[str]) -> Ended:
    """Seconds of each contender's first call in a process and caches of its own, batch 2."""
    found: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name in names:
        ended = apart(machine, __file__, {"names": [name], "first": True})
        failed |= ended.failed or ({name: ended.why} if ended.why else {})
        if "seconds" in ended.found:
            found[name] = ended.found["seconds"]
            print(f"{name:12} first call from cold caches {found[name]:7.1f} s", flush=True)
    return Ended(found, failed, "")


def first_call(machine: Gpu, notes: Notes, name: str) -> None:
    """Seconds of a contender's first call, what compiles included."""
    model, args = unet(machine, 2, 64)
    model = model.half().to(machine.device).to(memory_format=torch.channels_last)
    args = move(args, machine, torch.float16)
    with notes.at(name), empty_caches():
        machine.wait()
        start = time.perf_counter()
        step = compiled(model, name, machine)
        with torch.no_grad():
            step(*args, return_dict=False)[0].sum().item()
        notes.found["seconds"] = time.perf_counter() - start


def work(
    machine: Gpu, notes: Notes, names: list[str], first: bool = False, **arguments: Any
) -> None:
    """A contender's first call, or a case."""
    if first:
        first_call(machine, notes, names[0])
    else:
        case(machine, notes, names, **arguments)


if __name__ == "__main__":
    serve(work)
