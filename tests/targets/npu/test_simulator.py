"""The NPU's numbers against the operators' references, its bytes against the planner's."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import tvm
import tvm_ffi
import zoomc.kernels.conv2d.op
import zoomc.kernels.linear.op  # noqa: F401
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.tir.kernel import Unsupported
from zoomc.kernels.weights import Encoding, encode
from zoomc.targets.dram import Sram
from zoomc.targets.errors import CapacityError, MachineError
from zoomc.targets.tvm.npu.clock import at_level, count, load_of
from zoomc.targets.tvm.npu.commands import COMMANDS, DmaIn, Frequency, decode
from zoomc.targets.tvm.npu.commands import encode as encode_commands
from zoomc.targets.tvm.npu.host import run, source
from zoomc.targets.tvm.npu.machine import load, presets
from zoomc.targets.tvm.npu.program import generate
from zoomc.targets.tvm.npu.simulator import Simulator
from zoomc.targets.tvm.npu.tensors import Shapes, job_of, result, tensors, weight_bytes

MOBILE = load("mobile")
#: Small enough that every layer below needs many tiles.
TINY = dataclasses.replace(MOBILE, rows=8, columns=8, scratchpad=Sram(12288, 8, 8))


def call(op, machine, *args, **kwargs):
    """Run an operator on the machine beside its reference; check bytes on the way."""
    operator = OPERATORS[op]
    schema = operator.op._schema.arguments
    bound = {a.name: a.default_value for a in schema if a.has_default_value()}
    bound |= dict(zip((a.name for a in schema), args, strict=False)) | kwargs
    expected = operator.reference(*args, **kwargs)
    job = job_of("x", Shapes(op, bound, expected))
    program = generate(job, machine)
    data, counts = run(program, tensors(program, op, bound, weight_bytes(program, bound)))
    assert counts.bytes_in * 8 == sum(program.plan.counts.reads)
    assert counts.bytes_out * 8 == sum(program.plan.counts.writes)
    assert run(program)[1] == counts  # counting alone counts the same
    return result(program, data, expected.shape), expected, program, counts


def coded(shape, encoding="int4"):
    return encode(torch.randn(shape), Encoding.parse(encoding))


def conv_args(c, out, kernel, size=(9, 8), batch=2, encoding="int4", dtype=torch.float32):
    x = torch.randn(batch, *size, c).to(dtype)
    w = coded((out, c, kernel, kernel), encoding)
    extra = {
        "table": w.table,
        "group_scale": w.group_scale,
        "channel_scale": w.channel_scale,
    }
    return ([x], w.codes, torch.randn(out).to(dtype)), extra


@pytest.fixture(autouse=True)
def seed():
    """One thread: tiles are small, and spinning workers would only get in the way."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("machine", [TINY, MOBILE], ids=["tiny", "mobile"])
@pytest.mark.parametrize("encoding", ["int4", "int8", "shared:256"])
def test_convolutions_equal_the_reference_bit_for_bit(machine, encoding):
    args, kwargs = conv_args(72, 20, 3, encoding=encoding)
    kwargs |= {"padding": [1, 1, 1, 1], "shift": torch.randn(2, 20)}
    kwargs["residual"] = torch.randn(2, 9, 8, 20)
    actual, expected, program, _ = call("zoomc::conv2d", machine, *args, **kwargs)
    assert torch.equal(actual, expected)
    assert (len(program.commands) > 10) == (machine is TINY)


