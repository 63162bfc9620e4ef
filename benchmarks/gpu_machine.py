"""The GPU a benchmark runs on, and a stand-in by which every line can be tried without one."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
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
            "capability": f"{found.major}.{found.minor}",
            "processors": found.multi_processor_count,
            "memory_gb": found.total_memory / 1e9,
            "triton": triton.__version__,
            "cuda": torch.version.cuda or torch.version.hip,
            **_asked(str(getattr(found, "uuid", ""))),
            **_software(),
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

    @contextlib.contextmanager
    def profiled(self) -> Iterator[None]:
        """What a profiler looks at that is told to wait for its mark."""
        torch.cuda.profiler.start()
        try:
            yield
        finally:
            torch.cuda.profiler.stop()

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
        return {"machine": self.name, **_software()}

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

    def profiled(self) -> contextlib.AbstractContextManager[None]:
        """By nobody."""
        return contextlib.nullcontext()

    def forget_peak(self) -> int:
        """Not counted."""
        return 0

    def peak(self) -> int:
        """Not counted."""
        return 0


def _software() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _asked(uuid: str) -> dict[str, str]:
    """What the driver says of a GPU; nothing where it cannot be asked."""
    fields = "driver_version,power.limit,clocks.max.sm,clocks.max.mem,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            [*command, "-i", f"GPU-{uuid}"], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields.split(","), done.stdout.strip().split(", "), strict=False))


def move(value: Any, machine: Gpu, dtype: torch.dtype) -> Any:
    """Inputs on the machine, floating ones of a type, pictures channels-last."""

    def leaf(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        x = x.to(machine.device)
        x = x.to(dtype) if x.is_floating_point() else x
        return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x

    return torch.utils._pytree.tree_map(leaf, value)


@contextlib.contextmanager
def empty_caches() -> Iterator[None]:
    """Give whatever compiles in the block caches with nothing in them."""
    with contextlib.ExitStack() as stack:
        for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            os.environ[variable] = stack.enter_context(folder)
        yield
