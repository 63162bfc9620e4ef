"""Runs kernels cross-compiled for 64-bit Arm on an emulated processor, an object file at a time.

The processor is QEMU's, through ``unicorn``. It has no ``smmla``: that one instruction is trapped
and computed here. Kernels are called as TVM's runtime calls them, through their packed functions.
"""

from __future__ import annotations

import math
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
import unicorn
from unicorn import arm64_const as arm
from zoomc.kernels.tir.isa import PATHS, Isa, isa
from zoomc.kernels.tir.kernel import Kernel, lower
from zoomc.kernels.tir.processor import Processor
from zoomc.kernels.tir.run import as_storage, bind

from .elf import Loader

#: Numbers of an instruction's registers: sums, rows, columns.
Registers = tuple[int, int, int]

_PAGE = 1 << 16
_STUBS, _STACK, _HEAP = 0x800_0000, 0x900_0000, 0x1000_0000
_UNDEFINED, _CALL = 1, 2  # exceptions of the processor: an instruction it lacks, ``svc``
_RETURN = 0xD65F03C0
_V = [getattr(arm, f"UC_ARM64_REG_V{i}") for i in range(32)]
_X = [getattr(arm, f"UC_ARM64_REG_X{i}") for i in range(8)]
_S0 = arm.UC_ARM64_REG_S0


def paths() -> dict[str, Isa]:
    """The paths of Arm, on a processor that has everything they need."""
    names = [path.name for path in PATHS if path.neon]
    flags = frozenset().union(*(path.requires for path in PATHS if path.neon))
    cpu = Processor("an emulated one", flags, 32 << 10, 256 << 10)
    return {name: isa(name, 2, cpu) for name in names}


def compiled(kernel: Kernel, path: Isa) -> tvm.runtime.Module:
    """What a kernel is cross-compiled to."""
    module = tvm.IRModule({"main": kernel.build().with_attr("global_symbol", "main")})
    return tvm.compile(module, target=tvm.target.Target(path.target)).mod


def execute(
    kernel: Kernel, module: tvm.runtime.Module, path: Isa
) -> tuple[torch.Tensor, Counter[Registers]]:
    """What a kernel whose values hold tensors returns, and the ``smmla`` computed here."""
    operands = [o.tensor([v.source for v in o.values]).contiguous() for o in kernel.operands]
    out = torch.zeros(kernel.out.shape, dtype=kernel.out.dtype)
    scratch = [torch.zeros(s.shape, dtype=s.dtype) for s in kernel.scratch]
    for tensor in scratch:  # garbage: a kernel that relies on zeros there fails its test
        tensor.view(torch.uint8).fill_(0xA5)
    emulator = Emulator(module, path)
    emulator.call("__tvm_ffi_main", [as_storage(t).numpy() for t in (*operands, out, *scratch)])
    return out, emulator.trapped


