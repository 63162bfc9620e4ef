"""A device behind TVM's tracker: asked what it is, sent kernels, measured on, given back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import zoomc.kernels.conv2d.op  # noqa: F401 - registers the operator
from tvm import rpc
from tvm.support import cc
from zoomc.kernels.tir.isa import isa
from zoomc.kernels.tir.kernel import lower
from zoomc.kernels.tir.processor import Processor, here
from zoomc.kernels.tir.run import bind
from zoomc.targets.errors import TuningError
from zoomc.targets.tuning import Store, problem
from zoomc.targets.tvm import remote
from zoomc.targets.tvm.remote import RemoteDevice
from zoomc.targets.tvm.tune import Task, Tuner

pytest.importorskip("tornado", reason="TVM's tracker needs it: pip install 'apache-tvm[rpc]'")
pytest.importorskip("cloudpickle", reason="TVM's server needs it: pip install 'apache-tvm[rpc]'")


def _port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def tracker():
    """A tracker on loopback with one device, ``board``, that runs TVM's own server."""
    port, of_server = _port(), _port()
    commands = [
        ["rpc_tracker", "--port", str(port), "--port-end", str(port + 1)],
        ["rpc_server", "--port", str(of_server), "--port-end", str(of_server + 1)],
    ]
    commands[1] += ["--tracker", f"127.0.0.1:{port}", "--key", "board"]
    running = []
    try:
        for command in commands:
            words = [sys.executable, "-m", f"tvm.exec.{command[0]}", *command[1:]]
            words += ["--host", "127.0.0.1", "--silent"]
            # A session of its own: the tracker starts a worker that would outlive it.
            running.append(
                subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
            )
            _wait(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None)
        _wait(lambda: rpc.connect_tracker("127.0.0.1", port).summary()["server_info"])
        yield f"127.0.0.1:{port}"
    finally:
        for process in reversed(running):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait(ready):
    for _ in range(600):
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(0.1)
    raise AssertionError("TVM's tracker or server did not start")


@pytest.mark.skipif(cc.get_cc() is None, reason="devices load linked modules: install gcc")
def test_a_convolution_is_tuned_on_a_device(tracker):
    device = RemoteDevice(tracker, "board", threads=2)
    try:
        assert device.isa == isa("auto", 2), "it is this machine, seen from afar"
        generator = torch.Generator().manual_seed(0)
        image, weight = (
            torch.randn(s, generator=generator) for s in ((1, 9, 8, 32), (48, 32, 3, 3))
        )
        call = bind("zoomc::conv2d", [image], weight, padding=[1, 1, 1, 1])
        task = Task(problem(call, device.machine), call, lower(call, device.isa), 1)
        store = Store()
        assert Tuner(device, store, candidates=3).run([task], lambda v: v.source) == [task]
        entry = store.find(task.problem)
        assert entry.tried == 3 and 0 < entry.seconds <= entry.untuned
        with pytest.raises(TuningError, match="no device 'none', only board"):
            RemoteDevice(tracker, "none")
    finally:
        device.close()


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(TuningError, match="is no tracker"):
        RemoteDevice("localhost", "board")
    with pytest.raises(TuningError, match="there is no tracker at"):
        RemoteDevice(f"127.0.0.1:{_port()}", "board")
    monkeypatch.setattr(remote.cc, "get_cc", lambda: None)
    with pytest.raises(TuningError, match="linker"):
        RemoteDevice("127.0.0.1:1", "board")


def test_a_processor_is_read_from_its_systems_files():
    files = {
        "/proc/cpuinfo": "processor\t: 0\nmodel name\t: A : B\nflags\t: avx2 fma\n\nflags\t: x\n",
        "/sys/devices/system/cpu/cpu0/cache/index0/type": "Instruction\n",
        "/sys/devices/system/cpu/cpu0/cache/index1/type": "Data\n",
        "/sys/devices/system/cpu/cpu0/cache/index1/level": "1\n",
        "/sys/devices/system/cpu/cpu0/cache/index1/size": "48K\n",
    }

    def read(path):
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    assert Processor.of(read) == Processor("A : B", frozenset({"avx2", "fma"}), 48 << 10, 0)
    files.clear()
    assert Processor.of(read) == Processor("", frozenset(), 0, 0)
    assert here().flags
