"""GPU kernels of ``zoomc::attention``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..tiling import layer as tiling
from ..tiling.memory import Words
from ..triton.device import attention as device
from ..triton.gpu import Gpu
from ..triton.kernel import (
    Call,
    Kernel,
    Launch,
    Operand,
    Slot,
    TensorSpec,
    Unsupported,
    lowers,
)
from ..triton.maps import peaks_gathered, power
from ..triton.product import FLOATS
from ..triton.tiles import Roof, Traffic
from .triton_int8 import integer_attention
from .triton_traffic import expected, traffic

#: The widest head a program holds.
WIDEST = 512


@lowers("zoomc::attention")
def attention(call: Call, gpu: Gpu) -> Iterator[Kernel]:
    """The choice of block sizes; one launch, or in int8 what :mod:`.triton_int8` says.

    Raises:
        Unsupported: dtypes other than fp32, fp16, bf16, or mixed; heads wider than 512, in int8
            256; a mask that does not broadcast to the scores; an empty tensor.
    """
    names = ("q", "k", "v")
    specs: list[TensorSpec] = [call[n].spec for n in names]
    q, k, _ = specs
    if q.dtype not in FLOATS or len({s.dtype for s in specs}) > 1:
        raise Unsupported(f"attention of {', '.join(str(s.dtype) for s in specs)}")
    if 0 in (*q.shape, *k.shape):
        raise Unsupported("a tensor without elements")
    if call["arithmetic"] == "int8":
        yield from integer_attention(call, gpu)
        return
    heads, dim = call["heads"], call["head_dim"]
    if dim > WIDEST:
        raise Unsupported(f"heads of {dim}; the widest are {WIDEST}")
    batch, queries, _ = q.shape
    keys = k.shape[1]
    strides = _mask_strides(call, (batch, heads, queries, keys))
    operands = {n: Operand((call[n],)) for n in names}
    if call["mask"] is not None:
        operands["mask"] = Operand((call["mask"],))
    rounded = call["arithmetic"] == "bf16" and q.dtype is not torch.bfloat16
    factor = torch.bfloat16 if rounded else q.dtype
    extras = peaks_gathered(call, dim)
    written = sum(extra.spec.nbytes for extra in extras.values())
    for bm, bn, warps, stages in blocks(gpu, power(max(dim, 16)), q.dtype, factor, queries):
        arguments = {
            **{n: Slot(n) for n in names},
            "mask": Slot("mask") if "mask" in operands else None,
            "out": Slot("out"),
            "peaks": Slot("peaks") if extras else None,
            "queries": queries,
            "keys": keys,
            **{f"{n}_pitch": s.shape[2] for n, s in zip(names, specs, strict=True)},
            **{f"{n}_at": at for n, at in zip(names, call["offsets"], strict=True)},
            "heads": heads,
            **dict(
                zip(("mask_batch", "mask_head", "mask_query", "mask_key"), strides, strict=True)
            ),
            "scale": float(call["scale"]),
            "HEAD": dim,
            "WIDTH": power(max(dim, 16)),
            "CAUSAL": call["causal"],
            "BOOLEAN": call["mask"] is not None and call["mask"].spec.dtype is torch.bool,
            "EVEN": keys % bn == 0,
            "ROUND": rounded,
            "PRECISION": _precision(factor, gpu),
            "BM": bm,
            "BN": bn,
        }
        grid = (math.ceil(queries / bm), batch * heads, 1)
        flops = 4 * batch * heads * dim * queries * keys
        layer = tiling.Attention("", batch * heads, queries, keys, dim)
        bits = 8 * q.dtype.itemsize
        moved = traffic(layer, Words(bits, bits, bits, 1), gpu, bm, bn)
        found = _roof(gpu, q.dtype, factor, grid, dim, keys, bm, bn, moved)
        seconds = found.seconds + written / gpu.dram_rate
        yield Kernel(
            "attention",
            operands,
            call.out,
            (Launch(device.attention, grid, arguments, warps, stages),),
            extras=extras,
            flops=flops,
            seconds=seconds,
            notes={
                **({"arithmetic": "bf16"} if rounded else {}),
                "tile": f"{bm}x{bn}",
                "warps": warps,
                "stages": stages,
                "l2_bytes": moved.l2,
                "dram_bytes": moved.dram + written,
                "limit": found.limit,
                "expected_us": round(seconds * 1e6, 1),
            },
        )


def _precision(dtype: torch.dtype, gpu: Gpu) -> str:
    if dtype is not torch.float32:
        return "tf32"
    return "tf32x3" if gpu.kind == "cuda" else "ieee"


def _mask_strides(call: Call, scores: tuple[int, ...]) -> tuple[int, ...]:
    """Elements between neighbours along batch, heads, queries and keys; 0 where broadcast."""
    if call["mask"] is None:
        return (0, 0, 0, 0)
    spec: TensorSpec = call["mask"].spec
    shape = (1,) * (4 - len(spec.shape)) + spec.shape
    if len(shape) > 4 or any(m not in (1, s) for m, s in zip(shape, scores, strict=True)):
        raise Unsupported(f"mask of shape {spec.shape} for scores of shape {scores}")
    if spec.dtype not in (*FLOATS, torch.bool):
        raise Unsupported(f"mask of dtype {spec.dtype}")
    return tuple(math.prod(shape[i + 1 :]) if size > 1 else 0 for i, size in enumerate(shape))


def blocks(
    gpu: Gpu, width: int, dtype: torch.dtype, factor: torch.dtype, queries: int
) -> Iterator[tuple[int, int, int, int]]:
    """Queries and keys of a block, warps and stages that registers and shared memory allow.

    ``factor`` is what ``dtype`` is rounded to before it is multiplied.
    """
    size, found = factor.itemsize, False
    for bm in (64, 128):
        for bn in (32, 64, 128):
            if (bm > 64 and queries <= 64) or (bn > 64 and width > 128):
                continue
            if bn == 32 and size < 4 and gpu.name == "sm_100":
                continue  # spills there, where blocks of more keys do not
            warps = 8 if bm * width >= 128 * 128 or (bm >= 128 and bn >= 128) else 4
            threads = warps * gpu.warp
            # The result's and the scores' sums lie in registers, fp32's operands thrice besides.
            registers = (bm * width + bm * bn * (2 if size < 4 else 4)) / threads
            if size == 4:
                registers += bm * width / threads
            # What is rounded first lies in shared memory twice.
            held = bm if factor is dtype else bm + 2 * bn
            # With one stage, what is to be rounded would wait in registers, too.
            for stages in (3, 2, 1) if factor is dtype else (3, 2):
                shared = (held * size + 2 * bn * stages * dtype.itemsize) * width
                if shared <= gpu.shared - 4096:
                    break
            else:
                continue
            if registers <= 192:
                yield bm, bn, warps, stages
                found = True
    if width >= 256 or not found:
        yield 64, 16 if size == 4 else 32, 8, 1


def _roof(
    gpu: Gpu,
    dtype: torch.dtype,
    factor: torch.dtype,
    grid: tuple[int, ...],
    dim: int,
    keys: int,
    bm: int,
    bn: int,
    moved: Traffic,
) -> Roof:
    """Arithmetic on tensor cores, beside the exponentials' on special units; or what is moved."""
    width = power(max(dim, 16))
    macs = 2 * bm * bn * width / gpu.macs[factor.itemsize]
    loads = 2 * 2 * bn * width * dtype.itemsize / 128
    exponentials = bm * bn / 16 + 6 * bm * bn / 128
    programs, steps = grid[0] * grid[1], math.ceil(keys / bn)
    return expected(gpu, programs, steps, max(macs, loads), exponentials, moved)
