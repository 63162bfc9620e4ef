"""Kernels cross-compiled for 64-bit Arm and run on an emulated processor."""

from __future__ import annotations

import re

import pytest
import torch
import zoomc.kernels.attention.op
import zoomc.kernels.conv2d.op
import zoomc.kernels.linear.op
import zoomc.kernels.norm.op  # noqa: F401
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.tir.isa import isa, supported
from zoomc.kernels.tir.kernel import lower
from zoomc.kernels.tir.processor import Processor
from zoomc.kernels.tir.run import bind, overload

from ..coded import block_pruned, coded, exact, exact_maps
from ..products import wide

pytest.importorskip("unicorn", reason="kernels for Arm run on its emulated processor")

from . import emulator

PATHS = emulator.paths()
LINEAR, CONV = "zoomc::linear", "zoomc::conv2d"
SAME = [1, 1, 1, 1]


def check_exact(path, op, *args, **kwargs):
    """Every sum must be the reference's; channel scales are 1, so results are the sums."""
    kwargs["channel_scale"] = torch.ones_like(kwargs["channel_scale"])
    result = emulator.run(PATHS[path], op, *args, **kwargs)
    expected = OPERATORS[op].reference(*args, **kwargs)
    assert expected.abs().max() > 1000
    assert torch.equal(result, expected), f"{path}: {(result != expected).sum()} sums differ"
    return result


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("rows", "k", "n", "bits"),
    [((5,), 100, 7, 0), ((2, 9), 130, 33, 4), ((1,), 63, 40, 4), ((33,), 65, 1, 2)],
)
def test_linear_sums_are_exact(path, rows, k, n, bits):
    weight, extra = coded((n, k), bits)
    check_exact(path, LINEAR, exact((*rows, k), torch.float32), weight, **extra)


@pytest.mark.parametrize("path", PATHS)
def test_steps_left_out_change_no_sum(path):
    weight, extra = block_pruned((40, 200), 4, 50)
    assert extra["kept_steps"] == 2
    check_exact(path, LINEAR, exact((9, 200), torch.float32), weight, **extra)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("size", "channels", "out", "kernel", "bits", "geometry"),
    [
        ((3, 4, 5), (70, 9), 7, (3, 3), 4, {"padding": SAME}),
        ((1, 7, 9), (65,), 9, (3, 3), 0, {"padding": SAME, "stride": [2, 2]}),
        ((2, 3, 3), (33,), 9, (1, 1), 4, {}),
    ],
)
def test_convolution_sums_are_exact(path, size, channels, out, kernel, bits, geometry):
    inputs = [exact_maps((*size, c), torch.float32, seed) for seed, c in enumerate(channels)]
    weight, extra = coded((out, sum(channels), *kernel), bits)
    check_exact(path, CONV, inputs, weight, **geometry, **extra)


