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

#: Numbers of an instruction's registers: sums, rows, columns.
Registers = tuple[int, int, int]

_PAGE = 1 << 16
_CODE, _STUBS, _STACK, _HEAP = 0x10_0000, 0x800_0000, 0x900_0000, 0x1000_0000
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
        self._symbols = _Loader(self._uc, object_file(module), self._external).symbols

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


class _Loader:
    """Loads the sections of an ELF object for 64-bit Arm and resolves their relocations."""

    def __init__(self, uc: unicorn.Uc, data: bytes, external: Callable[[str], int]) -> None:
        self._uc, self._data, self._external = uc, data, external
        self._known: dict[str, int] = {}
        self._got: dict[int, int] = {}
        uc.mem_map(_CODE, 64 * _PAGE)
        (table,) = struct.unpack_from("<Q", data, 0x28)
        (count,) = struct.unpack_from("<H", data, 0x3C)
        # name, type, flags, address, offset, size, link, info, alignment, entry size
        sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
        self._places: dict[int, int] = {}
        end = _CODE
        for i, (_, kind, flags, _, offset, size, _, _, alignment, _) in enumerate(sections):
            if not flags & 2:  # takes no memory
                continue
            self._places[i] = end = -(-end // alignment) * alignment
            if kind != 8:  # not just zeros
                uc.mem_write(end, data[offset : offset + size])
            end += size
        self._end = -(-end // 16) * 16
        symbols = next(s for s in sections if s[1] == 2)
        self._strings = sections[symbols[6]][4]
        self._entries = [
            struct.unpack_from("<IBBHQQ", data, symbols[4] + 24 * i)
            for i in range(symbols[5] // 24)
        ]
        self.symbols = {
            self._name(e): self._places[e[3]] + e[4] for e in self._entries if e[3] in self._places
        }
        for section in sections:
            if section[1] == 4 and section[7] in self._places:
                for i in range(section[5] // 24):
                    self._relocate(self._places[section[7]], section[4] + 24 * i)
        for name, place in self.symbols.items():
            if name.startswith("__TVM"):  # TVM's runtime puts its functions' addresses there
                uc.mem_write(place, struct.pack("<Q", external(name.lstrip("_"))))

    def _name(self, entry: tuple[int, ...]) -> str:
        start = self._strings + entry[0]
        return self._data[start : self._data.index(b"\0", start)].decode()

    def _address(self, number: int) -> int:
        entry = self._entries[number]
        if entry[3]:
            return self._places[entry[3]] + entry[4]
        name = self._name(entry)
        if name not in self._known:
            self._known[name] = self._external(name)
        return self._known[name]

    def _relocate(self, base: int, entry: int) -> None:
        offset, info, addend = struct.unpack_from("<QQq", self._data, entry)
        place, kind = base + offset, info & 0xFFFFFFFF
        target = self._address(info >> 32) + addend
        (word,) = struct.unpack("<I", self._uc.mem_read(place, 4))
        if kind in {311, 312}:  # through a table of addresses
            slot = self._got.setdefault(target, self._end)
            if slot == self._end:
                self._uc.mem_write(slot, struct.pack("<Q", target))
                self._end += 8
            target, kind = slot, {311: 275, 312: 286}[kind]
        if kind == 257:  # ABS64
            self._uc.mem_write(place, struct.pack("<Q", target))
            return
        if kind == 261:  # PREL32
            word = (target - place) & 0xFFFFFFFF
        elif kind in {282, 283}:  # JUMP26, CALL26
            word |= (target - place) >> 2 & 0x3FFFFFF
        elif kind == 275:  # ADR_PREL_PG_HI21
            pages = (target >> 12) - (place >> 12)
            word |= (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
        else:  # the low 12 bits, in units of what is loaded: ADD, LDST8, 16, 32, 64, 128
            unit = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}[kind]
            word |= (target & 0xFFF) >> unit << 10
        self._uc.mem_write(place, struct.pack("<I", word))
