"""Kernels alone on a GPU: products beside the card's own matrix product, attention beside flash.

A product's rate is given as a part of the rate that the card's own product of 8192×8192×8192
reaches, in fp16 and in int8: what torch's library kernels get out of this very card, not its data
sheet. Every result is compared with the operator's reference, which runs on the card in fp32.
``gpu_unet.py`` runs this and writes the figures down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from gpu_apart import Ended, Notes, persist, serve
from gpu_machine import Gpu
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Candidates timed of each call, as many as tuning looks at.
TIMED = 4

#: Relative error from which a result is wrong, not rounded.
WRONG = 2e-2

#: Cycles, some ten milliseconds, in which twenty calls are asked for.
AHEAD = 20_000_000

#: ``rows, columns, k``: the UNet's large linear layers at batch 2.
LINEARS = ((8192, 8192, 8192), (8192, 2560, 320), (8192, 320, 1280), (2048, 5120, 640))
#: ``side, channels in, channels out``: its 3×3 convolutions.
CONVS = ((64, 320, 320), (64, 960, 320), (32, 640, 640), (32, 1920, 640), (16, 1280, 1280))
#: ``heads, queries, keys``.
ATTENTIONS = ((5, 4096, 4096), (10, 1024, 1024), (5, 4096, 77))

#: What torch's attention may run by; the first is the one to be held against.
PEERS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def least(machine: Gpu, fn: Callable[[], Any]) -> float:
    """The least seconds of a call in a few series of them."""
    fn()  # compiles
    return min(machine.seconds(fn, 20, AHEAD) for _ in range(1 if machine.dry else 5))


def half(*shape: int) -> torch.Tensor:
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


def best_of(machine: Gpu, op: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The fastest of a call's first candidates: seconds, tile, error, and each one's seconds.

    Operands lie on the CPU. Candidates that the GPU has no room for are passed over, and those
    whose result is wrong, which are named.
    """
    from triton.runtime.errors import OutOfResources
    from zoomc.kernels.triton.kernel import candidates
    from zoomc.kernels.triton.run import bind, execute

    gpu = machine.arch()
    found = candidates(bind(op, *args, **kwargs), gpu)[:TIMED]
    if not machine.dry:
        from zoomc.targets.triton.build import Built, as_built, compile_choices

        built: Built = {}
        compile_choices(found, gpu, built)  # all at once
        found = [as_built(kernel, built) for kernel in found]
    expected = reference(machine, op, *args, **kwargs)
    times: dict[str, float] = {}
    errors: dict[str, float] = {}
    for kernel in found:
        tensors = {
            name: operand.tensor([v.source for v in operand.values]).to(machine.device).contiguous()
            for name, operand in kernel.operands.items()
        }
        for name, spec in kernel.made.items():
            tensors[name] = torch.empty(spec.shape, dtype=spec.dtype, device=machine.device)

        def go(kernel: Any = kernel, tensors: Any = tensors) -> None:
            execute(kernel, tensors)

        try:
            seconds = least(machine, go)
        except OutOfResources as full:
            print(f"{kernel.name} {kernel.notes['tile']} does not fit: {full}")
            continue
        parts = kernel.notes.get("split", 1)
        told = (kernel.notes["tile"], f"split {parts}" * (parts > 1), kernel.notes.get("weights"))
        tile = f"{len(errors)}: {' '.join(filter(None, told))}"
        errors[tile] = float((tensors["out"].float() - expected).norm() / expected.norm())
        if errors[tile] < WRONG:  # which a NaN is not, either
            times[tile] = seconds
    wrong = {tile: error for tile, error in errors.items() if tile not in times}
    if not times:
        raise RuntimeError(f"of {len(found)} candidates none fits and is right; wrong: {wrong}")
    tile = min(times, key=times.__getitem__)
    row = {"ours": times[tile], "tile": tile.partition(": ")[2], "error": errors[tile]}
    return row | {"timed": times} | ({"wrong": wrong} if wrong else {})


