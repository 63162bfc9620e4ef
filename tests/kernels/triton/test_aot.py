"""Kernels compiled ahead of time for GPUs that need not be there, and what came of it read."""

from __future__ import annotations

import dataclasses
import os
import re
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install zoomc[gpu]")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from zoomc.kernels.triton.gpu import GPUS, Gpu
from zoomc.kernels.triton.kernel import (
    Kernel,
    TensorSpec,
    Value,
    candidates,
    gathering,
    gathering_peaks,
    given,
    given_peaks,
    weight_only,
)
from zoomc.kernels.triton.run import bind, compile_for, symbol
from zoomc.kernels.triton.spills import settled, spilled
from zoomc.targets.triton.plan import KEPT

from .calls import attention, conv, linear, tensor, unet

#: What multiplies on the tensor cores, by architecture and operand.
MULTIPLIES = {
    ("sm_80", "fp16"): r"mma\.sync\S*\.f32\.f16\.f16\.f32",
    ("sm_80", "int8"): r"mma\.sync\S*\.s32\.s8\.s8\.s32",
    ("sm_90", "fp16"): r"wgmma\.mma_async\S*\.f32\.f16\.f16",
    ("sm_90", "int8"): r"wgmma\.mma_async\S*\.s32\.s8\.s8",
    ("sm_100", "fp16"): r"tcgen05\.mma\S*kind::f16",
    ("sm_100", "int8"): r"tcgen05\.mma\S*kind::i8",
    ("gfx942", "fp16"): r"v_mfma_f32_\w*f16",
    ("gfx942", "int8"): r"v_mfma_i32_\w*i8",
    ("sm_80", "bf16"): r"mma\.sync\S*\.f32\.bf16\.bf16\.f32",
    ("sm_90", "bf16"): r"wgmma\.mma_async\S*\.f32\.bf16\.bf16",
}


def operands(ttgir: str) -> list[tuple[str, str]]:
    """Name and type of the left operand of each product, wherever it lies."""
    pattern = r"(?:tt\.dot|warp_group_dot|tc_gen5_mma) %(\w+),.*? : \S*<(?:\d+x)+(\w+),"
    return re.findall(pattern, ttgir)


def check(gpu: Gpu, kernel: Kernel, seen: set[str]) -> None:
    """Compile what was not yet compiled and read it; a failure's first line says what is wrong."""
    for launch in kernel.launches:
        name = symbol(launch, kernel.specs)
        if name in seen:
            continue
        seen.add(name)
        what = f"{gpu.name} {kernel.name} {name} {dict(kernel.notes)}"
        try:
            build = partial(compile_for, gpu, specs=kernel.specs)
            launch, compiled = settled(launch, build)
        except Exception as error:
            raise AssertionError(f"does not compile: {what}\n{error}") from error
        shared, lost = compiled.metadata.shared, spilled(compiled)
        assert shared <= gpu.shared, f"{shared} bytes of shared memory: {what}"
        assert lost == 0, f"spills {lost}: {what}"
        function = launch.function.fn.__name__
        text = compiled.asm["ptx" if gpu.kind == "cuda" else "amdgcn"]
        if function in ("product", "attention"):
            kind = "int8" if launch.arguments.get("INTEGER") else "fp16"
            kind = "bf16" if launch.arguments.get("ROUND") else kind
            assert re.search(MULTIPLIES[gpu.name, kind], text), f"no product of {kind}: {what}"
        if function == "integer_attention":
            lefts = operands(compiled.asm["ttgir"])
            assert {kind for _, kind in lefts} == {"i8"}, f"products of {lefts}: {what}"
            both = {name.startswith("y") for name, _ in lefts} == {True, False}
            assert both, f"products of {lefts}: {what}"
            assert re.search(MULTIPLIES[gpu.name, "int8"], text), f"no product of int8: {what}"
            floats = re.search(MULTIPLIES[gpu.name, "fp16"], text)
            assert not floats, f"a product of fp16: {what}"
        if launch.arguments.get("PERMUTE") and launch.arguments.get("CODES", True):
            assert "prmt.b32" in compiled.asm["ptx"], f"no byte permute: {what}"


def moments(blocks: int, channels: int) -> Value:
    """Moments that another kernel gathered."""
    return Value(TensorSpec((4, blocks, channels), torch.float32))


