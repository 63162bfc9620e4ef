"""A device behind TVM's RPC tracker: what its processor is, and kernels measured there.

The device runs nothing of ours: TVM's own server is enough. What has to be asked of its system
(its processor, leave to use tile registers) goes through a small module built here, which calls
its C library.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
import tvm
from tvm import rpc
from tvm.support import cc
from tvm.tirx.script import builder as T

from ...kernels.tir import amx
from ...kernels.tir.isa import PATHS, isa
from ...kernels.tir.kernel import Kernel, TensorSpec
from ...kernels.tir.primfunc import prim_func
from ...kernels.tir.processor import Processor
from ..errors import TuningError
from .measure import FLUSH, Device, build
from .tuned import machine

#: Seconds to wait for a tracker's answer.
_PATIENCE = 10.0

#: Bytes of a path and those read of a file: of /proc/cpuinfo the first processor's.
_PATH, _READ = 128, 8192


class RemoteDevice(Device):
    """A device that a tracker hands out, until :meth:`close`.

    Args:
        tracker: ``host:port``.
        key: under which the device's server registered.
        path: the instruction-set path, or ``auto`` for the device's best.
        threads: workers; 0 for all the device's server uses.

    Raises:
        TuningError: there is no linker here, no tracker, no such device, or it is another kind of
            machine.
    """

    def __init__(self, tracker: str, key: str, path: str = "auto", threads: int = 0) -> None:
        if cc.get_cc() is None:
            raise TuningError("devices load linked modules, and there is no linker: install gcc")
        self._session = _request(tracker, key)
        self._folder = Path(tempfile.mkdtemp(prefix="zoomc"))
        self._names = (f"kernel{n}.so" for n in count())
        self._flush = self._session.get_function(FLUSH)
        try:
            probe = self.load(_probe())
        except Exception as error:
            self.close()
            raise TuningError(
                f"the device {key!r} cannot load what is built for a machine of this kind: {error}"
            ) from None
        cpu = Processor.of(lambda file: self._read(probe, file))
        threads = threads or int(self._session.get_function("runtime.NumThreads")())
        try:
            self.isa = isa(path, threads, cpu)
        except ValueError as error:
            self.close()
            raise TuningError(f"the device {key!r}: {error}") from None
        if self.isa.amx and not self._enable_tiles(probe):
            self.isa = isa("avx512_bf16", threads, cpu)
        self.machine = machine(self.isa, cpu)

    def close(self) -> None:
        """Give the device back."""
        self._flush = self._session = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def load(self, module: tvm.runtime.Module) -> tvm.runtime.Module:
        """A module that :func:`.measure.build` made, linked, sent and loaded."""
        file = self._folder / next(self._names)
        module.export_library(str(file))
        self._session.upload(str(file))
        file.unlink()
        return self._session.load_module(file.name)

    def timer(
        self, module: tvm.runtime.Module, arguments: Sequence[Any], constants: Sequence[Any]
    ) -> Callable[[], float]:
        """Gives the seconds of one call, timed on the device, that finds its tensors in no cache.

        All but the first, which is an input: the device can evict no fewer just before a call.
        """
        del constants
        timed = module.time_evaluator("main", self._cpu(), number=1, repeat=1, f_preproc=FLUSH)
        return lambda: float(timed(*arguments).mean)

    def _cpu(self) -> Any:
        return self._session.cpu()

    def _read(self, probe: tvm.runtime.Module, file: str) -> str:
        """The beginning of a file on the device."""
        path = torch.zeros(_PATH, dtype=torch.uint8)
        path[: len(file)] = torch.frombuffer(bytearray(file.encode()), dtype=torch.uint8)
        text = self.put(torch.zeros(_READ, dtype=torch.uint8))
        probe["main"](self.put(path), text, self.put(torch.zeros(1, dtype=torch.int64)))
        read = bytes(text.numpy()).rstrip(b"\0")
        if not read:
            raise FileNotFoundError(file)
        return read.decode(errors="replace")

    def _enable_tiles(self, probe: tvm.runtime.Module) -> bool:
        """Ask the device's system for the tile registers, for this session's process."""
        unread = (torch.zeros(size, dtype=torch.uint8) for size in (_PATH, _READ))
        answer = self.put(torch.ones(1, dtype=torch.int64))
        probe["main"](*map(self.put, unread), answer)
        return int(answer.numpy()[0]) == 0


def _request(tracker: str, key: str) -> Any:
    """A session on the device of that key, once the tracker has it free."""
    host, colon, port = tracker.rpartition(":")
    if not colon or not port.isdigit():
        raise TuningError(f"{tracker!r} is no tracker: write host:port, such as 127.0.0.1:9190")
    try:
        # TVM would try for a minute to reach a tracker that is not there.
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
        found = rpc.connect_tracker(host, int(port))
        servers = found.summary()["server_info"]
    except (OSError, RuntimeError) as error:
        raise TuningError(f"there is no tracker at {tracker}: {error}") from None
    keys = sorted({server["key"].removeprefix("server:") for server in servers})
    if key not in keys:
        raise TuningError(
            f"the tracker at {tracker} has no device {key!r}, only {', '.join(keys) or 'none'}; on"
            f" the device: python -m tvm.exec.rpc_server --tracker {tracker} --key {key}"
        )
    try:
        return found.request(key)
    except RuntimeError as error:
        raise TuningError(f"the tracker at {tracker} gives no {key!r}: {error}") from None


def _probe() -> tvm.runtime.Module:
    """``main(path, text, grant)``: read a file's beginning; ask for tile registers if ``grant``."""
    specs = [
        TensorSpec((_PATH,), torch.uint8),
        TensorSpec((_READ,), torch.uint8),
        TensorSpec((1,), torch.int64),
    ]

    def body(buffers: list[Any]) -> None:
        path, text, grant = buffers
        have = T.alloc_buffer((1,), "int64", scope="local")
        T.buffer_store(have, T.int64(0), [0])
        file = T.bind(T.call_extern("int32", "open", T.address_of(path[0]), 0))
        with T.serial(_READ // 1024):
            into, room = T.address_of(text[have[0]]), _READ - have[0]
            got = T.bind(T.call_extern("int64", "read", file, into, room))
            T.buffer_store(have, have[0] + T.max(got, T.int64(0)), [0])
        T.evaluate(T.call_extern("int32", "close", file))
        with T.If(grant[0].equal(1)), T.Then():
            numbers = map(T.int64, amx.REQUEST)
            T.buffer_store(grant, T.call_extern("int64", "syscall", *numbers), [0])

    return build(
        Kernel("probe", "probe", lambda: prim_func(specs, (), body), (), specs[0]), PATHS[-1]
    )
