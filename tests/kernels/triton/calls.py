"""Calls of Stable Diffusion 2's UNet, as kernels see them: shapes and dtypes without values."""

from __future__ import annotations

from typing import Any

import torch
import zoomc.kernels.attention.op
import zoomc.kernels.conv2d.op
import zoomc.kernels.linear.op
import zoomc.kernels.norm.op  # noqa: F401
from zoomc.kernels.triton.kernel import Call
from zoomc.kernels.triton.run import bind


def tensor(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def weight(shape: tuple[int, ...], bits: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """A weight and what goes with it: in fp16, int8 or 4-bit codes."""
    if bits == 16:
        return tensor(*shape), {}
    extra = {"channel_scale": tensor(shape[0], dtype=torch.float32)}
    if bits == 8:
        return tensor(*shape, dtype=torch.int8), extra
    groups = (shape[0], -(-shape[1] // 64), *shape[2:])
    extra |= {
        "table": tensor(16, dtype=torch.int8),
        "group_scale": tensor(*groups, dtype=torch.int8),
    }
    return tensor(*shape, dtype=torch.uint8), extra


def conv(
    side: int, channels: tuple[int, ...], out: int, kernel: int = 3, bits: int = 16, **kwargs: Any
) -> Call:
    inputs, total = [tensor(2, side, side, c) for c in channels], sum(channels)
    w, extra = weight((out, total, kernel, kernel), bits)
    if kernel == 3:
        kwargs.setdefault("padding", [1, 1, 1, 1])
    if kwargs.get("norm_groups"):
        kwargs |= {"norm_weight": tensor(total), "norm_bias": tensor(total)}
    if kwargs.pop("shift", False):
        kwargs["shift"] = tensor(2, out)
    if kwargs.pop("residual", False):
        kwargs["residual"] = tensor(2, side, side, out)
    return bind("zoomc::conv2d", inputs, w, tensor(out), **kwargs, **extra)


def linear(rows: int, k: int, n: int, bits: int = 16, **kwargs: Any) -> Call:
    w, extra = weight((n, k), bits)
    if kwargs.get("norm"):
        kwargs |= {"norm_weight": tensor(k), "norm_bias": tensor(k)}
    if kwargs.pop("residual", False):
        kwargs["residual"] = tensor(rows, n)
    return bind("zoomc::linear", tensor(rows, k), w, tensor(n), **kwargs, **extra)


def attention(
    queries: int,
    keys: int,
    heads: int,
    dim: int = 64,
    arithmetic: str = "keep",
    dtype: torch.dtype = torch.float16,
) -> Call:
    size = heads * dim
    qkv = [tensor(2, rows, size, dtype=dtype) for rows in (queries, keys, keys)]
    kwargs = {"heads": heads, "head_dim": dim, "scale": dim**-0.5, "arithmetic": arithmetic}
    return bind("zoomc::attention", *qkv, **kwargs)


def unet(bits: int = 16) -> dict[str, Call]:
    """The UNet's distinct calls at 64×64 latents, batch 2."""
    first = {"norm_groups": 32, "pre_activation": "silu", "shift": True, "bits": bits}
    second = {"norm_groups": 32, "pre_activation": "silu", "residual": True, "bits": bits}
    calls = {
        "conv_in": conv(64, (9,), 320, bits=bits),
        "conv_out": conv(64, (320,), 4, norm_groups=32, pre_activation="silu", bits=bits),
        "time": linear(2, 1280, 1280, activation="silu", bits=bits),
    }
    for side, c, joined in (
        (64, 320, [(640, 320), (320, 320)]),
        (32, 640, [(1280, 640), (640, 320)]),
        (16, 1280, [(1280, 1280), (1280, 640)]),
        (8, 1280, [(1280, 1280)]),
    ):
        calls[f"res1 {side}"] = conv(side, (c,), c, **first)
        calls[f"res2 {side}"] = conv(side, (c,), c, **second)
        for pair in joined:
            calls[f"res1 {side} {pair}"] = conv(side, pair, c, **first)
            calls[f"skip {side} {pair}"] = conv(side, pair, c, 1, bits=bits)
    for side, c in ((64, 320), (32, 640), (16, 1280)):
        calls[f"down {side}"] = conv(side, (c,), c, stride=[2, 2], bits=bits)
        calls[f"up {side}"] = conv(side // 2, (c,), c, upsample=True, bits=bits)
    for rows, c in ((8192, 320), (2048, 640), (512, 1280), (128, 1280)):
        calls[f"qkv {rows}"] = linear(rows, c, 3 * c, bits=bits, norm=True)
        calls[f"out {rows}"] = linear(rows, c, c, bits=bits, residual=True)
        calls[f"geglu {rows}"] = linear(rows, c, 8 * c, bits=bits, norm=True, activation="geglu")
        calls[f"ff2 {rows}"] = linear(rows, 4 * c, c, bits=bits, residual=True)
        calls[f"kv {c}"] = linear(154, 1024, 2 * c, bits=bits)
    if bits in (8, 16):
        own = {"arithmetic": "int8" if bits == 8 else "keep"}
        for queries, heads in ((4096, 5), (1024, 10), (256, 20), (64, 20)):
            calls[f"self {queries}"] = attention(queries, queries, heads, **own)
            calls[f"cross {queries}"] = attention(queries, 77, heads, **own)
    return calls
