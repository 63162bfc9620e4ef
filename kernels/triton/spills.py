"""What a compiled kernel keeps in memory because registers ran out, and how to have it not."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable
from typing import Any

from .kernel import Launch

#: Registers that a thread of NVIDIA's GPUs may take.
MOST = 255

#: In a CUDA binary's ``.nv.info``: the form of records with as many bytes more as they say, others
#: being of four; and the record of that form that says how many bytes of stack a function has.
_SIZED, _FRAME_SIZE = 4, 0x11


def settled(launch: Launch, build: Callable[[Launch], Any]) -> tuple[Launch, Any]:
    """A launch and its code, built again with all registers where its own choice spills.

    NVIDIA's compiler would rather spill a few registers than lose room for one more program on a
    multiprocessor, be it one that shared memory has no room for, of which it is not told.

    Args:
        launch: what to build.
        build: Triton's compiler: gives a launch's code.
    """
    code = build(launch)
    if "cubin" in code.asm and launch.registers is None and spilled(code):
        free = dataclasses.replace(launch, registers=MOST)
        other = build(free)
        if spilled(other) < spilled(code):
            return free, other
    return launch, code


def spilled(compiled: Any) -> int:
    """What a kernel spills: bytes of stack on NVIDIA's GPUs, registers on AMD's.

    Args:
        compiled: as Triton's compiler gives it; its ``asm`` is read.

    Raises:
        ValueError: AMD's assembly does not say.
    """
    if "cubin" in compiled.asm:
        return stack(compiled.asm["cubin"])
    counts = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", compiled.asm["amdgcn"])
    if not counts:
        raise ValueError("assembly that does not say how many registers it spills")
    return sum(map(int, counts))


def stack(cubin: bytes) -> int:
    """Bytes of stack that the function of a CUDA binary has; parts of it may say so, too."""
    most = 0
    for name, content in _sections(cubin):
        if name != b".nv.info":
            continue
        at = 0
        while at < len(content):
            form, attribute, size = struct.unpack_from("<BBH", content, at)
            at += 4
            if form == _SIZED:
                if attribute == _FRAME_SIZE:
                    most = max(most, struct.unpack_from("<II", content, at)[1])
                at += size
    return most


def _sections(elf: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents of the sections of a 64-bit little-endian ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    width, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * width) for i in range(count)]
    start = headers[names][4]
    found = []
    for name, _, _, _, offset, size in headers:
        end = elf.index(b"\0", start + name)
        found.append((elf[start + name : end], elf[offset : offset + size]))
    return found
