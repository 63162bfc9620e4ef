"""What tests of coded weights share: weights in codes, and activations that quantise exactly."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.tir.isa import Isa, isa, supported
from zoomc.kernels.tir.kernel import lower
from zoomc.kernels.tir.run import bind, load
from zoomc.kernels.weights import Encoding, prune
from zoomc.kernels.weights.pruning import kept_steps


def exact(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Integers up to ±127, which every row and image reaches: their scale is 1, codes exact."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, shape, generator=generator)
    x[..., 0] = torch.randint(0, 2, shape[:-1], generator=generator) * 254 - 127
    return x.to(dtype)


def exact_maps(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int = 0,
    lows: tuple[int, ...] = (-90, 0, -254),
) -> torch.Tensor:
    """Integers that span 254 in every image, from one of ``lows`` on: scale 1, codes exact."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randint(0, 255, (shape[0], math.prod(shape[1:])), generator=generator)
    for i, image in enumerate(flat):
        image[0] = 254
        image[1:2] = 0
        image += lows[i % len(lows)] if len(image) > 1 else 0
        image.copy_(image[torch.randperm(len(image), generator=generator)])
    return flat.view(shape).to(dtype)


def exact_codes(shape: tuple[int, ...], bits: int, seed: int = 0) -> torch.Tensor:
    """Weights of that many bits; 0 for int8 values."""
    generator = torch.Generator().manual_seed(seed)
    if not bits:
        return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)


def coded(shape: tuple[int, ...], bits: int, seed: int = 0) -> tuple[torch.Tensor, dict[str, Any]]:
    """A weight ``(N, C, ...)`` and the arguments that go with it."""
    generator = torch.Generator().manual_seed(seed + 1)
    weight = exact_codes(shape, bits, seed)
    extra: dict[str, Any] = {"channel_scale": torch.rand(shape[0], generator=generator) + 0.5}
    if bits:
        scales = (shape[0], -(-shape[1] // 64), *shape[2:])
        largest = {2: 127, 4: 18, 8: 5}[bits]
        low = 127 // largest
        table = torch.randint(-low, low + 1, (2**bits,), generator=generator)
        group_scale = torch.randint(1, largest + 1, scales, generator=generator)
        extra |= {"table": table.to(torch.int8), "group_scale": group_scale.to(torch.int8)}
    return weight, extra


def block_pruned(
    shape: tuple[int, ...], bits: int, share: int, gated: bool = False
) -> tuple[torch.Tensor, dict[str, Any]]:
    """A weight of which that many percent of the blocks are zero, and what goes with it."""
    weight, extra = coded(shape, bits)
    zero = 0
    if bits:
        zero = 2**bits - 1  # not the code that padding has
        extra["table"][zero] = 0
    pruning = Encoding.parse(f"keep+blocks{share}%").pruning
    keep = prune(torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.1, pruning) != 0
    weight[~keep] = zero
    return weight, extra | {"kept_steps": kept_steps(shape, pruning, gated)}


def machines() -> dict[str, Isa]:
    """Every path this CPU can run, and again without the instruction for bytes.

    Integer code on ``avx512_bf16`` is that of ``avx512``.
    """
    found = {}
    for name in (n for n in supported() if n != "avx512_bf16"):
        path = isa(name, 2)
        found[name] = path
        if path.vnni and not path.amx:
            found[f"{name} without vnni"] = dataclasses.replace(path, vnni=False, features="")
    return found


MACHINES = machines()


def check_exact(machine: str, op: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Run a call whose operands quantise exactly; every sum must be the reference's."""
    path = MACHINES[machine]
    result = load(lower(bind(op, *args, **kwargs), path), path)().clone()
    expected = OPERATORS[op].reference(*args, **kwargs)
    assert torch.equal(result, expected), f"{machine}: {(result != expected).sum()} sums differ"
    return result


def check_close(machine: str, op: str, *args: Any, **kwargs: Any) -> None:
    """Run a call whose operands are computed first, and compare it with its reference.

    What is quantised may differ in its last place, and so, where it lies between two codes, by a
    code: few do, each by 1/127 of the largest. Beyond that a result is rounded once to its dtype.
    """
    path = MACHINES[machine]
    result = load(lower(bind(op, *args, **kwargs), path), path)().clone()
    expected = OPERATORS[op].reference(*args, **kwargs)
    assert result.shape == expected.shape and result.dtype == expected.dtype
    error = (result.double() - expected.double()).norm() / expected.double().norm()
    assert error < 2e-3 + torch.finfo(result.dtype).eps / 2, f"{machine}: off by {error:.2e}"
