"""The GPU benchmark's own arithmetic, which nobody can watch where there is no GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import gpu_counters
    import gpu_machine
    import gpu_unet

    yield gpu_unet, gpu_counters, gpu_machine
    for name in [n for n in sys.modules if n.startswith("gpu_")]:
        del sys.modules[name]


NCU = """==PROF== Connected to process 7
==PROF== Profiling "product": 0%....100%
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","product","dram__bytes_read.sum","Mbyte","12.5"
"0","7","product","dram__bytes_write.sum","Kbyte","1,250.0"
"1","7","attention","dram__bytes_read.sum","byte","3,072"
"1","7","attention","dram__bytes_write.sum","byte","0"
"1","7","attention","sm__cycles_active.avg","cycle","9"
"""


def test_counted_bytes_are_read(bench):
    _, counters, _ = bench
    assert counters.parse(NCU) == [
        {"read": 12.5e6, "written": 1.25e6},
        {"read": 3072.0, "written": 0.0},
    ]


def test_counting_says_why_it_cannot(bench, monkeypatch):
    _, counters, machine = bench
    monkeypatch.setattr(counters.shutil, "which", lambda _: None)
    assert counters.run(object.__new__(machine.Gpu), "zoomc") == "ncu is not installed"


def test_without_a_gpu_it_says_so(bench, monkeypatch):
    unet, _, machine = bench
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_unet.py"])
    with pytest.raises(SystemExit, match=r"no GPU here.*--dry-run"):
        unet.main()


def steps(batch: int, side: int, **seconds: float) -> list[dict[str, object]]:
    return [
        {"contender": name.replace("_", "-"), "batch": batch, "side": side, "seconds": [s, 9 * s],
         "weights_gb": 0.46}
        for name, s in seconds.items()
    ]  # fmt: skip


def test_what_is_asked_for_is_held_against_what_was_measured(bench):
    unet, _, _ = bench
    figures = {
        "steps": steps(2, 64, inductor=1.4, zoomc=1.0, zoomc_int8=1.0, zoomc_int4=0.8)
        + steps(1, 64, inductor=1.0, zoomc=1.1),
        "kernels": {
            "products": [
                {"kernel": "linear", "bits": 16, "of_matmul": 0.71},
                {"kernel": "conv", "bits": 16, "of_matmul": 0.69},
                {"kernel": "conv", "bits": 4, "of_matmul": 0.1},
            ],
            "attention": [{"kernel": "attention", "ours": 1.0, "flash": 1.2}],
        },
        "cold": {"inductor": 100.0, "zoomc": 20.0, "zoomc-int4": 120.0},
    }
    found = {what: reached for what, _, reached in unet.verdicts(figures)}
    assert found == {
        "zoomc ≥ 1.3× Inductor, batch 2, 64×64": True,
        "zoomc-int8 ≥ 1.6× Inductor, batch 2, 64×64": False,
        "zoomc-int4 ≥ 1.6× Inductor, batch 2, 64×64": True,
        "zoomc ≥ 1.0× Inductor, batch 1, 64×64": False,
        "int4 weights ≤ 0.47 GB": True,
        "linear ≥ 70 % of the card's product": True,
        "conv ≥ 70 % of the card's product": False,
        "attention ≥ flash": True,
        "zoomc's first call before Inductor's": True,
        "zoomc-int4's first call before Inductor's": False,
    }
    assert unet.verdicts({}) == []
