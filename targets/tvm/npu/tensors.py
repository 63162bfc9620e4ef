"""An operator call as a job and the bytes it runs on: what the host does before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ....kernels import integer
from ....kernels.activation import ACTIVATIONS
from ....kernels.tir.kernel import Unsupported
from ...tiling import Axis, Conv
from .commands import ACTIVATION_CODES
from .program import TABLE, Job, Program

#: Values of a table that 4-bit codes can index.
NIBBLE = 16


@dataclass(frozen=True)
class Shapes:
    """What a call's job depends on: shapes and dtypes, as fake tensors give them, too."""

    op: str
    args: Mapping[str, Any]
    out: torch.Tensor


def job_of(name: str, shapes: Shapes) -> Job:
    """The job of a ``zoomc::conv2d`` or ``zoomc::linear`` of coded weights.

    Raises:
        Unsupported: with the reason why the machine cannot do it.
    """
    args = shapes.args
    if shapes.op not in {"zoomc::conv2d", "zoomc::linear"}:
        raise Unsupported("the NPU multiplies coded weights alone")
    if args["channel_scale"] is None:
        raise Unsupported(
            'its weights are not coded: weights="int4" or "int8" does it, but for those that'
            " encodings lists as keep"
        )
    if args["weight_only"]:
        raise Unsupported("its activations are not to be quantised")
    if shapes.out.dtype not in {torch.float32, torch.bfloat16}:
        raise Unsupported(f"results of {shapes.out.dtype}")
    weight, table = args["weight"], args["table"]
    entries = 0 if table is None else int(table.shape[0])
    bits = 4 if 0 < entries <= NIBBLE else 8
    layer = _conv(name, args, bits) if "inputs" in args else _linear(name, args, bits)
    if layer.depth * layer.taps > integer.LONGEST:
        raise Unsupported("its sums may not fit 32 bits")
    if weight.dtype not in {torch.int8, torch.uint8}:
        raise Unsupported(f"codes of {weight.dtype}")
    return Job(
        layer,
        bits=bits,
        group=0 if args["group_scale"] is None else integer.GROUP,
        entries=entries,
        bias=args["bias"] is not None,
        shift=args.get("shift") is not None,
        residual=args["residual"] is not None,
        per_row="inputs" not in args,
        activation=_activation(args),
        half=shapes.out.dtype is torch.bfloat16,
    )


def _activation(args: Mapping[str, Any]) -> str:
    name = str(args.get("activation", "none"))
    if name not in ACTIVATION_CODES:
        raise Unsupported(f"no {name} in the NPU's epilogue")
    if name == "geglu" and args["residual"] is not None:
        raise Unsupported("geglu with a residual")
    return name


def _depth(channels: int, bits: int) -> int:
    """Input channels with the zeros that make every row of codes whole bytes."""
    return channels + channels % 2 if bits < 8 else channels


def _conv(name: str, args: Mapping[str, Any], bits: int) -> Conv:
    weight = args["weight"]
    if args["groups"] != 1:
        raise Unsupported("a grouped convolution")
    if tuple(args["dilation"]) != (1, 1):
        raise Unsupported("a dilated convolution")
    images, height, width, _ = args["inputs"][0].shape
    scale = 2 if args["upsample"] else 1
    wide, channels, kh, kw = weight.shape
    padding, stride = args["padding"], args["stride"]
    axes = []
    for size, kernel, step, sides in (
        (height, kh, stride[0], padding[:2]),
        (width, kw, stride[1], padding[2:]),
    ):
        if step > kernel:
            raise Unsupported("a stride longer than the kernel")
        if max(sides) >= kernel:
            raise Unsupported("padding as wide as the kernel")
        axes.append(Axis(int(size * scale), int(kernel), int(step), (int(sides[0]), int(sides[1]))))
    return Conv(name, int(images), _depth(channels, bits), int(wide), axes[0], axes[1])


def _linear(name: str, args: Mapping[str, Any], bits: int) -> Conv:
    wide, channels = args["weight"].shape
    rows = args["x"].numel() // channels
    gated = args["activation"] == "geglu"
    return Conv(
        name,
        1,
        _depth(int(channels), bits),
        int(wide),
        Axis(int(rows)),
        Axis(1),
        kind="matmul",
        gated=gated,
    )


