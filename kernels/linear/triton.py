"""GPU kernels of ``zoomc::linear``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..triton.device import rows as device
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
from ..triton.product import Left, check, integer, pass_seconds, products
from ..triton.weights import Order, padded

#: The longest row a program holds in registers.
LONGEST_ROW = 1 << 14


@lowers("zoomc::linear")
def linear(call: Call, gpu: Gpu) -> Iterator[Kernel]:
    """One product over the rows of the flattened input, normalised before it or in its load.

    Raises:
        Unsupported: dtypes other than fp32, fp16, bf16, or mixed; empty tensors; rows too long
            to normalise or quantise.
    """
    x: TensorSpec = call["x"].spec
    check(call, x)
    k = x.shape[-1]
    coded, quantised = call["channel_scale"] is not None, integer(call)
    gated = call["activation"] == "geglu"
    depth = padded(k, coded)
    order = Order((k,), (depth,), 1, gated)
    transformed = call["norm"] or call["pre_activation"] != "none"
    unaligned = not _aligned(x)
    fits = depth <= LONGEST_ROW
    if (quantised or call["norm"]) and not fits:
        raise Unsupported(f"rows of {k} elements, which no program can hold")
    name = "_".join(
        [
            "linear",
            *(["norm"] if call["norm"] else []),
            *([call["activation"]] if call["activation"] != "none" else []),
        ]
    )
    if fits and (quantised or transformed or unaligned):
        yield from products(call, name, gpu, prepared(call, gpu, depth), order)
        measured = call.args.get("peaks") is not None and call["bounds"] is None
        if measured and not (transformed or unaligned):
            yield from products(call, name, gpu, quantised_in_load(call), order)
    if not quantised and not (fits and unaligned):
        yield from products(call, name, gpu, loaded(call, gpu), order)


def _aligned(x: TensorSpec) -> bool:
    """Whether every row starts at a multiple of 16 bytes."""
    return x.shape[-1] * x.dtype.itemsize % 16 == 0


def blocks(count: int, k: int) -> tuple[int, int, int]:
    """Programs, rows a program and the width of its registers for rows of length ``k``."""
    width = max(16, 1 << (k - 1).bit_length())
    rows = max(1, min(16, 4096 // width))
    return math.ceil(count / rows), rows, width


def norm_operands(call: Call, gain: str, offset: str) -> dict[str, Operand]:
    """A norm's gain and offset, where there are, under those names."""
    pairs = ((gain, call["norm_weight"]), (offset, call["norm_bias"]))
    return {name: Operand((value,)) for name, value in pairs if value is not None}


def slot(operands: dict[str, Operand], name: str) -> Slot | None:
    """An operand's slot, None without it."""
    return Slot(name) if name in operands else None


def prepared(call: Call, gpu: Gpu, depth: int) -> Left:
    """Rows that a launch of their own normalises, activates, pads and quantises.

    Given scales ask of a row whether it is finite, for which all of it must be read, too.
    """
    x: TensorSpec = call["x"].spec
    k = x.shape[-1]
    count = x.numel // k
    quantised = integer(call)
    fixed = quantised and call["bounds"] is not None
    plain = not call["norm"] and call["pre_activation"] == "none" and _aligned(x) and not fixed
    operands = {"x": Operand((call["x"],))}
    if call["norm"]:
        operands |= norm_operands(call, "norm_weight", "norm_bias")
    if fixed:
        operands["bounds"] = Operand((call["bounds"],))
    dtype = torch.int8 if quantised else x.dtype
    scratch = {"a": TensorSpec((count, depth), dtype)}
    if quantised:
        scratch["row_scale"] = TensorSpec((count,), torch.float32)
    programs, rows, width = blocks(count, max(k, depth))
    launch = Launch(
        device.prepare_rows,
        (programs, 1, 1),
        {
            "x": Slot("x"),
            "gain": slot(operands, "norm_weight"),
            "offset": slot(operands, "norm_bias"),
            "bounds": slot(operands, "bounds"),
            "out": Slot("a"),
            "scale": Slot("row_scale") if quantised else None,
            "M": count,
            "K": k,
            "pitch": depth,
            "eps": float(call["norm_eps"]),
            "NORM": bool(call["norm"]),
            "PRE": call["pre_activation"],
            "INTEGER": quantised,
            "BM": rows,
            "BK": width,
        },
        warps=4 if rows * width <= 8192 else 8,
    )
    return Left(
        ("a",),
        (depth,),
        dtype,
        count,
        launches=(launch,),
        operands=operands,
        scratch=scratch,
        scaled="x" if quantised and plain else "",
        passed=2 * scratch["a"].nbytes,
        seconds=pass_seconds(x.nbytes + scratch["a"].nbytes, gpu),
        route="prepared",
    )


def quantised_in_load(call: Call) -> Left:
    """Rows as they are, quantised as the product loads them by what their producer gathered."""
    x: TensorSpec = call["x"].spec
    return Left(
        ("x",),
        (x.shape[-1],),
        x.dtype,
        x.numel // x.shape[-1],
        norm="codes",
        operands={"x": Operand((call["x"],)), "read_peaks": Operand((call["peaks"],))},
        route="quantised in the load",
    )


def loaded(call: Call, gpu: Gpu) -> Left:
    """Rows as they are, normalised and activated as the product loads them."""
    x: TensorSpec = call["x"].spec
    k = x.shape[-1]
    count = x.numel // k
    operands = {"x": Operand((call["x"],))}
    if not call["norm"]:
        pre = call["pre_activation"]
        return Left(("x",), (k,), x.dtype, count, pre=pre, operands=operands)
    operands |= norm_operands(call, "gain", "offset")
    moments = TensorSpec((count,), torch.float32)
    programs, rows, width = blocks(count, k)
    launch = Launch(
        device.row_moments,
        (programs, 1, 1),
        {
            "x": Slot("x"),
            "mean": Slot("mean"),
            "deviation": Slot("deviation"),
            "M": count,
            "K": k,
            "eps": float(call["norm_eps"]),
            "BM": rows,
            "BK": width,
        },
        warps=4 if rows * width <= 8192 else 8,
    )
    return Left(
        ("x",),
        (k,),
        x.dtype,
        count,
        norm="rows",
        pre=call["pre_activation"],
        launches=(launch,),
        operands=operands,
        scratch={"mean": moments, "deviation": moments},
        passed=x.nbytes,
        seconds=pass_seconds(x.nbytes, gpu),
        route="normalised in the load",
    )
