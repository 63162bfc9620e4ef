"""What tests of coded weights share: weights in codes, and activations that quantise exactly."""

from __future__ import annotations

from typing import Any

import torch


def exact(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Integers up to ±127, which every row and image reaches: their scale is 1, codes exact."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, shape, generator=generator)
    x[..., 0] = torch.randint(0, 2, shape[:-1], generator=generator) * 254 - 127
    return x.to(dtype)


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
