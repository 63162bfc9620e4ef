"""GPU kernels of ``zoomc::group_norm`` and ``zoomc::layer_norm``."""

from __future__ import annotations

from collections.abc import Iterator

from ..triton.device import rows as device
from ..triton.gpu import Gpu
from ..triton.kernel import Call, Kernel, Launch, Operand, Slot, TensorSpec, Unsupported, lowers
from ..triton.maps import CHANNELS, Passes, peaks_gathered, power
from ..triton.product import FLOATS, pass_seconds

#: The longest row a program holds in registers.
LONGEST_ROW = 1 << 14


def _operands(call: Call) -> dict[str, Operand]:
    x: TensorSpec = call["x"].spec
    if x.dtype not in FLOATS:
        raise Unsupported(f"a norm of {x.dtype}")
    if 0 in x.shape:
        raise Unsupported("a tensor without elements")
    names = ("x", "weight", "bias")
    return {name: Operand((call[name],)) for name in names if call[name] is not None}


@lowers("zoomc::group_norm")
def group_norm(call: Call, gpu: Gpu) -> Iterator[Kernel]:
    """Statistics in two launches, then one that applies them.

    Raises:
        Unsupported: dtypes other than fp32, fp16, bf16; an empty tensor.
    """
    operands = _operands(call)
    spec = operands["x"].spec
    passes = Passes(["x"], [spec])
    passes.statistics(
        call,
        call["groups"],
        Slot("weight") if "weight" in operands else None,
        Slot("bias") if "bias" in operands else None,
        call["eps"],
        extremes=False,
    )
    extras = peaks_gathered(call, CHANNELS)
    passes.write("out", call.out.dtype, spec.shape[-1], call["activation"], peaks="peaks" in extras)
    name = "group_norm" + ("" if call["activation"] == "none" else "_" + call["activation"])
    yield Kernel(
        name,
        operands | passes.operands,
        call.out,
        tuple(passes.launches),
        passes.scratch,
        extras=extras,
        measured=passes.measured,
        passed=passes.passed,
        flops=6 * spec.numel,
        seconds=pass_seconds(2 * spec.nbytes + passes.passed, gpu, len(passes.launches)),
    )


@lowers("zoomc::layer_norm")
def layer_norm(call: Call, gpu: Gpu) -> Iterator[Kernel]:
    """A few rows a program, held in registers.

    Raises:
        Unsupported: dtypes other than fp32, fp16, bf16; an empty tensor; rows too long.
    """
    operands = _operands(call)
    spec = operands["x"].spec
    k = spec.shape[-1]
    if k > LONGEST_ROW:
        raise Unsupported(f"rows of {k} elements, which no program can hold")
    count, width = spec.numel // k, power(max(k, 16))
    rows = max(1, min(16, 4096 // width))
    launch = Launch(
        device.prepare_rows,
        (-(-count // rows), 1, 1),
        {
            "x": Slot("x"),
            "gain": Slot("weight") if "weight" in operands else None,
            "offset": Slot("bias") if "bias" in operands else None,
            "bounds": None,
            "out": Slot("out"),
            "scale": None,
            "M": count,
            "K": k,
            "pitch": k,
            "eps": float(call["eps"]),
            "NORM": True,
            "PRE": "none",
            "INTEGER": False,
            "BM": rows,
            "BK": width,
        },
        warps=4 if rows * width <= 8192 else 8,
    )
    seconds = pass_seconds(2 * spec.nbytes, gpu)
    yield Kernel("layer_norm", operands, call.out, (launch,), flops=6 * spec.numel, seconds=seconds)
