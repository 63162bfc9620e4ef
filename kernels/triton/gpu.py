"""GPUs as data: what a code generator may use on one, and how fast it is, for ranking choices."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: the architecture, as its vendor's compiler spells it.
        kind: Triton's back end, ``cuda`` or ``hip``.
        arch: what Triton's compiler is given: the compute capability as a whole number, or a name.
        warp: threads in a warp.
        processors: multiprocessors.
        shared: bytes of shared memory one program may have.
        l2: bytes of L2 cache.
        macs: multiply-adds a cycle of one multiprocessor's tensor cores, by bytes an operand.
        clock: cycles a second.
        dram_rate: bytes a second to and from memory.
        l2_rate: bytes a second to and from the L2 cache.
        permutes: codes can be looked up by NVIDIA's byte permute. AMD's compiler and Triton's
            interpreter do not know it.
    """

    name: str
    kind: str
    arch: int | str
    warp: int
    processors: int
    shared: int
    l2: int
    macs: dict[int, int] = dataclasses.field(hash=False)
    clock: float
    dram_rate: float
    l2_rate: float
    permutes: bool = True

    @property
    def crowds(self) -> bool:
        """Whether tensor cores take operands from registers, of which a thread has 255.

        NVIDIA's do before sm_90, and from there on read shared memory. AMD's threads have 512.
        """
        return self.kind == "cuda" and self.name not in ("sm_90", "sm_100")


#: By architecture, the data sheets' figures of its largest card. They rank choices and decide no
#: result; a card at hand replaces sizes by its own.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("sm_80", "cuda", 80, 32, 108, 166912, 40 << 20, {1: 2048, 2: 1024, 4: 171},
            1.41e9, 2.0e12, 4.0e12),
        Gpu("sm_90", "cuda", 90, 32, 132, 232448, 50 << 20, {1: 4096, 2: 2048, 4: 341},
            1.755e9, 4.8e12, 5.5e12),
        Gpu("sm_100", "cuda", 100, 32, 148, 232448, 126 << 20, {1: 8192, 2: 4096, 4: 341},
            1.85e9, 8.0e12, 9.0e12),
        Gpu("gfx942", "hip", "gfx942", 64, 304, 65536, 4 << 20, {1: 2048, 2: 1024, 4: 256},
            2.1e9, 5.3e12, 1.0e13, permutes=False),
    )
}  # fmt: skip


def detect(device: torch.device | int | None = None) -> Gpu:
    """The GPU at hand, on the data of the nearest architecture known that is not newer.

    Raises:
        ValueError: the architecture is older than any known.
    """
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", 0)
    if torch.version.hip:
        name = found.gcnArchName.split(":")[0]
        base = dataclasses.replace(GPUS["gfx942"], name=name, arch=name)
    else:
        capability = found.major * 10 + found.minor
        known = [g for g in GPUS.values() if g.kind == "cuda" and int(g.arch) <= capability]
        if not known:
            raise ValueError(f"compute capability {found.major}.{found.minor} is below 8.0")
        base = max(known, key=lambda g: int(g.arch))
        base = dataclasses.replace(base, name=f"sm_{capability}", arch=capability)
    return dataclasses.replace(
        base,
        processors=found.multi_processor_count,
        l2=getattr(found, "L2_cache_size", 0) or base.l2,
        shared=shared or base.shared,
    )
