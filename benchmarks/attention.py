"""Time attention kernels beside torch on the shapes of Stable Diffusion's UNet, text encoder, VAE.

python benchmarks/attention.py [--isa auto] [--dtype bf16] [--threads 2]
python benchmarks/attention.py --isa avx512 --dtype fp32 --arithmetic keep,int8 --shapes SD2
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
#: batch, heads, queries, keys, head size
SHAPES = {
    "SD2 64×64": (1, 5, 4096, 4096, 64),
    "SD2 64×64 cross": (1, 5, 4096, 77, 64),
    "SD2 32×32": (1, 10, 1024, 1024, 64),
    "SD2 16×16": (1, 20, 256, 256, 64),
    "SD2 8×8": (1, 20, 64, 64, 64),
    "SD1.5 64×64": (1, 8, 4096, 4096, 40),
    "CLIP": (1, 16, 77, 77, 64),
    "VAE": (1, 1, 4096, 4096, 512),
}


def best(fn: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the fastest of some runs."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return min(times[1:]) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--arithmetic", default="keep", help="some of keep,bf16,int8")
    parser.add_argument("--shapes", default="", help="only those whose name contains this")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)

    import torch
    from torch.nn import functional as F
    from zoomc.kernels.attention import op  # noqa: F401 - registers the operator
    from zoomc.kernels.tir import run
    from zoomc.kernels.tir.isa import isa
    from zoomc.kernels.tir.kernel import Unsupported, lower

    torch.set_num_threads(options.threads)
    path = isa(options.isa, options.threads)
    dtype = getattr(torch, DTYPES[options.dtype])
    print(f"{path.name} {options.dtype}, {path.threads} threads; milliseconds, error against fp32")
    for name, (batch, heads, queries, keys, dim) in SHAPES.items():
        if options.shapes not in name:
            continue
        operands = [torch.randn(batch, n, heads * dim).to(dtype) for n in (queries, keys, keys)]
        split = [x.unflatten(-1, (heads, dim)).transpose(1, 2) for x in operands]
        wide = [x.float() for x in split]
        want = F.scaled_dot_product_attention(*wide).transpose(1, 2).flatten(2)
        torchs = best(lambda s=split: F.scaled_dot_product_attention(*s), options.repeats)
        print(f"{name:16} torch {torchs:8.3f}")
        for arithmetic in options.arithmetic.split(","):
            kwargs = {"heads": heads, "head_dim": dim, "scale": dim**-0.5, "arithmetic": arithmetic}
            try:
                kernel = lower(run.bind("zoomc::attention", *operands, **kwargs), path)
            except Unsupported as reason:
                print(f"{'':16} {arithmetic:5} {reason}")
                continue
            start = time.perf_counter()
            ours = run.load(kernel, path)
            build = time.perf_counter() - start
            mine = best(ours, options.repeats)
            error = float((ours().float() - want).norm() / want.norm())
            print(
                f"{'':16} {arithmetic:5} {mine:8.3f} {kernel.flops / mine / 1e6:6.0f} GFLOP/s"
                f" error {error:.1e} build {build:.2f} s {dict(kernel.notes)}"
            )


if __name__ == "__main__":
    main()
