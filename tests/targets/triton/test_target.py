"""What the GPU target says where it cannot run, and how it cuts graphs: no GPU needed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed: pip install zoomc[gpu]")

from zoomc.kernels.triton.device.decode import LOOKUP
from zoomc.kernels.triton.gpu import GPUS
from zoomc.kernels.triton.kernel import candidates
from zoomc.kernels.triton.run import bind, compile_for
from zoomc.targets.triton import moments
from zoomc.targets.triton.build import compile_kernels
from zoomc.targets.triton.leftovers import Leftovers
from zoomc.targets.triton.plan import Plan, make_plan, schedule
from zoomc.targets.triton.target import TritonTarget

from zoomc import passes
from zoomc.capture import capture
from zoomc.errors import UnsupportedGpuError
from zoomc.options import Options


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted")
def test_without_a_gpu_it_says_so_before_anything_is_compiled():
    with pytest.raises(UnsupportedGpuError, match=r'needs a GPU.*"target": "cpu"'):
        TritonTarget(Options(target="triton"))
    model = nn.Linear(4, 4).requires_grad_(False)
    compiled = torch.compile(model, backend="zoomc", options={"target": "triton"})
    with pytest.raises(Exception, match="needs a GPU"):
        compiled(torch.randn(1, 4))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = self.first(torch.sort(x.sin())[0]) * t.cos()
        return self.second(y.flatten(1, 2)) + t.exp()


def graph():
    args = [torch.randn(2, 3, 1, 8), torch.randn(1)]
    program = capture(Model(), args, {})
    passes.run(program.graph)
    return program.graph, args


def test_leftovers_form_as_few_groups_as_they_can():
    gm, _ = graph()
    plan = make_plan(gm, GPUS["sm_90"])
    steps = schedule(gm, plan)
    groups = [step for step in steps if isinstance(step, Leftovers)]
    assert len(plan.kernels) == 2 and len(groups) == 3
    nodes = [n for s in steps for n in (s.nodes if isinstance(s, Leftovers) else [s.node])]
    assert len(nodes) == len(set(nodes))


def test_no_map_of_a_unet_is_read_for_its_statistics(monkeypatch):
    """Whoever writes one gathers them: of 21 norms, four over two maps."""
    pytest.importorskip("diffusers")
    from ...models import sd2_unet

    model, args = sd2_unet(2)
    program = capture(model, list(args), {})
    passes.run(program.graph)
    plan = make_plan(program.graph, GPUS["sm_90"])
    launched = [x.function.__name__ for k in plan.kernels.values() for x in k[0].launches]
    assert launched.count("map_affine") == 21 and "map_moments" not in launched
    assert sum(len(plan.extras_read(node)) for node in plan.kernels) == 25
    monkeypatch.setattr(moments, "gather_moments", lambda plan, gpu: None)
    alone = make_plan(program.graph, GPUS["sm_90"])
    moved = [sum(k[0].activation_nbytes for k in p.kernels.values()) for p in (plan, alone)]
    assert moved[0] < moved[1]


def test_a_group_computes_what_its_nodes_do():
    gm, args = graph()
    steps = schedule(gm, make_plan(gm, GPUS["sm_90"]))
    group = next(step for step in steps if isinstance(step, Leftovers))
    values = dict(zip(gm.graph.find_nodes(op="placeholder"), args, strict=True))
    results = dict(zip(group.outputs, group.call(*(values[n] for n in group.inputs)), strict=True))
    expected = {}
    for node in group.nodes:
        ready, keywords = torch.fx.map_arg((node.args, node.kwargs), (values | expected).get)
        expected[node] = node.target(*ready, **keywords)
    for node, result in results.items():
        assert torch.equal(result, expected[node])


class Picks(nn.Module):
    """Reads a picture in channels-last memory, and rows of a table by numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.sort(x, 1)[0] * self.table(index).T[None, :, :, None].sin()