def run(path: Isa, op: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What :func:`zoomc.kernels.tir.run.run` does, on the emulated processor."""
    kernel = lower(bind(op, *args, **kwargs), path)
    return execute(kernel, compiled(kernel, path), path)[0]


def object_file(module: tvm.runtime.Module) -> bytes:
    """A module's ELF object."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.o"
        module.write_to_file(str(file), "o")
        return file.read_bytes()


class Emulator:
    """A processor with one object file in its memory.

    Attributes:
        trapped: how many ``smmla`` of these registers were computed here.
    """

    def __init__(self, module: tvm.runtime.Module, path: Isa) -> None:
        self._uc = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        # The Cortex-A72 has vectors and nothing beyond; the other has dotprod.
        model = arm.UC_CPU_ARM64_MAX if path.dotprod else arm.UC_CPU_ARM64_A72
        self._uc.ctl_set_cpu_model(model)
        self._uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)
        self._uc.mem_map(_STUBS, _PAGE)
        self._uc.mem_map(_STACK, 16 * _PAGE)
        self._heap, self._error, self._i8mm = _HEAP, "", path.i8mm
        self._services: list[Callable[[], None]] = []
        self.trapped: Counter[Registers] = Counter()
        self._exit = self._stub(self._uc.emu_stop)
        self._symbols = Loader(self._uc, object_file(module), self._external).symbols

    def call(self, name: str, tensors: Sequence[np.ndarray]) -> None:
        """Call a packed function with tensors, which it may write.

        Raises:
            RuntimeError: what the function raises.
        """
        places = [self._place(t.tobytes()) for t in tensors]
        packed = b""
        for tensor, place in zip(tensors, places, strict=True):
            kind = {"i": 0, "u": 1, "f": 2}[tensor.dtype.kind]
            shape = self._place(struct.pack(f"<{tensor.ndim}q", *tensor.shape))
            cpu, bits = 1, 8 * tensor.itemsize
            header = struct.pack(
                "<QiiiBBHQQQ", place, cpu, 0, tensor.ndim, kind, bits, 1, shape, 0, 0
            )
            packed += struct.pack("<iIQ", 7, 0, self._place(header))  # a pointer to a DLTensor
        result = self._place(bytes(16))
        arguments = (0, self._place(packed), len(tensors), result)
        for register, value in zip(_X, arguments, strict=False):
            self._uc.reg_write(register, value)
        self._uc.reg_write(arm.UC_ARM64_REG_SP, _STACK + 16 * _PAGE - 256)
        self._uc.reg_write(arm.UC_ARM64_REG_LR, self._exit)
        self._uc.emu_start(self._symbols[name], 0)
        if self._uc.reg_read(_X[0]):
            raise RuntimeError(self._error or "the kernel failed")
        for tensor, place in zip(tensors, places, strict=True):
            raw = self._uc.mem_read(place, tensor.nbytes)
            tensor[...] = np.frombuffer(raw, tensor.dtype).reshape(tensor.shape)

    def _place(self, data: bytes) -> int:
        """Room for some bytes, aligned to 64; what follows them belongs to nobody."""
        size = -(-max(len(data), 1) // _PAGE) * _PAGE
        self._uc.mem_map(self._heap, size)
        address = self._heap + (size - len(data)) // 64 * 64
        self._uc.mem_write(address, data)
        self._heap += size + _PAGE
        return address

    def _stub(self, service: Callable[[], None]) -> int:
        """The address of a function that is computed here."""
        address = _STUBS + 8 * len(self._services)
        self._services.append(service)
        trap = 0xD4000001 | (len(self._services) - 1) << 5  # svc
        self._uc.mem_write(address, struct.pack("<II", trap, _RETURN))
        return address

    def _external(self, name: str) -> int:
        """The address of a function of the C library or of TVM's runtime.

        Raises:
            KeyError: none that kernels are known to call.
        """
        if name == "TVMBackendParallelLaunch":
            return self._launch()
        if name == "TVMFFIErrorSetRaisedFromCStrParts":
            return self._stub(self._raised)
        if name == "TVMBackendAllocWorkspace":
            return self._stub(self._allocate)
        if name in {"TVMBackendFreeWorkspace", "TVMBackendParallelBarrier"}:
            return self._stub(lambda: self._uc.reg_write(_X[0], 0))
        if name == "memset":
            return self._stub(self._memset)
        functions = {"expf": np.exp, "logf": np.log, "tanhf": np.tanh, "erff": math.erf}
        fn = functions[name]

        def service() -> None:
            (x,) = struct.unpack("<f", struct.pack("<I", self._uc.reg_read(_S0)))
            (bits,) = struct.unpack("<I", struct.pack("<f", fn(x)))
            self._uc.reg_write(_S0, bits)

        return self._stub(service)

    def _launch(self) -> int:
        """``TVMBackendParallelLaunch(lambda, data, tasks)``: one task that does all the work."""
        code = (
            0xAA0003E3,  # mov x3, x0
            0xAA0103E2,  # mov x2, x1
            0x52800000,  # mov w0, #0
            0x10000041,  # adr x1, to what follows
            0xD61F0060,  # br x3
        )
        environment = (0, 0, 1, 0)  # no handle to synchronise by, one task
        place = _STUBS + _PAGE // 2
        self._uc.mem_write(place, struct.pack("<9I", *code, *environment))
        return place

    def _raised(self) -> None:
        kind, parts, count = (self._uc.reg_read(x) for x in _X[:3])
        pointers = struct.unpack(f"<{count}Q", self._uc.mem_read(parts, 8 * count))
        texts = [bytes(self._uc.mem_read(p, 200)).split(b"\0")[0] for p in (kind, *pointers)]
        self._error = b"".join(texts).decode(errors="replace")

    def _allocate(self) -> None:
        size = self._uc.reg_read(_X[2])
        self._uc.reg_write(_X[0], self._place(bytes([0xA5]) * size))

    def _memset(self) -> None:
        place, value, size = (self._uc.reg_read(x) for x in _X[:3])
        self._uc.mem_write(place, bytes([value & 255]) * size)

    def _interrupt(self, uc: Any, number: int, _: Any) -> None:
        at = uc.reg_read(arm.UC_ARM64_REG_PC)
        if number == _CALL:
            (word,) = struct.unpack("<I", uc.mem_read(at - 4, 4))
            self._services[word >> 5 & 0xFFFF]()
            return
        (word,) = struct.unpack("<I", uc.mem_read(at, 4))
        registers = smmla(word)
        if number != _UNDEFINED or registers is None or not self._i8mm:
            self._error = f"exception {number} at {at:#x}, instruction {word:#x}"
            uc.emu_stop()
            return
        sums, rows, columns = (uc.reg_read(_V[r]).to_bytes(16, "little") for r in registers)
        rows, columns = struct.unpack("<16b", rows), struct.unpack("<16b", columns)
        products = (
            sum(map(mul, rows[i : i + 8], columns[j : j + 8])) for i in (0, 8) for j in (0, 8)
        )
        added = (
            x + y & 0xFFFFFFFF for x, y in zip(struct.unpack("<4I", sums), products, strict=True)
        )
        uc.reg_write(_V[registers[0]], int.from_bytes(struct.pack("<4I", *added), "little"))
        uc.reg_write(arm.UC_ARM64_REG_PC, at + 4)
        self.trapped[registers] += 1


def smmla(word: int) -> Registers | None:
    """The registers of an ``smmla``: sums, rows, columns; None if it is another instruction."""
    if word & 0xFFE0FC00 != 0x4E80A400:
        return None
    return word & 31, word >> 5 & 31, word >> 16 & 31
