"""The GPU a benchmark runs on, and a stand-in by which every line can be tried without one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch


class Gpu:
    """The GPU at hand."""

    device = "cuda"
    dry = False

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise SystemExit(
                "no GPU here: torch.cuda.is_available() is False; --dry-run tries every step of"
                " this benchmark without one"
            )
        self.name = torch.cuda.get_device_name()

    def facts(self) -> dict[str, Any]:
        """What figures depend on."""
        import triton

        found = torch.cuda.get_device_properties()
        return {
            "machine": self.name,
            "processors": found.multi_processor_count,
            "memory_gb": found.total_memory / 1e9,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda or torch.version.hip,
        }

    def options(self) -> dict[str, Any]:
        """What zoomc is told besides."""
        return {}

    def arch(self) -> Any:
        """What kernels are generated for."""
        from zoomc.kernels.triton.gpu import detect

        return detect()

    def wait(self) -> None:
        """Until everything asked for is done."""
        torch.cuda.synchronize()

    def seconds(self, fn: Callable[[], Any], repeats: int = 3, ahead: int = 0) -> float:
        """Seconds of a call, by the GPU's clock.

        The GPU first idles ``ahead`` cycles, in which the CPU asks for all the calls: kernels that
        are shorter than it takes to launch them are then timed without it.
        """
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if ahead:
            torch.cuda._sleep(ahead)
        begin.record()
        for _ in range(repeats):
            fn()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def forget_peak(self) -> int:
        """Bytes in use; what is used at most counts from here."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Bytes used at most."""
        return torch.cuda.max_memory_allocated()


class DryRun(Gpu):
    """A CPU whose kernels run in Triton's interpreter: nothing it says of speed means anything."""

    device = "cpu"
    dry = True

    def __init__(self) -> None:
        os.environ["TRITON_INTERPRET"] = "1"
        self.name = "dry run"

    def facts(self) -> dict[str, Any]:
        """What figures depend on."""
        return {"machine": self.name, "torch": torch.__version__}

    def options(self) -> dict[str, Any]:
        """What zoomc is told besides."""
        return {"target": "triton"}

    def arch(self) -> Any:
        """What kernels are generated for."""
        import dataclasses

        from zoomc.kernels.triton.gpu import GPUS

        return dataclasses.replace(GPUS["sm_90"], permutes=False)

    def wait(self) -> None:
        """Nothing waits."""

    def seconds(self, fn: Callable[[], Any], repeats: int = 1, ahead: int = 0) -> float:
        """Seconds of a call."""
        start = time.perf_counter()
        fn()
        return time.perf_counter() - start

    def forget_peak(self) -> int:
        """Not counted."""
        return 0

    def peak(self) -> int:
        """Not counted."""
        return 0


def move(value: Any, machine: Gpu, dtype: torch.dtype) -> Any:
    """Inputs on the machine, floating ones of a type, pictures channels-last."""

    def leaf(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        x = x.to(machine.device)
        x = x.to(dtype) if x.is_floating_point() else x
        return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x

    return torch.utils._pytree.tree_map(leaf, value)


def empty_caches() -> None:
    """Give whatever compiles next in this process caches with nothing in them."""
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ[variable] = tempfile.mkdtemp()
