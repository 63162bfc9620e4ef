"""The full SD2-inpainting UNet on a GPU, zoomc beside its peers, in one run.

    python benchmarks/gpu_unet.py
    python benchmarks/gpu_unet.py --cases 2x64 --contenders inductor,zoomc,zoomc-int4

For each case (batch × side of the latents): seconds a step as the median of interleaved calls,
the relative error against eager in fp32, seconds of the first call from cold caches, peak memory,
the bytes of weights; then kernels alone beside the card's own matrix product and torch's flash
attention. Everything is printed, and written as JSON with the machine's name under
``benchmarks/results/``. Every contender runs in fp16, channels-last, with CUDA graphs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import SD2_UNET, build

RESULTS = Path(__file__).with_name("results")


def cold() -> None:
    """Empty caches for whatever compiles next."""
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ[variable] = tempfile.mkdtemp()
    torch._dynamo.reset()


def eager(model: torch.nn.Module) -> Any:
    return model


def inductor(model: torch.nn.Module) -> Any:
    return torch.compile(model, mode="max-autotune", fullgraph=True)


def zoomc(**options: Any) -> Callable[[torch.nn.Module], Any]:
    return lambda model: torch.compile(model, backend="zoomc", options=options, fullgraph=True)


CONTENDERS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "eager": eager,
    "inductor": inductor,
    "zoomc": zoomc(weights="keep"),
    "zoomc-tuned": zoomc(weights="keep", tune=True),
    "zoomc-int8": zoomc(weights="int8"),
    "zoomc-int4": zoomc(weights="int4"),
}


def seconds_of(fn: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds of a call, by the GPU's clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        fn()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def on_gpu(value: Any, dtype: torch.dtype) -> Any:
    def leaf(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        x = x.cuda().to(dtype) if x.is_floating_point() else x.cuda()
        return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x

    return torch.utils._pytree.tree_map(leaf, value)


def weight_bytes(records: list[Any], model: torch.nn.Module) -> int:
    """Bytes of weights that a step reads."""
    if records:
        return sum(r.executable.report.get("weight_bytes", 0) for r in records)
    return sum(p.nbytes for p in model.parameters())


def case(batch: int, side: int, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Figures of every contender at one size."""
    from zoomc.record import collect

    model, args, _ = build("unet", batch, side)
    model = model.cuda()
    with torch.no_grad():
        expected = model(*on_gpu(args, torch.float32), return_dict=False)[0].double()
    model = model.half().to(memory_format=torch.channels_last)
    args = on_gpu(args, torch.float16)
    rows, runs = [], {}
    for name in names:
        cold()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        compiled = CONTENDERS[name](model)

        def run(compiled: Any = compiled) -> Any:
            with torch.no_grad():
                return compiled(*args, return_dict=False)[0]

        start = time.perf_counter()
        with collect() as records:
            actual = run().double()
        torch.cuda.synchronize()
        row = {
            "contender": name,
            "batch": batch,
            "side": side,
            "first_call_seconds": time.perf_counter() - start,
            "error": float((actual - expected).norm() / expected.norm()),
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "weights_gb": weight_bytes(records, model) / 1e9,
        }
        if records:
            report = records[0].executable.report
            row["cuda_graph"] = report.get("cuda_graph")
            row["leftovers"] = len(report["fallbacks"])
        rows.append(row)
        runs[name] = run
        for _ in range(3):
            run()
    # In turn, so that a card whose clock drifts drifts for all.
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds_of(run))
    for row in rows:
        row["seconds"] = times[row["contender"]]
    return rows


def kernels() -> list[dict[str, Any]]:
    """Large products beside the card's own, attention beside torch's flash attention."""
    import zoomc.kernels.attention.op
    import zoomc.kernels.linear.op  # noqa: F401
    from zoomc.kernels.triton.gpu import detect
    from zoomc.kernels.triton.kernel import candidates
    from zoomc.kernels.triton.run import bind, execute

    def half(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float16, device="cuda")

    def best(op: str, *args: Any, **kwargs: Any) -> float:
        found = []
        for kernel in candidates(bind(op, *args, **kwargs), detect())[:4]:
            sources = {n: [v.source for v in o.values] for n, o in kernel.operands.items()}
            tensors = {
                n: (o.pack.fn(*sources[n]) if o.pack else sources[n][0])
                for n, o in kernel.operands.items()
            }
            for name, spec in {"out": kernel.out, **kernel.scratch}.items():
                tensors[name] = torch.empty(spec.shape, dtype=spec.dtype, device="cuda")
            execute(kernel, tensors)
            found.append(min(seconds_of(lambda: execute(kernel, tensors), 20) for _ in range(5)))  # noqa: B023
        return min(found)

    rows = []
    for m, n, k in ((8192, 8192, 8192), (8192, 2560, 320), (8192, 320, 1280), (2048, 5120, 640)):
        x, w = half(m, k), half(n, k)
        theirs = min(seconds_of(lambda: x @ w.T, 20) for _ in range(5))  # noqa: B023
        ours = best("zoomc::linear", x, w)
        rows.append({"kernel": f"linear {m}x{n}x{k}", "ours": ours, "torch": theirs,
                     "tflops": 2e-12 * m * n * k / ours})  # fmt: skip
    for heads, queries, keys in ((5, 4096, 4096), (10, 1024, 1024), (5, 4096, 77)):
        q, k, v = half(2, queries, heads * 64), half(2, keys, heads * 64), half(2, keys, heads * 64)
        split = [x.unflatten(-1, (heads, 64)).transpose(1, 2) for x in (q, k, v)]
        attend = torch.nn.functional.scaled_dot_product_attention
        theirs = min(seconds_of(lambda: attend(*split), 20) for _ in range(5))  # noqa: B023
        ours = best("zoomc::attention", q, k, v, heads=heads, head_dim=64, scale=0.125)
        flops = 4 * 2 * heads * 64 * queries * keys
        rows.append({"kernel": f"attention {heads}x{queries}x{keys}", "ours": ours,
                     "torch": theirs, "tflops": 1e-12 * flops / ours})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="2x64,1x64,8x64,2x96", help="batch x side, by commas")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", help="JSON file; by default named after the machine")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here: torch.cuda.is_available() is False")
    import triton

    name = torch.cuda.get_device_name()
    figures: dict[str, Any] = {
        "machine": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "model": SD2_UNET,
        "kernels": kernels(),
        "steps": [],
    }
    for row in figures["kernels"]:
        print(f"{row['kernel']:26} {row['ours'] * 1e6:9.1f} µs  {row['tflops']:7.1f} TFLOP/s"
              f"  torch {row['torch'] * 1e6:9.1f} µs", flush=True)  # fmt: skip
    for text in arguments.cases.split(","):
        batch, side = map(int, text.split("x"))
        rows = case(batch, side, arguments.contenders.split(","), arguments.rounds)
        figures["steps"] += rows
        medians = {row["contender"]: statistics.median(row["seconds"]) for row in rows}
        print(f"\n{name}, batch {batch}, {side}×{side} latents")
        for row in rows:
            step = medians[row["contender"]]
            against = f"{medians['inductor'] / step:5.2f}×" if "inductor" in medians else ""
            print(f"{row['contender']:12} {step * 1e3:8.2f} ms {against}  error {row['error']:.1e}"
                  f"  first call {row['first_call_seconds']:6.1f} s  peak {row['peak_gb']:5.2f} GB"
                  f"  weights {row['weights_gb']:5.3f} GB", flush=True)  # fmt: skip
    path = Path(arguments.out or RESULTS / f"gpu_unet_{name.replace(' ', '_')}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1))
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
