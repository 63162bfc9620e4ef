"""Instruction-set paths of the CPU code generators, as data, and the choice of one for a CPU."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from .processor import Processor, here


@dataclass(frozen=True)
class Isa:
    """What a code generator may use on one CPU.

    Attributes:
        name: the path's name, as ``options={"isa": ...}`` spells it.
        mcpu: LLVM's processor name.
        features: LLVM's feature string, added to ``mcpu``.
        lanes: fp32 values in one vector register.
        registers: vector registers.
        requires: ``/proc/cpuinfo`` flags or features without which the path cannot run.
        fma: fused multiply-add is one instruction.
        bf16_dot: ``vdpbf16ps``: pairs of bf16 multiplied and added into fp32 lanes.
        amx: tile registers with bf16 and int8 products (16 rows of 64 bytes).
        vnni: four unsigned bytes multiplied by signed ones and added into int32 lanes.
        neon: 128-bit Arm vectors, with a lookup of bytes in a table of 16.
        dotprod: ``sdot``: four signed bytes multiplied by four and added into int32 lanes.
        i8mm: ``smmla``: two rows of eight signed bytes multiplied by two columns of them.
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
    neon: bool = False
    dotprod: bool = False
    i8mm: bool = False
    threads: int = 1
    l1: int = 32 << 10
    l2: int = 1 << 20

    @property
    def target(self) -> dict[str, object]:
        """The TVM target, in the form :class:`tvm.target.Target` takes."""
        attrs = {"kind": "llvm", "mcpu": self.mcpu, "jit": "mcjit"}
        if self.neon:
            attrs["mtriple"] = "aarch64-linux-gnu"
        return attrs | ({"mattr": self.features.split(",")} if self.features else {})


_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}

# Every 64-bit Arm processor has 128-bit vectors with fused multiply-add.
_NEON = Isa("neon", "generic", "+neon", 4, 32, frozenset({"asimd"}), fma=True, neon=True)
_DOTPROD = dataclasses.replace(
    _NEON,
    name="neon_dotprod",
    features="+neon,+dotprod",
    requires=_NEON.requires | {"asimddp"},
    dotprod=True,
)
_I8MM = dataclasses.replace(
    _DOTPROD,
    name="neon_i8mm",
    features="+neon,+dotprod,+i8mm",
    requires=_DOTPROD.requires | {"i8mm"},
    i8mm=True,
)

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
    _I8MM,
    _DOTPROD,
    _NEON,
    Isa("portable", "generic", "", 4, 16, frozenset()),
)


def cpu_flags() -> frozenset[str]:
    """Feature flags of this CPU; empty where the system does not list them."""
    return here().flags


def supported(flags: frozenset[str] | None = None) -> tuple[str, ...]:
    """Names of the paths that can run on a CPU with these flags, or this one, best first."""
    has = cpu_flags() if flags is None else flags
    return tuple(path.name for path in PATHS if path.requires <= has)


def isa(name: str = "auto", threads: int | None = None, cpu: Processor | None = None) -> Isa:
    """The path of that name, or the best one, for a CPU, with its caches.

    Args:
        name: of a path, or ``auto``.
        threads: workers; all this process may use by default.
        cpu: the CPU; this machine's by default.

    Raises:
        KeyError: no path has that name.
        ValueError: the CPU lacks what the path needs.
    """
    flags = cpu.flags if cpu else cpu_flags()
    if name == "auto":
        name = supported(flags)[0]
    path = {path.name: path for path in PATHS}[name]
    missing = path.requires - flags
    if missing:
        raise ValueError(f"this CPU has no {', '.join(sorted(missing))}, which {name!r} needs")
    flag, feature = ("avx512_vnni", "avx512vnni") if path.lanes == 16 else ("avx_vnni", "avxvnni")
    if path.lanes >= 8 and flag in flags:
        path = dataclasses.replace(path, vnni=True, features=f"+{feature}")
    caches = cpu or here()
    return dataclasses.replace(
        path,
        threads=threads or len(os.sched_getaffinity(0)),
        l1=caches.l1 or path.l1,
        l2=caches.l2 or path.l2,
    )