@pytest.mark.parametrize(
    ("c", "out", "kernel", "kwargs"),
    [
        (9, 5, 3, {"padding": [1, 1, 1, 1]}),  # an odd number of channels
        (1, 1, 1, {}),
        (64, 130, 1, {}),
        (200, 8, 3, {"stride": [2, 2], "padding": [0, 1, 0, 1]}),
        (16, 8, 5, {"stride": [2, 1], "padding": [2, 2, 2, 2]}),
        (16, 8, 3, {"upsample": True, "padding": [1, 1, 1, 1]}),
        (32, 8, 3, {"norm_groups": 4, "pre_activation": "silu", "padding": [1, 1, 1, 1]}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_of_convolutions(c, out, kernel, kwargs, dtype):
    args, extra = conv_args(c, out, kernel, dtype=dtype)
    if "norm_groups" in kwargs:
        kwargs = kwargs | {"norm_weight": torch.randn(c).to(dtype)}
        kwargs["norm_bias"] = torch.randn(c).to(dtype)
    actual, expected, *_ = call("zoomc::conv2d", TINY, *args, **kwargs, **extra)
    assert actual.dtype is dtype
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("rows", "k", "columns", "kwargs"),
    [
        (1, 64, 24, {}),
        (77, 130, 50, {"residual": True}),
        (300, 64, 16, {"norm": True}),
        (5, 7, 3, {}),
    ],
)
@pytest.mark.parametrize("encoding", ["int4", "int8"])
def test_linears_equal_the_reference_bit_for_bit(rows, k, columns, kwargs, encoding):
    w = coded((columns, k), encoding)
    kwargs = dict(kwargs)
    if kwargs.pop("residual", False):
        kwargs["residual"] = torch.randn(rows, columns)
    kwargs |= {"table": w.table, "group_scale": w.group_scale, "channel_scale": w.channel_scale}
    x = torch.randn(rows, k)
    actual, expected, *_ = call("zoomc::linear", TINY, x, w.codes, None, **kwargs)
    assert torch.equal(actual, expected)


def test_geglu_pairs_its_channels_in_every_tile():
    w = coded((96, 64))
    kwargs = {"table": w.table, "group_scale": w.group_scale, "channel_scale": w.channel_scale}
    actual, expected, program, _ = call(
        "zoomc::linear",
        TINY,
        torch.randn(2, 40, 64),
        w.codes,
        torch.randn(96),
        activation="geglu",
        **kwargs,
    )
    # The integers are the same; gelu's last bits depend on the place in a vector register.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
    assert actual.shape == (2, 40, 48)
    assert program.plan.counts.trips[1] > 1


@pytest.mark.parametrize("name", presets())
def test_what_is_not_finite_stays_so(name):
    args, kwargs = conv_args(16, 8, 3)
    args[0][0][1, 2, 3, 4] = float("nan")
    actual, expected, *_ = call("zoomc::conv2d", load(name), *args, **kwargs)
    assert torch.isfinite(actual[0]).all()
    assert not torch.isfinite(actual[1]).any()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_transfers_overlap_with_arithmetic():
    args, kwargs = conv_args(128, 64, 3, size=(24, 24), batch=1)
    *_, counts = call("zoomc::conv2d", TINY, *args, padding=[1] * 4, **kwargs)
    busy = counts.compute_ns + counts.dma_ns
    assert max(counts.compute_ns, counts.dma_ns) <= counts.nanoseconds < 0.95 * busy
    assert counts.macs == 24 * 24 * 9 * 128 * 64
    assert set(counts.energy) == {"dram", "scratchpad", "mac", "static"}
    assert min(counts.energy.values()) > 0
    assert counts.hits > counts.misses > 0


def test_a_slower_clock_takes_longer_and_the_same_bytes():
    args, kwargs = conv_args(64, 64, 3, size=(16, 16), batch=1)
    bound = {a.name: a.default_value for a in OPERATORS["zoomc::conv2d"].op._schema.arguments}
    bound |= {"inputs": args[0], "weight": args[1], "bias": args[2]} | kwargs
    bound |= {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
    job = job_of("x", Shapes("zoomc::conv2d", bound, torch.empty(1)))
    fast, slow = (run(generate(job, MOBILE, level))[1] for level in (4, 0))
    assert slow.bytes == fast.bytes
    assert slow.compute_ns == pytest.approx(5 * fast.compute_ns)
    assert slow.energy["mac"] == fast.energy["mac"]
    assert slow.energy["static"] > fast.energy["static"]


def test_a_layer_that_does_not_fit_is_refused_before_it_runs():
    args, kwargs = conv_args(64, 64, 7, size=(16, 16), batch=1)
    small = dataclasses.replace(TINY, scratchpad=Sram(4096, 8, 8))
    with pytest.raises(CapacityError, match="smallest needs"):
        call("zoomc::conv2d", small, *args, **kwargs)
    less = dataclasses.replace(TINY, scratchpad=Sram(256, 8, 8))
    with pytest.raises(CapacityError, match="constants"):
        call("zoomc::conv2d", less, *args, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"groups": 2}, "grouped"),
        ({"dilation": [2, 2]}, "dilated"),
        ({"stride": [4, 4]}, "stride"),
        ({"padding": [3, 3, 3, 3]}, "padding"),
        ({"channel_scale": None}, "not coded"),
    ],
)
def test_what_the_machine_cannot_do_says_why(kwargs, reason):
    args, extra = conv_args(8, 8, 3)
    bound = {a.name: a.default_value for a in OPERATORS["zoomc::conv2d"].op._schema.arguments}
    bound |= {"inputs": args[0], "weight": args[1], "bias": args[2]} | extra
    bound |= {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1} | kwargs
    with pytest.raises(Unsupported, match=reason):
        job_of("x", Shapes("zoomc::conv2d", bound, torch.empty(1)))


