"""GPU kernels of ``zoomc::conv2d``: implicit matrix products over channels-last maps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..integer import GROUP, LONGEST
from ..triton.gpu import Gpu
from ..triton.kernel import Call, Kernel, Operand, Slot, TensorSpec, Unsupported, lowers
from ..triton.maps import Passes
from ..triton.product import Left, Map, check, integer, pass_seconds, products
from ..triton.weights import Order, padded


@lowers("zoomc::conv2d")
def conv2d(call: Call, gpu: Gpu) -> Iterator[Kernel]:
    """A product over pixels, normalised before it or in its load.

    Raises:
        Unsupported: groups; negative padding; dtypes other than fp32, fp16, bf16, or mixed;
            empty tensors.
    """
    specs: list[TensorSpec] = [v.spec for v in call["inputs"]]
    for spec in specs:
        check(call, spec)
    if len({spec.dtype for spec in specs}) > 1:
        raise Unsupported("inputs of different dtypes")
    if call["groups"] > 1:
        raise Unsupported("a grouped convolution")
    if min(call["padding"]) < 0:
        raise Unsupported("negative padding")
    coded, quantised = call["channel_scale"] is not None, integer(call)
    channels = tuple(spec.shape[3] for spec in specs)
    taps = math.prod(call["weight"].spec.shape[2:])
    total = sum(channels)
    if quantised and total * taps > LONGEST:
        raise Unsupported(f"sums of {total * taps} integer products, which int32 may not hold")
    aligned = all(c * specs[0].dtype.itemsize % 16 == 0 for c in channels)
    plain = not call["norm_groups"] and call["pre_activation"] == "none"
    # Of coded weights a group's channels are one input's.
    apart = not coded or all(c % GROUP == 0 for c in channels[:-1])
    loadable = not quantised and len(specs) <= 2 and apart
    if quantised or not plain or not aligned or not loadable:
        depth = padded(total, coded)
        order = Order((total,), (depth,), taps, gated=False)
        yield from products(call, _name(call), gpu, _prepared(call, gpu, depth), order)
    if loadable and (aligned or not plain):
        order = Order(channels, tuple(padded(c, coded) for c in channels), taps, gated=False)
        yield from products(call, _name(call), gpu, _loaded(call, gpu), order)


def _border(call: Call) -> tuple[int, int, int, int]:
    """Pixels that hold the padding of a quantised map: before upsampling, so one stands for two."""
    scale = 2 if call["upsample"] else 1
    top, bottom, left, right = (-(-side // scale) for side in call["padding"])
    return top, bottom, left, right


def _geometry(call: Call, border: tuple[int, int, int, int] | None = None) -> Map:
    _, height, width, _ = call["inputs"][0].spec.shape
    scale = 2 if call["upsample"] else 1
    top, bottom, left, right = border or (0, 0, 0, 0)
    return Map(
        (height + top + bottom) * scale,
        (width + left + right) * scale,
        call.out.shape[1],
        call.out.shape[2],
        call["weight"].spec.shape[3],
        tuple(call["stride"]),
        tuple(call["dilation"]),
        call["padding"][0] - top * scale,
        call["padding"][2] - left * scale,
        call["upsample"],
        border is not None,
    )


def _passes(call: Call) -> tuple[Passes, dict[str, Operand]]:
    """The inputs' slots and operands, and the statistics where they are needed."""
    operands = {f"input{i}": Operand((v,)) for i, v in enumerate(call["inputs"])}
    passes = Passes(list(operands), [o.spec for o in operands.values()])
    quantised = integer(call)
    if call["norm_groups"]:
        for name in ("norm_weight", "norm_bias"):
            if call[name] is not None:
                operands[name] = Operand((call[name],))
    if call["norm_groups"] or quantised:
        passes.statistics(
            call,
            call["norm_groups"],
            Slot("norm_weight") if "norm_weight" in operands else None,
            Slot("norm_bias") if "norm_bias" in operands else None,
            call["norm_eps"],
            extremes=quantised,
        )
    if quantised and call["bounds"] is not None:
        passes.operands["bounds"] = Operand((call["bounds"],))
    return passes, operands | passes.operands


def _rows(call: Call) -> int:
    return math.prod(call.out.shape[:3])


def _prepared(call: Call, gpu: Gpu, depth: int) -> Left:
    """One map that launches of their own write: concatenated, normalised, padded, quantised.

    A quantised one has the border that padding is: its zero is not 0, which loads outside give.
    """
    passes, operands = _passes(call)
    coded = integer(call)
    dtype = torch.int8 if coded else passes.specs[0].dtype
    border = _border(call) if coded else None
    pixels = passes.write("map", dtype, depth, call["pre_activation"], border or (0, 0, 0, 0))
    passes.scratch["map"] = TensorSpec((passes.images, pixels, depth), dtype)
    nbytes = passes.scratch["map"].nbytes
    passed = passes.passed + 2 * nbytes
    return Left(
        ("map",),
        (depth,),
        dtype,
        _rows(call),
        map=_geometry(call, border),
        launches=tuple(passes.launches),
        operands=operands,
        scratch=passes.scratch,
        measured=passes.measured if "extremes" in passes.scratch or call["norm_groups"] else (),
        passed=passed,
        seconds=pass_seconds(passes.nbytes + passed - nbytes, gpu, len(passes.launches)),
        route="prepared",
    )


def _loaded(call: Call, gpu: Gpu) -> Left:
    """The inputs as they are, normalised and activated as the product loads them."""
    passes, operands = _passes(call)
    return Left(
        tuple(passes.inputs),
        tuple(passes.channels),
        passes.specs[0].dtype,
        _rows(call),
        map=_geometry(call),
        norm="map" if call["norm_groups"] else "",
        pre=call["pre_activation"],
        launches=tuple(passes.launches),
        operands=operands,
        scratch=passes.scratch,
        measured=passes.measured if call["norm_groups"] else (),
        passed=passes.passed,
        seconds=pass_seconds(passes.passed, gpu, len(passes.launches)) if passes.launches else 0.0,
        route="normalised in the load" if call["norm_groups"] else "as it is",
    )


def _name(call: Call) -> str:
    """The operator and what it absorbed."""
    parts = ["conv2d", "x".join(map(str, call["weight"].spec.shape[2:]))]
    parts += ["concat"] if len(call["inputs"]) > 1 else []
    parts += ["norm"] if call["norm_groups"] else []
    parts += [call["pre_activation"]] if call["pre_activation"] != "none" else []
    parts += ["upsample"] if call["upsample"] else []
    parts += ["shift"] if call["shift"] is not None else []
    parts += ["residual"] if call["residual"] is not None else []
    return "_".join(parts)
