"""Time stamps between a kernel's stages."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import zoomc.kernels.linear.op  # noqa: F401
from zoomc.kernels.tir.isa import PATHS, isa
from zoomc.kernels.tir.kernel import TensorSpec, Value, lower
from zoomc.kernels.tir.run import bind, load
from zoomc.kernels.tir.stages import Stages, parts

X = Value(TensorSpec((2, 3), torch.float32))


def test_parts_add_up():
    assert parts(("norm", "product"), [100, 130, 200]) == {"norm": 0.3, "product": 0.7}
    assert parts(("product",), [5, 5]) == {"product": 0.0}
    with pytest.raises(ValueError, match="zip"):
        parts(("norm", "product"), [1, 2])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_only_where_a_program_may_read_the_counter(path):
    stages = Stages.of(path, [X], "norm", "quantise")
    x86 = path.name.startswith(("amx", "avx"))
    assert stages.reads == ({"norm": 24, "quantise": 24, "product": 0} if x86 else {})
    spec = {"stamps": TensorSpec((4,), torch.int64)} if x86 else {}
    assert stages.scratch() == spec


def test_a_product_alone_reads_its_input_itself():
    eight = dataclasses.replace(isa("portable"), lanes=8)
    assert Stages.of(eight, [X, X]).reads == {"product": 48}


def test_a_loaded_kernel_tells_its_last_call():
    machine = isa(threads=1)
    x, weight = torch.randn(40, 64), torch.randn(32, 64)
    loaded = load(lower(bind("zoomc::linear", x, weight, norm=True), machine), machine)
    loaded()
    found = loaded.stages()
    assert list(found) == (["norm", "product"] if machine.lanes >= 8 else [])
    assert sum(found.values()) == pytest.approx(1.0 if found else 0.0)