def few() -> list[tuple[str, Any]]:
    """Calls that between them take every route through the kernels.

    Of the convolutions' inputs one is measured as it is read, and their results are as written; so
    are the magnitudes of rows.
    """
    plain = {"norm_groups": 32, "pre_activation": "silu", "residual": True}
    one = given(conv(64, (320,), 320, **plain), [moments(64, 320)])
    first = {"norm_groups": 32, "pre_activation": "silu", "shift": True}
    fixed = {"bounds": tensor(2, dtype=torch.float32)}
    two = conv(16, (1280, 640), 1280, bits=4, **first, **fixed)
    second = linear(2048, 2560, 640, bits=8, residual=True)
    peaks = Value(TensorSpec((2048, 40), torch.float32))
    gate = linear(512, 1280, 10240, bits=4, norm=True, activation="geglu", **fixed)
    norm = bind("zoomc::group_norm", tensor(2, 1024, 640), 32, tensor(640), tensor(640))
    return [
        ("convolution", gathering(one, 4096)),
        ("coded convolution", gathering(given(two, [moments(8, 1280), None]), 256)),
        ("int8 linear", given_peaks(second, peaks)),
        ("coded geglu", gathering_peaks(gate)),
        ("group norm", gathering_peaks(norm)),
        ("linear of floats and codes", linear(512, 1280, 1280, bits=4, weight_only=True)),
        ("attention", attention(4096, 77, 5)),
        ("int8 attention", gathering_peaks(attention(4096, 4096, 5, arithmetic="int8"))),
    ]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("name", "call"), few(), ids=lambda x: x if isinstance(x, str) else "")
def test_the_best_of_each_route(gpu, name, call):
    seen: set[str] = set()
    routes: dict[Any, Kernel] = {}
    for kernel in candidates(call, GPUS[gpu]):
        routes.setdefault((kernel.notes.get("route"), kernel.notes.get("weights")), kernel)
    for kernel in routes.values():
        check(GPUS[gpu], kernel, seen)
        assert kernel.extras or not call.args.get("gather")
    assert seen


def planned(call: Any) -> Any:
    """A call as its neighbours in the UNet have it: it gathers what they need, and they did."""
    rows = call.out.numel // call.out.shape[-1]
    if call.op == "zoomc::conv2d":
        if call["norm_groups"]:
            inputs = [value.spec for value in call["inputs"]]
            values = [moments(x.numel // x.shape[-1] // 64, x.shape[-1]) for x in inputs]
            call = given(call, values)
        return gathering(call, rows // 2)
    if call.op == "zoomc::linear" and call["channel_scale"] is not None:
        peaks = TensorSpec((rows, call["x"].spec.shape[-1] // 64), torch.float32)
        return gathering_peaks(given_peaks(call, Value(peaks)))
    return call


def kept(call: Any, gpu: Gpu) -> list[Kernel]:
    """What a compilation may come to run of a call: with integers, and with floats where chosen."""
    call = planned(call)
    found = candidates(call, gpu)[:KEPT]
    if call.args.get("channel_scale") is not None and weight_only(call, gpu):
        floats = dataclasses.replace(call, args={**call.args, "weight_only": True})
        found += candidates(floats, gpu)[:KEPT]
    if call.op == "zoomc::attention":  # whose result a product of integers may read
        found += candidates(gathering_peaks(call), gpu)[:KEPT]
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SLOW"), reason="minutes: set SLOW=1")
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("gpu", GPUS)
def test_every_tile_on_the_unet(gpu, bits):
    """Compiled code is kept in Triton's cache, so that a run cut off goes on where it was."""
    seen: set[str] = set()
    wrong = []
    for call in unet(bits).values():
        for kernel in kept(call, GPUS[gpu]):
            try:
                check(GPUS[gpu], kernel, seen)
            except AssertionError as error:
                wrong.append(str(error).splitlines()[0])
    assert not wrong, "\n".join(wrong)
    assert len(seen) > 50


@pytest.mark.parametrize("dim", [32, 40, 80, 128, 160])
def test_attention_of_other_heads(dim):
    check(GPUS["sm_90"], candidates(attention(1024, 1024, 8, dim), GPUS["sm_90"])[0], set())


@pytest.mark.parametrize(("gpu", "dim"), [("sm_80", 160), ("sm_100", 160)])
def test_integer_attention_of_other_heads(gpu, dim):
    call = attention(1024, 77, 8, dim, "int8")
    check(GPUS[gpu], candidates(call, GPUS[gpu])[0], set())


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
def test_fp32_rounded_to_bf16(gpu):
    call = attention(1024, 1024, 8, arithmetic="bf16", dtype=torch.float32)
    check(GPUS[gpu], candidates(call, GPUS[gpu])[0], set())
