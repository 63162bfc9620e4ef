"""Machine files: the presets load, wrong ones are refused by the name of what is wrong."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path

import pytest
import zoomc.targets.tvm.npu.machine as machines
from zoomc.targets.errors import MachineError
from zoomc.targets.tiling import W4A8
from zoomc.targets.tvm.npu.machine import load, parse, presets

GOOD = tomllib.loads((Path(machines.__file__).parent / "machines" / "mobile.toml").read_text())


def test_at_least_three_presets_load():
    found = {name: load(name) for name in presets()}
    assert {"eyeriss", "mobile", "systolic"} <= set(found)
    assert (found["eyeriss"].rows, found["eyeriss"].columns) == (12, 14)
    assert found["eyeriss"].scratchpad.size == 108 * 1024
    assert found["mobile"].rows * found["mobile"].columns == 4096
    assert found["mobile"].scratchpad.size == 2 << 20
    assert found["systolic"].dram.name == "lpddr4-3200"


def test_a_file_of_its_own(tmp_path):
    path = tmp_path / "mine.toml"
    text = (Path(machines.__file__).parent / "machines" / "mobile.toml").read_text()
    path.write_text(text.replace('name = "mobile"', 'name = "mine"'))
    assert load(path).name == "mine"
    path.write_text("macs = [")
    with pytest.raises(MachineError, match="not TOML"):
        load(path)
    with pytest.raises(MachineError, match="no machine"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("name", None, "name is missing"),
        ("macs", [64], "must list 2"),
        ("macs", [64, "x"], "must list 2"),
        ("macs", [0, 64], "rows must be positive"),
        ("scratchpad.bytes", -1, "must be positive"),
        ("scratchpad.bytes", 1000, "does not divide"),
        ("scratchpad.banks", None, "scratchpad.banks is missing"),
        ("scratchpad.pj_per_byte", -0.5, "cannot be negative"),
        ("dma.bytes_per_cycle", 1.5, "must be a int"),
        ("dma.setup_cycles", True, "must be a int"),
        ("dram.preset", "ddr9", "no DRAM preset"),
        ("clock.mhz", [], "ascending"),
        ("clock.mhz", [400, 200], "ascending"),
        ("clock.volts", 0, "volts must be positive"),
        ("power.static_mw", -1.0, "static_mw cannot be negative"),
        ("power.static_mw", float("inf"), "must be finite"),
        ("clock.volts", float("nan"), "must be finite"),
        ("clock", 5, "clock.mhz is missing"),
        ("power.watts", 3, "unknown power.watts"),
    ],
)
def test_wrong_values_are_named(place, value, message):
    data = copy.deepcopy(GOOD)
    *tables, key = place.split(".")
    table = data[tables[0]] if tables else data
    if value is None:
        del table[key]
    else:
        table[key] = value
    with pytest.raises(MachineError, match=message):
        parse(data)


def test_constants_that_leave_no_room_are_refused():
    with pytest.raises(MachineError, match="do not fit a scratchpad"):
        load("mobile").memory(W4A8, 2 << 20)
