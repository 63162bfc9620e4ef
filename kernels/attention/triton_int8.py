"""Attention in int8 products on a GPU: keys and values become codes, then one loop over them.

The numbers are those of :mod:`.integer`. A block of keys is one step of the loop, so that a
query's weights are scaled by its largest score in the block, as they are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from ..tiling import layer as tiling
from ..tiling.memory import Words
from ..triton.device import integer_attention as device
from ..triton.gpu import Gpu
from ..triton.kernel import Call, Kernel, Launch, Operand, Slot, TensorSpec, Unsupported
from ..triton.maps import peaks_gathered, power
from ..triton.tiles import LAUNCH, Roof, Traffic
from .integer import BLOCK
from .triton_traffic import expected, traffic

#: The widest head a program holds, and whose sums are exact in fp32 as the loop adds them.
WIDEST = 256

#: GPUs whose tensor cores take 64 rows at once.
TALL = ("sm_90", "sm_100")

#: Sums of blocks that are read at once to find the mean.
PARTS = 16


def integer_attention(call: Call, gpu: Gpu) -> Iterator[Kernel]:
    """Three launches, the choice of block sizes: sums of keys, their codes, and the loop.

    Raises:
        Unsupported: heads wider than 256; a mask; causality.
    """
    heads, dim = call["heads"], call["head_dim"]
    if dim > WIDEST:
        raise Unsupported(f"int8 attention of heads of {dim}; the widest are {WIDEST}")
    if call["mask"] is not None or call["causal"]:
        raise Unsupported("int8 attention takes no mask and is not causal")
    q, k, v = (call[n].spec for n in "qkv")
    batch, queries, _ = q.shape
    keys = k.shape[1]
    planes, parts = batch * heads, math.ceil(keys / BLOCK)
    # Products take 32 bytes at a time along a head; rows of codes start at multiples of 16.
    width, pitch = power(max(dim, 32)), -(-dim // 16) * 16
    scratch = {
        "sums": TensorSpec((planes, parts, width), torch.float32),
        "k8": TensorSpec((planes, parts * BLOCK, pitch), torch.int8),
        "k_scale": TensorSpec((planes, parts), torch.float32),
        "v8": TensorSpec((planes, pitch, parts * BLOCK), torch.int8),
        "v_scale": TensorSpec((planes, parts, pitch), torch.float32),
        "v_sum": TensorSpec((planes, parts, pitch), torch.int32),
    }
    head: dict[str, Any] = {"heads": heads, "HEAD": dim, "WIDTH": width, "BN": BLOCK}
    codes = {n: Slot(n) for n in scratch if n != "sums"}
    at = dict(zip(("q_at", "k_at", "v_at"), call["offsets"], strict=True))
    rows = {"keys": keys, "k_pitch": k.shape[2], "k_at": at["k_at"], **head}
    sums = {"k": Slot("k"), "sums": Slot("sums"), **rows}
    quantised = {
        **{n: Slot(n) for n in ("k", "v", "sums")},
        **codes,
        **rows,
        "v_pitch": v.shape[2],
        "v_at": at["v_at"],
        "PITCH": pitch,
        "BP": PARTS,
    }
    warps = min(max(4, width // 16), 8 if gpu.kind == "cuda" else 16)
    before = (
        Launch(device.key_sums, (parts, planes, 1), sums, warps),
        Launch(device.quantise_keys, (parts, planes, 1), quantised, warps),
    )
    scale = float(call["scale"])
    layer = tiling.Attention("", planes, queries, keys, dim)
    found = blocks(gpu, width, queries)
    if not found:
        raise Unsupported(f"int8 attention of heads of {dim}: no block fits {gpu.name}")
    extras = peaks_gathered(call, dim)
    written = sum(extra.spec.nbytes for extra in extras.values())
    for bm, warps, stages in found:
        arguments = {
            "q": Slot("q"),
            **codes,
            "out": Slot("out"),
            "peaks": Slot("peaks") if extras else None,
            "queries": queries,
            "keys": keys,
            "blocks": parts,
            "q_pitch": q.shape[2],
            "q_at": at["q_at"],
            "scale": abs(scale),
            **head,
            "PITCH": pitch,
            "NEGATIVE": scale < 0,
            "EVEN": keys % BLOCK == 0,
            "BM": bm,
        }
        grid = (math.ceil(queries / bm), planes, 1)
        moved = _moved(layer, q.dtype.itemsize, gpu, bm)
        roof = _roof(gpu, grid, width, parts, bm, moved)
        seconds = roof.seconds + len(before) * LAUNCH + written / gpu.dram_rate
        yield Kernel(
            "attention_int8",
            {n: Operand((call[n],)) for n in "qkv"},
            call.out,
            (*before, Launch(device.integer_attention, grid, arguments, warps, stages)),
            scratch=scratch,
            extras=extras,
            flops=4 * planes * dim * queries * keys,
            seconds=seconds,
            notes={
                "arithmetic": "int8",
                "tile": f"{bm}x{BLOCK}",
                "warps": warps,
                "stages": stages,
                "l2_bytes": moved.l2,
                "dram_bytes": moved.dram + written,
                "limit": roof.limit,
                "expected_us": round(seconds * 1e6, 1),
            },
        )


def blocks(gpu: Gpu, width: int, queries: int) -> list[tuple[int, int, int]]:
    """Queries of a block, warps and stages that registers and shared memory allow."""
    found = []
    for bm in (64, 128) if queries > 64 else (64,):
        found += _fitting(gpu, width, bm)
    if found or gpu.name not in TALL:
        return found or _fitting(gpu, width, 32)
    return [(64, 8, 1)]  # loads in flight would take registers, too


def _fitting(gpu: Gpu, width: int, bm: int) -> list[tuple[int, int, int]]:
    """Warps and stages of blocks of so many queries: the fewest warps, the most stages."""
    # The tensor cores of sm_90 read operands in shared memory; others' lie in registers beside the
    # sums, or these come from a memory of their own. AMD's share registers among all warps.
    room = 192 if gpu.name == "sm_90" else 128
    for warps in (4, 8):
        if gpu.kind == "hip":
            room = 512 // warps
        # The result, a block's sums and its scores.
        if bm * (2 * width + BLOCK) > room * warps * gpu.warp:
            continue
        for stages in (2, 1) if gpu.kind == "hip" else (3, 2, 1):
            # Keys and values of one stage alone take turns.
            held = 2 * BLOCK * stages if stages > 1 else BLOCK
            if (bm + held) * width <= gpu.shared - 4096:
                return [(bm, warps, stages)]
    return []


def _moved(layer: tiling.Attention, size: int, gpu: Gpu, bm: int) -> Traffic:
    """Bytes of the loop by the planner's count, and of the codes' making.

    Queries are read as they are. Keys are read twice before the loop, for their mean and for their
    codes, and values once; of a second reading of so little, memory sees nothing.
    """
    loop = traffic(layer, Words(8, 8, 8 * size, 1), gpu, bm, BLOCK)
    operand = layer.heads * layer.keys * layer.head_dim
    more = layer.heads * layer.queries * layer.head_dim * (size - 1)
    made = 2 * operand * size + 2 * operand
    return Traffic(loop.l2 + more + made + operand * size, loop.dram + more + made)


def _roof(gpu: Gpu, grid: tuple[int, ...], width: int, steps: int, bm: int, moved: Traffic) -> Roof:
    """Bytes on tensor cores, beside exponentials and what turns sums into codes and back."""
    macs = 2 * bm * BLOCK * width / gpu.macs[1]
    loads = 2 * 2 * BLOCK * width / 128
    scores = bm * BLOCK / 16 + 12 * bm * BLOCK / 128
    result = 6 * bm * width / 128
    return expected(gpu, grid[0] * grid[1], steps, max(macs, loads), scores + result, moved)
