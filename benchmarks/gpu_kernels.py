"""Kernels alone on a GPU: products beside the card's own matrix product, attention beside flash.

A product's rate is given as a part of the rate that the card's own product of 8192×8192×8192
reaches, in fp16 and in int8: what torch's library kernels get out of this very card, not its data
sheet. ``gpu_unet.py`` runs this and writes the figures down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_machine import Gpu
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Candidates timed of each call, as many as tuning looks at.
TIMED = 4

#: Cycles, some ten milliseconds, in which twenty calls are asked for.
AHEAD = 20_000_000

#: ``rows, columns, k``: the UNet's large linear layers at batch 2.
LINEARS = ((8192, 8192, 8192), (8192, 2560, 320), (8192, 320, 1280), (2048, 5120, 640))
#: ``side, channels in, channels out``: its 3×3 convolutions.
CONVS = ((64, 320, 320), (64, 960, 320), (32, 640, 640), (32, 1920, 640), (16, 1280, 1280))
#: ``heads, queries, keys``.
ATTENTIONS = ((5, 4096, 4096), (10, 1024, 1024), (5, 4096, 77))


def best_of(machine: Gpu, op: str, *args: Any, **kwargs: Any) -> float:
    """Seconds of the fastest of a call's first candidates; operands lie on the CPU."""
    from zoomc.kernels.triton.kernel import candidates
    from zoomc.kernels.triton.run import bind, execute

    found = []
    for kernel in candidates(bind(op, *args, **kwargs), machine.arch())[:TIMED]:
        tensors = {
            name: operand.tensor([v.source for v in operand.values]).to(machine.device).contiguous()
            for name, operand in kernel.operands.items()
        }
        for name, spec in kernel.made.items():
            tensors[name] = torch.empty(spec.shape, dtype=spec.dtype, device=machine.device)

        def go(kernel: Any = kernel, tensors: Any = tensors) -> None:
            execute(kernel, tensors)

        found.append(least(machine, go))
    return min(found)


def least(machine: Gpu, fn: Callable[[], Any]) -> float:
    """The least seconds of a call in a few series of them."""
    fn()  # compiles
    return min(machine.seconds(fn, 20, AHEAD) for _ in range(1 if machine.dry else 5))