def test_commands_survive_their_encoding():
    args, kwargs = conv_args(72, 20, 3)
    *_, program, _ = call("zoomc::conv2d", TINY, *args, **kwargs)
    rows = encode_commands(program.commands)
    assert tuple(decode(row) for row in rows.tolist()) == program.commands
    kinds = {type(c).__name__ for c in program.commands}
    assert kinds == {"DmaIn", "DmaOut", "Table", "Product", "Epilogue", "Barrier"}


def test_accesses_out_of_bounds_are_refused():
    simulator = Simulator(TINY, 1000)
    with pytest.raises(MachineError, match="scratchpad"):
        simulator.issue(DmaIn(0, 12288 - 4, 8))
    with pytest.raises(MachineError, match="far memory"):
        simulator.issue(DmaIn(996, 0, 8))
    with pytest.raises(MachineError, match="clock levels"):
        simulator.issue(Frequency(5))
    with pytest.raises(MachineError, match="do not fit"):
        Simulator(TINY, 2**50)


def test_the_host_program_is_portable_c_that_a_compiler_takes(tmp_path):
    text = source()
    functions = [kind.function for kind in COMMANDS]
    assert all(f"{name}(" in text for name in functions)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here")
    (tmp_path / "host.c").write_text(text)
    folders = [Path(tvm.__file__).parent / "include", *tvm_ffi.libinfo.include_paths()]
    include = [f"-I{path}" for path in folders]
    subprocess.run(
        [compiler, "-c", "-w", *include, "host.c", "-o", "host.o"], cwd=tmp_path, check=True
    )
    assert (tmp_path / "host.o").stat().st_size > 0


@pytest.mark.parametrize("rows", [3, 60])
def test_the_power_model_meets_the_simulation_at_both_ends_and_never_takes_longer(rows):
    w = coded((96, 128))
    kwargs = {"table": w.table, "group_scale": w.group_scale, "channel_scale": w.channel_scale}
    *_, program, _ = call("zoomc::linear", TINY, torch.randn(rows, 128), w.codes, None, **kwargs)
    load = load_of(program)
    spent = [count(at_level(program, k)).nanoseconds for k in range(len(TINY.mhz))]
    modelled = [load.nanoseconds(mhz) for mhz in TINY.mhz]
    assert modelled[0] == pytest.approx(spent[0]) and modelled[-1] == pytest.approx(spent[-1])
    assert all(m <= s * 1.000001 for m, s in zip(modelled, spent, strict=True))
