"""The tuning file: what it keeps, what it does with what it cannot read."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from zoomc.kernels.tir.kernel import Call, TensorSpec, Value
from zoomc.targets.errors import TuningError
from zoomc.targets.tuning import Entry, Problem, Store, encoding, open_store, problem, version

ENTRY = Entry(Problem("zoomc::x", {"a": "int8[3]"}, "keep", "m"), "v", {"blocks": 2}, 1.0, 2.0, 5)


def test_entries_survive_in_the_file_and_the_last_counts(tmp_path):
    path = tmp_path / "new" / "store.jsonl"
    store = Store(path)
    assert len(store) == 0 and store.find(ENTRY.problem) is None
    store.add(ENTRY)
    store.add(dataclasses.replace(ENTRY, seconds=0.5))
    other = dataclasses.replace(ENTRY, problem=dataclasses.replace(ENTRY.problem, machine="n"))
    store.add(dataclasses.replace(other, plan=None))
    again = Store(path)
    assert len(again) == 2 and again.find(ENTRY.problem) == dataclasses.replace(ENTRY, seconds=0.5)
    assert again.find(other.problem).plan is None
    assert json.loads(path.read_text().splitlines()[0])["plan"] == {"blocks": 2}


def test_damaged_lines_are_counted_and_the_next_entry_starts_a_line_of_its_own(tmp_path):
    path = tmp_path / "store.jsonl"
    path.write_text('{"operator": 3}\nnonsense\n' + ENTRY.line() + "\n" + ENTRY.line()[:40])
    store = Store(path)
    assert store.damaged == 3 and store.find(ENTRY.problem) == ENTRY
    store.add(dataclasses.replace(ENTRY, tried=9))
    assert Store(path).find(ENTRY.problem).tried == 9


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(TuningError, match="cannot be read"):
        Store(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(TuningError, match="cannot be written"):
        Store(tmp_path / "file" / "store.jsonl").add(ENTRY)
    assert open_store("off").path is None and open_store(str(tmp_path / "x")).path.name == "x"


def test_problems_tell_calls_apart():
    x, w = TensorSpec((4, 8), torch.bfloat16), TensorSpec((3, 8), torch.uint8)
    table = Value(TensorSpec((16,), torch.int8), True)
    args = {"x": Value(x), "weight": Value(w, True), "table": table, "channel_scale": table}
    call = Call("zoomc::linear", args | {"bias": None, "norm": False}, x)
    found = problem(call, "m")
    assert found.arguments == {
        "x": "bfloat16[4, 8]",
        "weight": "constant uint8[3, 8]",
        "table": "constant int8[16]",
        "channel_scale": "constant int8[16]",
        "norm": False,
    }
    assert found.encoding == "16 values"
    assert encoding(Call("zoomc::linear", args | {"table": None}, x)) == "int8"
    assert encoding(Call("zoomc::matmul", {"a": Value(x)}, x)) == "keep"
    for other in (
        dataclasses.replace(call, args=args | {"norm": True}),
        dataclasses.replace(call, op="zoomc::conv2d"),
    ):
        assert problem(other, "m").key != found.key
    assert problem(call, "n").key != found.key
    assert len(version()) == 12
