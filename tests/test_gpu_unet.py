"""The GPU benchmark's own arithmetic, which nobody can watch where there is no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
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


def test_a_dry_runs_sample_is_read_as_ncus(bench):
    _, counters, _ = bench
    rows = [{"kernel": "linear", "predicted": 2_468_000}, {"kernel": "conv", "predicted": 10}]
    assert [sum(x.values()) for x in counters.parse(counters.sample(rows))] == [2_468_000, 10]


def test_counting_says_why_it_cannot(bench, monkeypatch, capsys):
    _, counters, machine = bench
    gpu = object.__new__(machine.Gpu)
    monkeypatch.setattr(counters, "profiler", lambda: None)
    assert counters.run(gpu, "zoomc").failed == {"zoomc": "ncu is not installed"}
    monkeypatch.setattr(counters, "profiler", lambda: "ncu")
    rows = [{"kernel": "linear", "calls": 1, "tile": "64x64", "predicted": 20}]

    def answer(found, output, why=""):
        ended = counters.Ended({"rows": found} if found else {}, {}, "", why, output)
        monkeypatch.setattr(counters, "apart", lambda *_: ended)
        return counters.run(gpu, "zoomc").failed

    refusal = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    told = "ERR_NVGPUCTRPERM - The user does not have permission"
    assert answer(rows, refusal) == {"zoomc": "ERROR== " + told}
    assert answer(rows, "") == {"zoomc": "ncu counted 0 of 1 launches"}
    assert "killed" in answer([], "killed")["zoomc"]
    assert answer(rows, counters.sample(rows)) == {}
    assert "1.00× of predicted" in capsys.readouterr().out


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
            "rows": [
                {"kernel": "linear", "bits": 16, "of_matmul": 0.71, "peers": {"torch fp16": 1.0}},
                {"kernel": "conv", "bits": 16, "of_matmul": 0.69, "peers": {"torch fp16": 1.0}},
                {"kernel": "conv", "bits": 4, "of_matmul": 0.1, "peers": {"torch fp16": 1.0}},
                {"kernel": "attention", "bits": 8, "ours": 1.0, "peers": {"flash": 1.2}},
            ],
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
        "attention in 8 bits ≥ torch's flash attention in fp16": True,
        "zoomc's first call before Inductor's": True,
        "zoomc-int4's first call before Inductor's": False,
    }
    assert unet.verdicts({}) == []


PART = """
import os, sys
sys.path.insert(0, {path!r})
from gpu_apart import serve

def work(machine, notes, names):
    notes.found["done"] = []
    for name in names:
        with notes.at(name):
            if name == "crashes":
                os._exit(9)
            if name == "raises":
                raise ValueError
            notes.found["done"].append(name)

serve(work)
"""


def test_what_ends_its_process_is_left_out_and_the_rest_goes_on(bench, tmp_path):
    from gpu_apart import persist

    script = tmp_path / "part.py"
    script.write_text(PART.format(path=str(BENCHMARKS)))
    machine = object.__new__(bench[2].DryRun)
    ended = persist(machine, str(script), ["first", "raises", "crashes", "last"], {})
    assert ended.found == {"done": ["first", "last"]} and not ended.why
    assert ended.failed == {
        "raises": "ValueError: ",
        "crashes": "its process ended with status 9",
    }


def test_a_failure_is_noted_and_told_at_the_end(bench, monkeypatch, tmp_path, capsys):
    """The other parts' figures stay, and the status says that something failed."""
    unet = bench[0]
    import gpu_kernels
    import gpu_steps

    def broken(*_):
        raise RuntimeError("no such thing")

    def stepped(_machine, text, names, rounds):
        batch, side = map(int, text.split("x"))
        rows = steps(batch, side, inductor=1.0, zoomc=0.5)
        return gpu_steps.Ended({"rows": rows}, {"zoomc-int4": "it broke"}, "")

    monkeypatch.setattr(gpu_kernels, "run", broken)
    monkeypatch.setattr(gpu_steps, "run", stepped)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    path = tmp_path / "found.json"
    skip = ["--skip", "cold,counters,pipeline", "--out", str(path), "--cases", "2x64,2x96"]
    monkeypatch.setattr(sys, "argv", ["gpu_unet.py", "--dry-run", *skip])
    with pytest.raises(SystemExit) as status:
        unet.main()
    assert status.value.code == 1
    found = json.loads(path.read_text())
    assert found["failures"] == {
        "kernels": {"all of it": "RuntimeError: no such thing"},
        "steps 2x64": {"zoomc-int4": "it broke"},
        "steps 2x96": {"zoomc-int4": "it broke"},
    }
    assert len(found["steps"]) == 4
    said = capsys.readouterr().out
    monkeypatch.setattr(gpu_kernels, "run", lambda _: gpu_steps.Ended({"rows": []}, {}, ""))
    skip = ["--skip", "cold,steps,counters,pipeline", "--out", str(path), "--add"]
    monkeypatch.setattr(sys, "argv", ["gpu_unet.py", "--dry-run", *skip])
    with pytest.raises(SystemExit):
        unet.main()
    again = json.loads(path.read_text())
    assert again["steps"] == found["steps"] and set(again["failures"]) == {
        "steps 2x64",
        "steps 2x96",
    }
    assert "FAILED   kernels, all of it: RuntimeError: no such thing" in said
    assert "reached           2.00×  zoomc ≥ 1.3× Inductor, batch 2, 64×64" in said


def test_the_dry_run_goes_through(tmp_path):
    """On small models, those parts of it that take seconds."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install zoomc[gpu]")
    path = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARKS / "gpu_unet.py"), "--dry-run", "--out", str(path)]
    some = ["--cases", "1x64", "--contenders", "eager,zoomc", "--skip", "cold,counters,pipeline"]
    done = subprocess.run([*command, *some], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    eager, ours = found["steps"]
    assert (eager["contender"], ours["contender"]) == ("eager", "zoomc")
    assert 0 < ours["error"] < 5e-3 and 0 < eager["error"] < 5e-3
    assert ours["times_as_fast_as"]["eager"] == eager["median"] / ours["median"]
    rows = found["kernels"]["rows"]
    assert [row["bits"] for row in rows] == [16, 8, 4, 16, 8, 4, 16, 8]
    assert all(row["error"] < 2e-3 and row["ours"] > 0 for row in rows), rows
    assert "NaN" not in path.read_text() and not found["failures"]
