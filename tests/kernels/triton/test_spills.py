"""Spills read from code, and code that need not have them."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import tempfile
from functools import partial

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install zoomc[gpu]")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from zoomc.kernels.triton.gpu import GPUS
from zoomc.kernels.triton.kernel import Kernel, Launch, candidates
from zoomc.kernels.triton.run import compile_for
from zoomc.kernels.triton.spills import MOST, settled, spilled

from .calls import linear

#: Too few registers for a row that is held to be normalised.
FEW = 24


def kernel(gpu: str) -> Kernel:
    return candidates(linear(256, 1280, 128, bits=8, norm=True), GPUS[gpu])[0]


def read_by_the_tool(cubin: bytes) -> int:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", text)))


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90", "sm_100"])
def test_bytes_are_those_that_the_vendors_tool_reads(gpu):
    made = kernel(gpu)
    for registers in (FEW, None):
        launch = dataclasses.replace(made.launches[0], registers=registers)
        compiled = compile_for(GPUS[gpu], launch, made.specs)
        assert spilled(compiled) == read_by_the_tool(compiled.asm["cubin"])
        assert (spilled(compiled) > 0) == (registers == FEW)


def test_what_the_compiler_spills_unforced_it_is_told_not_to():
    """A compiler that chooses few registers where it is free to choose."""
    made = kernel("sm_80")
    compiled = partial(compile_for, GPUS["sm_80"], specs=made.specs)
    asked: list[int | None] = []

    def build(launch: Launch):
        asked.append(launch.registers)
        return compiled(dataclasses.replace(launch, registers=launch.registers or FEW))

    launch, code = settled(made.launches[0], build)
    assert asked == [None, MOST] and launch.registers == MOST and not spilled(code)
    told = dataclasses.replace(launch, registers=FEW)
    assert settled(told, build)[0] is told and asked[2:] == [FEW]
    assert settled(made.launches[0], compiled)[0] is made.launches[0]