@pytest.mark.parametrize("path", PATHS)
def test_sums_are_exact_at_the_corners(path):
    k = 1300
    x = torch.full((4, k), 127.0)
    x[1], x[2, 1:], x[3, ::2] = -127, 0, -127
    weight = torch.full((5, k), 127, dtype=torch.int8)
    weight[1], weight[2], weight[3, ::2] = -127, 0, -127
    result = check_exact(path, LINEAR, x, weight, channel_scale=torch.ones(5))
    assert result.abs().max() == 127 * 127 * k
    codes = torch.zeros(5, k, dtype=torch.uint8)
    codes[0], codes[2, ::2] = 15, 15
    group_scale = torch.full((5, -(-k // 64)), 15, dtype=torch.int8)
    extra = {"table": torch.arange(-8, 8, dtype=torch.int8), "group_scale": group_scale}
    check_exact(path, LINEAR, x, codes, channel_scale=torch.ones(5), **extra)


@pytest.mark.parametrize(
    ("path", "instruction"),
    [("neon", "smull"), ("neon_dotprod", "sdot"), ("neon_i8mm", "smmla")],
)
def test_the_instructions_of_the_path_are_used(path, instruction):
    weight, extra = coded((8, 64), 4)
    kernel = lower(bind(LINEAR, torch.randn(8, 64), weight, **extra), PATHS[path])
    module = emulator.compiled(kernel, PATHS[path])
    assembly = module.inspect_source("asm")
    assert re.search(rf"\b{instruction}\b", assembly) and re.search(r"\btbl\b", assembly)
    _, trapped = emulator.execute(kernel, module, PATHS[path])
    assert trapped.total() == (8 * 8 * 64 // (2 * 2 * 8) if instruction == "smmla" else 0)
    # What the emulator takes for smmla is what LLVM's assembler means by it.
    written = re.findall(r"\bsmmla\s+v(\d+)\.4s, v(\d+)\.16b, v(\d+)\.16b", assembly)
    assert set(trapped) == {tuple(map(int, registers)) for registers in written}


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def test_coded_products_of_activations_computed_first():
    """As near as :func:`..coded.check_close` asks for: few codes differ, each by one."""
    weight, extra = coded((22, 70), 4)
    bf16 = torch.bfloat16
    linear = (LINEAR, (randn(9, 70, dtype=bf16), weight, randn(22, dtype=bf16)))
    geglu = {"norm": True, "pre_activation": "silu", "activation": "geglu"}
    maps, more = coded((9, 70, 3, 3), 4)
    conv = (CONV, ([randn(2, 4, 5, 70)], maps, randn(9)))
    norm = {"padding": SAME, "norm_groups": 7, "pre_activation": "silu", "shift": randn(2, 9)}
    for (op, args), kwargs in ((linear, extra | geglu), (conv, more | norm)):
        kwargs["channel_scale"] *= 1e-3
        result = emulator.run(PATHS["neon_dotprod"], op, *args, **kwargs)
        expected = OPERATORS[op].reference(*args, **kwargs)
        error = (result.double() - expected.double()).norm() / expected.double().norm()
        assert error < 2e-3 + torch.finfo(result.dtype).eps / 2


HEADS = {"heads": 2, "head_dim": 12, "scale": 0.3}
MAPS = {"padding": SAME, "norm_groups": 3, "pre_activation": "silu", "upsample": True}
FLOATS = {
    "linear": (LINEAR, (randn(11, 37), randn(19, 37), randn(19)), {"activation": "gelu"}),
    "one row": (LINEAR, (randn(1, 37), randn(19, 37)), {"norm": True}),
    "matmul": ("zoomc::matmul", (randn(2, 9, 13), randn(2, 13, 11)), {}),
    "convolution": (CONV, ([randn(2, 5, 6, 9)], randn(7, 9, 3, 3), randn(7)), MAPS),
    "groups": (CONV, ([randn(1, 6, 6, 12)], randn(8, 3, 3, 3)), {"groups": 4}),
    "group norm": ("zoomc::group_norm", (randn(2, 5, 7, 21), 7), {"activation": "silu"}),
    "layer norm": ("zoomc::layer_norm", (randn(3, 37), randn(37), randn(37)), {}),
    "attention": ("zoomc::attention", tuple(randn(2, n, 24) for n in (9, 21, 21)), HEADS),
    "pointwise": ("aten::exp", (randn(5, 37),), {}),
}
CASES = [(case, torch.float32) for case in FLOATS]
CASES += [
    (case, dtype) for case in ("linear", "attention") for dtype in (torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_floating_point_kernels(case, dtype):
    """As near fp64 as :func:`..products.check` asks for."""
    op, args, kwargs = FLOATS[case]
    args = [narrowed(x, dtype) for x in args]
    result = emulator.run(PATHS["neon"], op, *args, **kwargs)
    fn = OPERATORS[op].reference if op in OPERATORS else overload(op)
    expected = fn(*map(wide, args), **kwargs)
    assert result.dtype is dtype and result.shape == expected.shape
    limit = max(2e-6, torch.finfo(dtype).eps)
    assert (result.double() - expected).norm() / expected.norm() <= limit
    assert (result.double() - expected).abs().max() / expected.abs().max() <= 8 * limit


def narrowed(x, dtype):
    if isinstance(x, list):
        return [t.to(dtype) for t in x]
    return x.to(dtype) if isinstance(x, torch.Tensor) else x


def cpuinfo(features):
    text = f"processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"
    files = {"/proc/cpuinfo": text}

    def read(path):
        try:
            return files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    return Processor.of(read)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("fp asimd evtstrm aes crc32", "neon"),
        ("fp asimd asimdhp asimddp", "neon_dotprod"),
        ("fp asimd asimddp sve i8mm bf16", "neon_i8mm"),
    ],
)
def test_the_best_path_of_a_processor_is_taken(features, expected):
    cpu = cpuinfo(features)
    assert isa(cpu=cpu).name == expected == supported(cpu.flags)[0]
    assert supported(cpu.flags)[-1] == "portable" and "avx2" not in supported(cpu.flags)
    assert cpu.name == "CPU implementer 0x41, CPU part 0xd4f"
    if expected != "neon_i8mm":
        with pytest.raises(ValueError, match=r"no .*i8mm, which 'neon_i8mm' needs"):
            isa("neon_i8mm", cpu=cpu)