def reference(machine: Gpu, op: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What a call means, summed in fp32."""
    from zoomc.kernels.integer import sums_in
    from zoomc.kernels.operator import OPERATORS

    def there(x: Any) -> Any:
        if isinstance(x, list) and isinstance(x[0], torch.Tensor):
            return [there(y) for y in x]
        if not isinstance(x, torch.Tensor):
            return x
        return (x.float() if x.is_floating_point() else x).to(machine.device)

    with sums_in(torch.float32):
        return (
            OPERATORS[op]
            .reference(*map(there, args), **{n: there(x) for n, x in kwargs.items()})
            .float()
        )


@dataclass(frozen=True)
class Linear:
    """``rows, columns, k``."""

    m: int
    n: int
    k: int

    @cached_property
    def operands(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Input and weight."""
        return half(self.m, self.k), half(self.n, self.k)

    def __str__(self) -> str:
        return f"linear {self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> int:
        """Multiplies and adds."""
        return 2 * self.m * self.n * self.k

    def peers(self, machine: Gpu) -> dict[str, float]:
        """Seconds of torch's, in fp16."""
        x, w = (t.to(machine.device) for t in self.operands)
        return {"torch fp16": least(machine, lambda: torch.nn.functional.linear(x, w))}

    def ours(self, machine: Gpu, bits: int) -> dict[str, Any]:
        """With weights in that many bits."""
        x, w = self.operands
        weight, extra = (w, {}) if bits == 16 else codes((self.n, self.k), bits)
        return best_of(machine, "zoomc::linear", x, weight, **extra)


@dataclass(frozen=True)
class Conv:
    """``side, channels in, channels out``, 3×3 at batch 2."""

    side: int
    c: int
    o: int

    @cached_property
    def operands(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Input and weight."""
        return half(2, self.side, self.side, self.c), half(self.o, self.c, 3, 3)

    def __str__(self) -> str:
        return f"conv {self.side}x{self.side} {self.c}->{self.o}"

    @property
    def flops(self) -> int:
        """Multiplies and adds."""
        return 2 * 2 * self.side**2 * 9 * self.c * self.o

    def peers(self, machine: Gpu) -> dict[str, float]:
        """Seconds of torch's, in fp16, on the same memory, which it sees as channels last."""
        x = self.operands[0].to(machine.device).permute(0, 3, 1, 2)
        w = self.operands[1].to(machine.device).to(memory_format=torch.channels_last)
        seconds = least(machine, lambda: torch.nn.functional.conv2d(x, w, padding=1))
        return {"torch fp16": seconds}

    def ours(self, machine: Gpu, bits: int) -> dict[str, Any]:
        """With weights in that many bits."""
        x, w = self.operands
        weight, extra = (w, {}) if bits == 16 else codes((self.o, self.c, 3, 3), bits)
        return best_of(machine, "zoomc::conv2d", [x], weight, padding=[1] * 4, **extra)


@dataclass(frozen=True)
class Attention:
    """``heads, queries, keys``, heads of 64 at batch 2."""

    heads: int
    queries: int
    keys: int

    @cached_property
    def operands(self) -> list[torch.Tensor]:
        """Queries, keys, values."""
        return [half(2, n, self.heads * 64) for n in (self.queries, self.keys, self.keys)]

    def __str__(self) -> str:
        return f"attention {self.heads}x{self.queries}x{self.keys}"

    @property
    def flops(self) -> int:
        """Multiplies and adds."""
        return 4 * 2 * self.heads * 64 * self.queries * self.keys

    def peers(self, machine: Gpu) -> dict[str, float]:
        """Seconds of torch's ways, in fp16; of those that it has here."""
        q, k, v = (
            x.to(machine.device).unflatten(-1, (self.heads, 64)).transpose(1, 2)
            for x in self.operands
        )
        attend = torch.nn.functional.scaled_dot_product_attention
        found = {}
        for name, backend in PEERS.items():
            with sdpa_kernel([SDPBackend.MATH if machine.dry else backend]):
                try:
                    found[name] = least(machine, lambda: attend(q, k, v))
                except RuntimeError as error:
                    print(f"torch has no {name} attention here: {str(error).splitlines()[0]}")
        return found

    def ours(self, machine: Gpu, bits: int) -> dict[str, Any]:
        """In fp16, or in int8 products."""
        shape = {"heads": self.heads, "head_dim": 64, "scale": 0.125}
        arithmetic = "int8" if bits == 8 else "keep"
        return best_of(machine, "zoomc::attention", *self.operands, **shape, arithmetic=arithmetic)


def kernels(machine: Gpu) -> list[Linear | Conv | Attention]:
    """What is measured."""
    if machine.dry:
        return [Linear(64, 48, 64), Conv(4, 64, 48), Attention(1, 20, 7)]
    return [
        *(Linear(*x) for x in LINEARS),
        *(Conv(*x) for x in CONVS),
        *(Attention(*x) for x in ATTENTIONS),
    ]


def items(machine: Gpu) -> Iterator[tuple[str, Linear | Conv | Attention, int]]:
    """Name, kernel, bits."""
    for kernel in kernels(machine):
        for bits in (16, 8) if isinstance(kernel, Attention) else (16, 8, 4):
            yield f"{kernel} {bits} bits", kernel, bits


def matmul_rates(machine: Gpu) -> dict[int, float]:
    """Operations a second of the card's own product, by bits of an operand."""
    side = 64 if machine.dry else 8192
    a = half(side, side).to(machine.device)
    rates = {16: 2 * side**3 / least(machine, lambda: a @ a.T)}
    b = torch.randint(-127, 128, (side, side), dtype=torch.int8).to(machine.device)
    try:
        rates[8] = 2 * side**3 / least(machine, lambda: torch._int_mm(b, b.T))
    except (RuntimeError, AttributeError) as error:
        print(f"torch has no int8 product here: {str(error).splitlines()[0]}")
    return rates


def work(machine: Gpu, notes: Notes, names: list[str]) -> None:
    """Measure the items of these names, each printed as it comes."""
    import zoomc.kernels.attention.op
    import zoomc.kernels.conv2d.op
    import zoomc.kernels.linear.op  # noqa: F401

    torch.backends.cudnn.allow_tf32 = False  # references are in fp32
    rates = matmul_rates(machine)
    for bits, rate in rates.items():
        print(f"the card's own product of {bits}-bit operands: {rate / 1e12:.1f} TFLOP/s")
    notes.found |= {"matmul_tflops": {str(b): r / 1e12 for b, r in rates.items()}, "rows": []}
    peers: dict[str, dict[str, float]] = {}
    for name, kernel, bits in items(machine):
        if name not in names:
            continue
        with notes.at(name):
            key = str(kernel)
            if key not in peers:
                peers[key] = kernel.peers(machine)
            row = {"kernel": key, "bits": bits, **kernel.ours(machine, bits), "peers": peers[key]}
            rate = kernel.flops / row["ours"]
            row["tflops"] = rate / 1e12
            if not isinstance(kernel, Attention):
                # int8 products are measured against the card's own, where torch has it.
                row["of_matmul"] = rate / rates.get(16 if bits == 16 else 8, rates[16])
            notes.found["rows"].append(row)
            if "wrong" in row:
                notes.failed[name] = f"relative errors that are none of rounding: {row['wrong']}"
            print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """A row, for people."""
    part = f", {row['of_matmul']:4.0%} of the card's own product" if "of_matmul" in row else ""
    peers = ", ".join(
        f"{name} {seconds * 1e6:.1f} µs ({seconds / row['ours']:.2f}×)"
        for name, seconds in row["peers"].items()
    )
    return (
        f"{row['kernel']:26} {row['bits']:2} bits {row['ours'] * 1e6:9.1f} µs"
        f"  {row['tflops']:7.1f} TFLOP/s{part}  error {row['error']:.1e}  [{row['tile']}]  {peers}"
    )


def run(machine: Gpu) -> Ended:
    """All of it, in a process of its own."""
    return persist(machine, __file__, [name for name, *_ in items(machine)], {})


if __name__ == "__main__":
    serve(work)
