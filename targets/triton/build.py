"""Compile kernels for the GPU at hand, many at a time, before the first call needs them."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from ...kernels.triton.gpu import Gpu
from ...kernels.triton.kernel import Kernel, Launch, Slot
from ...kernels.triton.run import code_key
from .plan import Plan


def compile_kernels(plan: Plan, gpu: Gpu) -> None:
    """Compile the first choice of every kernel; one the GPU cannot take gives way to the next.

    The last choice stays whatever becomes of it, so that its error is seen when it runs.
    """
    fits: dict[Hashable, bool] = {}
    waiting = list(plan.kernels.values())
    while waiting:
        compile_choices([kernels[0] for kernels in waiting], gpu, fits)
        waiting = [k for k in waiting if len(k) > 1 and not all_fit(k[0], fits)]
        for kernels in waiting:
            del kernels[0]


def compile_choices(kernels: Sequence[Kernel], gpu: Gpu, fits: dict[Hashable, bool]) -> None:
    """Compile kernels in parallel and note by code, in ``fits``, which the GPU can take."""
    device = torch.cuda.current_device()
    codes = {
        code_key(launch, kernel.specs): (launch, kernel)
        for kernel in kernels
        for launch in kernel.launches
    }
    new = {key: code for key, code in codes.items() if key not in fits}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda code: _fits(code[0], code[1], gpu, device), new.values())
        fits.update(zip(new, results, strict=True))


def all_fit(kernel: Kernel, fits: dict[Hashable, bool]) -> bool:
    """Whether all of a kernel's launches were found to fit."""
    return all(fits[code_key(launch, kernel.specs)] for launch in kernel.launches)


def _fits(launch: Launch, kernel: Kernel, gpu: Gpu, device: int) -> bool:
    """Compile one launch as its first call would; whether it compiles and fits shared memory."""
    from triton.runtime.jit import MockTensor

    specs = kernel.specs
    arguments = {
        name: MockTensor(specs[value.name].dtype) if isinstance(value, Slot) else value
        for name, value in launch.arguments.items()
    }
    try:
        with torch.cuda.device(device):
            compiled = launch.function.run(
                grid=launch.grid, warmup=True, **arguments, **launch.options
            )
    except Exception:
        return False
    return bool(compiled.metadata.shared <= gpu.shared)
