"""Energy counters: stand-ins for RAPL's files and NVML's library; few machines show theirs."""

from __future__ import annotations

import ctypes
import itertools
from types import SimpleNamespace

import pytest
import torch
from zoomc.targets.counters import Nvml, Rapl, counter, measure
from zoomc.targets.errors import CounterError, PowerLimitError


def zone(root, number, name, microjoules, limit=1000):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir()
    for file, value in (
        ("name", name),
        ("energy_uj", microjoules),
        ("max_energy_range_uj", limit),
    ):
        (folder / file).write_text(f"{value}\n")
    return folder / "energy_uj"


def test_rapl_adds_packages_and_memory_and_notices_a_counter_that_starts_over(tmp_path):
    package = zone(tmp_path, "0", "package-0", 900)
    memory = zone(tmp_path, "0:1", "dram", 5)
    core = zone(tmp_path, "0:0", "core", 7)
    whole = zone(tmp_path, "1", "psys", 0)
    rapl = Rapl(tmp_path)
    assert rapl.joules() == 0
    package.write_text("990")
    memory.write_text("25")
    core.write_text("500")  # a part of its package
    whole.write_text("800")
    assert rapl.joules() == pytest.approx(110e-6)
    package.write_text("9")  # 1000 is the highest
    assert rapl.joules() == pytest.approx((110 + 20) * 1e-6)


def test_a_machine_without_rapl_says_so(tmp_path):
    with pytest.raises(CounterError, match="no RAPL"):
        Rapl(tmp_path)
    with pytest.raises(CounterError, match="no RAPL"):
        Rapl(tmp_path / "none")
    zone(tmp_path, "0", "package-0", 1).unlink()
    with pytest.raises(CounterError, match="cannot be read"):
        Rapl(tmp_path)
    with pytest.raises(CounterError, match="tpu"):
        counter("tpu")


class Library:
    """NVML's four functions, 250 mJ a call; ``fails`` names the one that does not work."""

    def __init__(self, fails=""):
        self.fails, self.energy = fails, itertools.count(1000, 250)

    def __getattr__(self, name):
        def call(*arguments):
            if self.fails and self.fails in name:
                return 3
            if "Energy" in name:
                place = ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_ulonglong))
                place.contents.value = next(self.energy)
            return 0

        return call


def test_nvml_counts_millijoules():
    nvml = Nvml(0, Library())
    first = nvml.joules()
    assert nvml.joules() - first == pytest.approx(0.25)
    for fails, words in (("Init", "start"), ("Handle", "find GPU 7"), ("Energy", "read")):
        with pytest.raises(CounterError, match=words):
            Nvml(7, Library(fails))


class Fake:
    name = "a fake"

    def __init__(self, step):
        self.step, self.total = step, 0.0

    def joules(self):
        return self.total


def test_energy_of_one_run_is_the_mean_of_all_but_the_first():
    fake, calls = Fake(3.0), []

    def run():
        calls.append(1)
        fake.total += 3.0 if len(calls) > 1 else 1000.0  # the first warms up

    found = measure(run, fake, operations=6 * 10**12, least=0.01)
    assert len(calls) >= 2
    assert found.joules == pytest.approx(3.0)
    assert found.tops_per_watt == pytest.approx(2.0)
    assert found.source == "measured by a fake"
    with pytest.raises(PowerLimitError, match="positive"):
        measure(lambda: None, Fake(0), least=0.0)


def test_a_gpu_without_its_library_says_so(monkeypatch):
    """Whether or not torch knows which of several it is."""

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for properties in (SimpleNamespace(uuid="1234"), SimpleNamespace()):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=properties: found)
        with pytest.raises(CounterError, match="NVML does not load"):
            counter("cuda")