def half(machine: Gpu, *shape: int) -> torch.Tensor:
    """Random numbers, on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()


def codes(shape: tuple[int, ...], bits: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A weight in that many bits and what goes with it."""
    extra = {"channel_scale": torch.full(shape[:1], 1e-4)}
    if bits == 8:
        return torch.randint(-127, 128, shape, dtype=torch.int8), extra
    groups = (shape[0], -(-shape[1] // 64), *shape[2:])
    extra["table"] = torch.arange(-8, 8, dtype=torch.int8)
    extra["group_scale"] = torch.randint(1, 16, groups, dtype=torch.int8)
    return torch.randint(0, 16, shape, dtype=torch.uint8), extra


def matmul_rates(machine: Gpu) -> dict[int, float]:
    """Operations a second of the card's own product, by bits of an operand."""
    side = 64 if machine.dry else 8192
    a = half(machine, side, side).to(machine.device)
    rates = {16: 2 * side**3 / least(machine, lambda: a @ a.T)}
    b = torch.randint(-127, 128, (side, side), dtype=torch.int8).to(machine.device)
    try:
        rates[8] = 2 * side**3 / least(machine, lambda: torch._int_mm(b, b.T))
    except (RuntimeError, AttributeError) as error:
        print(f"torch has no int8 product here: {str(error).splitlines()[0]}")
    return rates


def products(machine: Gpu, rates: dict[int, float]) -> list[dict[str, Any]]:
    """Linears and convolutions in each kind of weights, beside torch's in fp16."""
    import zoomc.kernels.conv2d.op
    import zoomc.kernels.linear.op  # noqa: F401

    rows = []

    def row(name: str, bits: int, flops: int, ours: float, theirs: float) -> None:
        # int8 products are measured against the card's own, where torch has it.
        rate = rates.get(16 if bits == 16 else 8, rates[16])
        rows.append({"kernel": name, "bits": bits, "ours": ours, "torch_fp16": theirs,
                     "tflops": 1e-12 * flops / ours, "of_matmul": flops / ours / rate})  # fmt: skip

    for m, n, k in [(64, 48, 64)] if machine.dry else LINEARS:
        x, w = half(machine, m, k), half(machine, n, k)
        there = x.to(machine.device), w.to(machine.device)
        theirs = least(machine, lambda: torch.nn.functional.linear(*there))  # noqa: B023
        for bits in (16, 8, 4):
            weight, extra = (w, {}) if bits == 16 else codes((n, k), bits)
            ours = best_of(machine, "zoomc::linear", x, weight, **extra)
            row(f"linear {m}x{n}x{k}", bits, 2 * m * n * k, ours, theirs)
    for side, c, o in [(4, 64, 48)] if machine.dry else CONVS:
        x, w = half(machine, 2, side, side, c), half(machine, o, c, 3, 3)
        # The same memory as torch sees it: channels last.
        seen = x.to(machine.device).permute(0, 3, 1, 2)
        theirs_w = w.to(machine.device).to(memory_format=torch.channels_last)
        theirs = least(
            machine,
            lambda: torch.nn.functional.conv2d(seen, theirs_w, padding=1),  # noqa: B023
        )
        for bits in (16, 8, 4):
            weight, extra = (w, {}) if bits == 16 else codes((o, c, 3, 3), bits)
            ours = best_of(machine, "zoomc::conv2d", [x], weight, padding=[1] * 4, **extra)
            row(f"conv {side}x{side} {c}->{o}", bits, 2 * 2 * side**2 * 9 * c * o, ours, theirs)
    return rows


def attentions(machine: Gpu) -> list[dict[str, Any]]:
    """Attention in fp16 and in int8 products beside torch's flash attention in fp16."""
    import zoomc.kernels.attention.op  # noqa: F401

    rows = []
    attend = torch.nn.functional.scaled_dot_product_attention
    backends = [SDPBackend.MATH] if machine.dry else [SDPBackend.FLASH_ATTENTION]
    for heads, queries, keys in [(1, 20, 7)] if machine.dry else ATTENTIONS:
        q, k, v = (half(machine, 2, length, heads * 64) for length in (queries, keys, keys))
        split = [x.to(machine.device).unflatten(-1, (heads, 64)).transpose(1, 2) for x in (q, k, v)]
        with sdpa_kernel(backends):
            theirs = least(machine, lambda: attend(*split))  # noqa: B023
        shape = {"heads": heads, "head_dim": 64, "scale": 0.125}
        flops = 4 * 2 * heads * 64 * queries * keys
        for bits, arithmetic in ((16, "keep"), (8, "int8")):
            ours = best_of(machine, "zoomc::attention", q, k, v, **shape, arithmetic=arithmetic)
            rows.append({"kernel": f"attention {heads}x{queries}x{keys}", "bits": bits,
                         "ours": ours, "flash": theirs,
                         "tflops": 1e-12 * flops / ours})  # fmt: skip
    return rows


def run(machine: Gpu) -> dict[str, Any]:
    """All of it, printed as it comes."""
    rates = matmul_rates(machine)
    for bits, rate in rates.items():
        print(f"the card's own product of {bits}-bit operands: {rate / 1e12:.1f} TFLOP/s")
    found = {"matmul_tflops": {str(b): r / 1e12 for b, r in rates.items()},
             "products": products(machine, rates), "attention": attentions(machine)}  # fmt: skip
    for row in found["products"]:
        print(f"{row['kernel']:26} {row['bits']:2} bits {row['ours'] * 1e6:9.1f} µs"
              f"  {row['tflops']:7.1f} TFLOP/s, {row['of_matmul']:4.0%} of the card's own product"
              f"  torch fp16 {row['torch_fp16'] * 1e6:9.1f} µs", flush=True)  # fmt: skip
    for row in found["attention"]:
        print(f"{row['kernel']:26} {row['bits']:2} bits {row['ours'] * 1e6:9.1f} µs"
              f"  {row['tflops']:7.1f} TFLOP/s  flash {row['flash'] * 1e6:9.1f} µs",
              flush=True)  # fmt: skip
    return found
