"""Instruction-set paths of the CPU code generators, as data, and the choice of one for a CPU."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Isa:
    """What a code generator may use on one CPU.

    Attributes:
        name: the path's name, as ``options={"isa": ...}`` spells it.
        mcpu: LLVM's processor name.
        features: LLVM's feature string, added to ``mcpu``.
        lanes: fp32 values in one vector register.
        registers: vector registers.
        requires: ``/proc/cpuinfo`` flags without which the path cannot run.
        fma: fused multiply-add is one instruction.
        bf16_dot: ``vdpbf16ps``: pairs of bf16 multiplied and added into fp32 lanes.
        amx: tile registers with bf16 and int8 products (16 rows of 64 bytes).
        vnni: four unsigned bytes multiplied by signed ones and added into int32 lanes.
        threads: workers that share a parallel loop.
        l1: bytes of one core's first-level data cache.
        l2: bytes of one core's second-level cache.
    """

    name: str
    mcpu: str
    features: str
    lanes: int
    registers: int
    requires: frozenset[str]
    fma: bool = False
    bf16_dot: bool = False
    amx: bool = False
    vnni: bool = False
    threads: int = 1
    l1: int = 32 << 10
    l2: int = 1 << 20

    @property
    def target(self) -> dict[str, object]:
        """The TVM target, in the form :class:`tvm.target.Target` takes."""
        attrs = {"kind": "llvm", "mcpu": self.mcpu}
        return attrs | ({"mattr": self.features.split(",")} if self.features else {})


_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}

#: Every path, best first; the first whose flags the CPU has is the automatic choice.
PATHS: tuple[Isa, ...] = (
    Isa(
        "amx",
        "sapphirerapids",
        "",
        16,
        32,
        _AVX512 | {"avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"},
        fma=True,
        bf16_dot=True,
        amx=True,
    ),
    Isa(
        "avx512_bf16", "cooperlake", "", 16, 32, _AVX512 | {"avx512_bf16"}, fma=True, bf16_dot=True
    ),
    Isa("avx512", "skylake-avx512", "", 16, 32, _AVX512, fma=True),
    Isa("avx2", "haswell", "", 8, 16, _AVX2, fma=True),
    Isa("portable", "x86-64", "", 4, 16, frozenset()),
)


@cache
def cpu_flags() -> frozenset[str]:
    """Feature flags of this CPU; empty where the system does not list them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@cache
def _cache_bytes(level: int, default: int) -> int:
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            if int((index / "level").read_text()) == level:
                return int((index / "size").read_text().strip().removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return default


def supported() -> tuple[str, ...]:
    """Names of the paths that can run on this CPU, best first."""
    return tuple(path.name for path in PATHS if path.requires <= cpu_flags())


def isa(name: str = "auto", threads: int | None = None) -> Isa:
    """The path of that name, or the best one for this CPU, with this machine's caches.

    Raises:
        KeyError: no path has that name.
        ValueError: this CPU lacks what the path needs.
    """
    if name == "auto":
        name = supported()[0]
    path = {path.name: path for path in PATHS}[name]
    missing = path.requires - cpu_flags()
    if missing:
        raise ValueError(f"this CPU has no {', '.join(sorted(missing))}, which {name!r} needs")
    flag, feature = ("avx512_vnni", "avx512vnni") if path.lanes == 16 else ("avx_vnni", "avxvnni")
    if path.lanes >= 8 and flag in cpu_flags():
        path = dataclasses.replace(path, vnni=True, features=f"+{feature}")
    return dataclasses.replace(
        path,
        threads=threads or len(os.sched_getaffinity(0)),
        l1=_cache_bytes(1, path.l1),
        l2=_cache_bytes(2, path.l2),
    )