@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor's CPU code needs a C++ compiler")
def test_inductor_takes_what_the_executable_gives_it(monkeypatch):
    """Dense values whatever their strides were when captured; examples that index nothing far."""
    from zoomc.targets.constants import Constants
    from zoomc.targets.triton.executable import GpuExecutable

    model = Picks()
    x = torch.randn(2, 8, 3, 4).to(memory_format=torch.channels_last)
    args = [x, torch.tensor([4, 0, 3])]
    program = capture(model, args, {})
    passes.run(program.graph)
    gpu = GPUS["sm_90"]
    plan = make_plan(program.graph, gpu)
    steps = schedule(program.graph, plan)
    assert not plan.kernels
    inductor, examples = torch._inductor.compile, []

    def noted(module, given, options):
        examples.extend(given)
        return inductor(module, given, options)

    monkeypatch.setattr(torch._inductor, "compile", noted)
    for step in steps:
        if isinstance(step, Leftovers):
            step.compile(inductor=True)
            assert step.how == "by Inductor", step.how
    assert all((x == 0).all() for x in examples if not x.is_floating_point())
    executable = GpuExecutable(
        program.graph, plan, steps, Constants(lambda _: None), gpu, graph=False, interpreted=True
    )
    executable.bind()
    torch.testing.assert_close(program.pick(executable(*args))[0], model(*args))


@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor's CPU code needs a C++ compiler")
def test_inductor_compiles_a_group():
    gm, args = graph()
    steps = schedule(gm, make_plan(gm, GPUS["sm_90"]))
    group = next(step for step in steps if isinstance(step, Leftovers))
    assert "eager" in group.how
    inputs = [dict(zip(gm.graph.find_nodes(op="placeholder"), args))[n] for n in group.inputs]
    expected = group.call(*inputs)
    group.compile(inductor=True)
    assert group.how == "by Inductor"
    for actual, wanted in zip(group.call(*inputs), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def emulate(asm: str, registers: dict[str, int]) -> None:
    """Run the few PTX instructions a lookup is made of."""

    def value(operand: str) -> int:
        return registers[operand] if operand in registers else int(operand, 0)

    for line in re.findall(r"^\s*(\w[\w.]*)\s+([^;]+);", asm, re.MULTILINE):
        name, operands = line[0], [o.strip() for o in line[1].split(",")]
        if name == "and.b32":
            result = value(operands[1]) & value(operands[2])
        elif name == "or.b32":
            result = value(operands[1]) | value(operands[2])
        elif name == "shr.u32":
            result = value(operands[1]) >> value(operands[2])
        elif name == "prmt.b32":
            eight = value(operands[1]) | value(operands[2]) << 32
            picks = [value(operands[3]) >> 4 * i & 15 for i in range(4)]
            assert max(picks) < 8, "a selector's top bit would replicate a sign"
            result = sum((eight >> 8 * pick & 255) << 8 * i for i, pick in enumerate(picks))
        else:
            raise AssertionError(name)
        registers[operands[0]] = result


def test_the_byte_permute_looks_every_code_up():
    table = torch.randint(-128, 128, (16,), generator=torch.Generator().manual_seed(0)).tolist()
    words = [sum((v & 255) << 8 * i for i, v in enumerate(table[j : j + 4])) for j in (0, 4, 8, 12)]
    asm = re.sub(r"\.reg[^;]*;", "", LOOKUP.value)
    for shift in range(16):
        codes = [(3 * i + shift) % 16 for i in range(8)]
        packed = sum(code << 4 * i for i, code in enumerate(codes))
        registers = {"$2": packed, **dict(zip(("$3", "$7", "$11", "$15"), words, strict=True))}
        emulate(asm, registers)
        low, high = ([registers[r] >> 8 * i & 255 for i in range(4)] for r in ("$0", "$1"))
        assert low == [table[c] & 255 for c in codes[::2]]
        assert high == [table[c] & 255 for c in codes[1::2]]


class Driver:
    """Just enough of a GPU's driver for Triton to compile by."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def test_kernels_that_do_not_fit_give_way_to_the_next(monkeypatch):
    from triton.runtime import driver

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    call = bind("zoomc::linear", torch.empty(256, 64).half(), torch.empty(128, 64).half())
    choices = sorted(candidates(call, GPUS["sm_90"])[:4], key=_shared, reverse=True)
    small = dataclasses.replace(GPUS["sm_90"], shared=_shared(choices[-1]))
    assert _shared(choices[0]) > small.shared
    plan = Plan(set(), {object(): list(choices)})
    monkeypatch.setattr(driver, "_active", Driver())
    compile_kernels(plan, small)
    (left,) = plan.kernels.values()
    assert _shared(left[0]) == small.shared and len(left) < len(choices)


def _shared(kernel) -> int:
    """Bytes of shared memory that the compiler gives a kernel."""
    gpu = GPUS["sm_90"]
    return max(compile_for(gpu, x, kernel.specs).metadata.shared for x in kernel.launches)