def quantised(
    op: str, args: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Everything before the product, as the operator's reference does it.

    Returns:
        int8 codes ``(N, H, W, C)`` or ``(M, K)``, their scales ``(N,)`` or ``(M,)``, and the
        images' zeros: int8 ``(N,)`` or None.
    """
    if op == "zoomc::linear":
        x, gain, offset = integer.wide(args["x"], args["norm_weight"], args["norm_bias"])
        if args["norm"]:
            x = F.layer_norm(x, x.shape[-1:], gain, offset, args["norm_eps"])
        before, x = x, ACTIVATIONS[args["pre_activation"]](x)
        codes, scale = integer.quantise(x, integer.token_largest(before, x, args["bounds"]))
        return codes.reshape(-1, codes.shape[-1]), scale.flatten(), None
    x = torch.cat([t.permute(0, 3, 1, 2) for t in args["inputs"]], dim=1)
    x, gain, offset = integer.wide(x, args["norm_weight"], args["norm_bias"])
    if args["norm_groups"]:
        x = F.group_norm(x, args["norm_groups"], gain, offset, args["norm_eps"])
    ends = integer.image_ends(x, args["pre_activation"], args["bounds"])
    x = ACTIVATIONS[args["pre_activation"]](x)
    if args["upsample"]:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    codes, zero, scale = integer.quantise_between(x, *ends)
    return codes.permute(0, 2, 3, 1), scale.flatten(), zero.flatten()


def _interleaved(x: torch.Tensor, job: Job) -> torch.Tensor:
    """Value and gate channels of geglu in turn, so that a tile holds both."""
    if not job.layer.gated:
        return x
    value, gate = x.chunk(2, dim=0)
    return torch.stack((value, gate), dim=1).flatten(0, 1)


def weight_bytes(program: Program, args: Mapping[str, Any]) -> torch.Tensor:
    """Codes and group scales, tile by tile as the program fetches them: uint8."""
    job = program.job
    codes = _interleaved(args["weight"], job)
    codes = codes.reshape(codes.shape[0], codes.shape[1], -1).permute(0, 2, 1)
    codes = F.pad(codes.contiguous().view(torch.uint8), (0, job.layer.depth - codes.shape[2]))
    scales = None
    if job.group:
        scales = _interleaved(args["group_scale"], job)
        scales = scales.reshape(scales.shape[0], scales.shape[1], -1).permute(0, 2, 1)
    parts = []
    for o, wide, i, deep in program.blocks:
        block = codes[o : o + wide, :, i : i + deep].flatten()
        if job.bits == 4:
            block = block[::2] | block[1::2] << 4
        parts.append(block)
        if scales is not None:
            last = -(-(i + deep) // job.group)
            held = scales[o : o + wide, :, i // job.group : last]
            parts.append(held.contiguous().view(torch.uint8).flatten())
    return torch.cat(parts)


def constant_bytes(
    job: Job, args: Mapping[str, Any], scale: torch.Tensor, zero: torch.Tensor | None
) -> torch.Tensor:
    """The table, the fp32 constants of the epilogue and the int32 zeros: uint8."""
    parts: list[torch.Tensor] = []
    if job.entries:
        table = args["table"].contiguous().view(torch.uint8)
        parts.append(F.pad(table, (0, TABLE - table.numel())))
    words = [_interleaved(args["channel_scale"], job).float()]
    if job.bias:
        words.append(_interleaved(args["bias"], job).float())
    words.append(scale)
    if zero is not None:
        words.append(zero.to(torch.int32))
    if job.shift:
        words.append(args["shift"].flatten().float())
    return torch.cat(parts + [t.contiguous().view(torch.uint8).flatten() for t in words])


def tensors(program: Program, op: str, args: Mapping[str, Any], weight: torch.Tensor) -> Any:
    """Every tensor of a program in far memory, by name, as bytes.

    ``weight`` is :func:`weight_bytes`, which does not change from call to call.
    """
    job = program.job
    codes, scale, zero = quantised(op, args)
    extra = job.layer.depth - codes.shape[-1]
    if zero is None:
        codes = F.pad(codes, (0, extra))
    elif extra:  # nothing but the zero is nothing to the product
        codes = torch.cat([codes, zero.view(-1, 1, 1, 1).expand(*codes.shape[:-1], extra)], -1)
    found = {
        "input": codes,
        "weight": weight,
        "constants": constant_bytes(job, args, scale, zero),
    }
    if job.residual:
        kind = torch.bfloat16 if job.half else torch.float32
        found["residual"] = args["residual"].to(kind)
    return {name: value.contiguous().flatten().view(torch.uint8) for name, value in found.items()}


def result(program: Program, data: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The output from its bytes."""
    job = program.job
    kind = torch.bfloat16 if job.half else torch.float32
    size = job.layer.output_elements * job.result_bytes
    return data[:size].clone().view(kind).view(shape)


def renamed(job: Job, name: str) -> Job:
    """The same job of a layer by another name."""
    return dataclasses.replace(job, layer=dataclasses.replace(job.layer, name=name))
