"""The CPU target: which path it takes, how it cuts graphs, what it says when it cannot."""

from __future__ import annotations

import pytest
import torch
from zoomc.kernels.tir import amx
from zoomc.kernels.tir import isa as paths
from zoomc.targets.tvm.cpu import CpuTarget

from zoomc.errors import UnsupportedCpuError
from zoomc.options import Options
from zoomc.record import collect


def test_the_best_path_of_the_cpu_is_taken_with_its_caches():
    target = CpuTarget(Options(threads=3))
    assert target.isa.name == paths.supported()[0]
    assert target.isa.threads == 3
    assert target.isa.l1 >= 16 << 10 and target.isa.l2 >= 128 << 10


def test_a_path_the_cpu_lacks_is_refused_with_those_it_has(monkeypatch):
    monkeypatch.setattr(paths, "cpu_flags", lambda: frozenset({"avx2", "fma", "f16c"}))
    with pytest.raises(UnsupportedCpuError, match=r"no .*avx512f.*can run: avx2, portable"):
        CpuTarget(Options(isa="avx512"))
    assert CpuTarget(Options()).isa.name == "avx2"


def test_a_cpu_without_any_extension_takes_the_portable_path(monkeypatch):
    monkeypatch.setattr(paths, "cpu_flags", frozenset)
    assert CpuTarget(Options()).isa.name == "portable"


def test_tile_registers_the_system_refuses_are_not_used(monkeypatch):
    flags = frozenset().union(*(path.requires for path in paths.PATHS))
    monkeypatch.setattr(paths, "cpu_flags", lambda: flags)
    monkeypatch.setattr(amx, "enable", lambda: False)
    assert CpuTarget(Options()).isa.name == "avx512_bf16"
    with pytest.raises(UnsupportedCpuError, match="tile registers"):
        CpuTarget(Options(isa="amx"))


def test_eager_nodes_cut_the_graph_no_more_than_they_must():
    def model(x):
        y = (x * 2 + 1).relu()
        ordered = torch.sort(y)[0]  # no kernel
        return ordered * 3 + y, (y - 1) * 2

    x = torch.randn(6, 5)
    with collect() as records:
        actual = torch.compile(model, backend="zoomc")(x)
    torch.testing.assert_close(actual, model(x))
    report = records[0].executable.report
    assert report["segments"] == 2
    assert {f["operator"] for f in report["fallbacks"]} >= {"aten.sort.default"}
