"""Compile kernels for the GPU at hand, many at a time, before the first call needs them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ...kernels.triton.gpu import Gpu
from ...kernels.triton.kernel import Kernel, Launch, Slot
from ...kernels.triton.run import code_key
from ...kernels.triton.spills import settled
from .plan import Plan

#: By code, the launch that is to have it, registers settled; None where the GPU cannot take it.
Built = dict[Hashable, Launch | None]


def compile_kernels(plan: Plan, gpu: Gpu) -> None:
    """Compile the first choice of every kernel; one the GPU cannot take gives way to the next.

    The last choice stays whatever becomes of it, so that its error is seen when it runs.
    """
    built: Built = {}
    waiting = list(plan.kernels.values())
    while waiting:
        compile_choices([kernels[0] for kernels in waiting], gpu, built)
        refused = []
        for kernels in waiting:
            if len(kernels) == 1 or all_fit(kernels[0], built):
                kernels[0] = as_built(kernels[0], built)
            else:
                del kernels[0]
                refused.append(kernels)
        waiting = refused


def compile_choices(kernels: Sequence[Kernel], gpu: Gpu, built: Built) -> None:
    """Compile kernels in parallel and note in ``built`` what the GPU can take."""
    device = torch.cuda.current_device()
    codes = {
        code_key(launch, kernel.specs): (launch, kernel)
        for kernel in kernels
        for launch in kernel.launches
    }
    new = {key: code for key, code in codes.items() if key not in built}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda code: _build(code[0], code[1], gpu, device), new.values())
        built.update(zip(new, results, strict=True))


def all_fit(kernel: Kernel, built: Built) -> bool:
    """Whether all of a kernel's launches were found to fit."""
    return all(built[code_key(launch, kernel.specs)] for launch in kernel.launches)


def as_built(kernel: Kernel, built: Built) -> Kernel:
    """A kernel with its launches' registers settled."""
    launches = tuple(built[code_key(launch, kernel.specs)] or launch for launch in kernel.launches)
    return dataclasses.replace(kernel, launches=launches)


def _build(launch: Launch, kernel: Kernel, gpu: Gpu, device: int) -> Launch | None:
    """Compile one launch as its first call would; None if that fails or needs too much memory."""
    from triton.runtime.jit import MockTensor

    specs = kernel.specs
    arguments = {
        name: MockTensor(specs[value.name].dtype) if isinstance(value, Slot) else value
        for name, value in launch.arguments.items()
    }

    def build(launch: Launch) -> Any:
        with torch.cuda.device(device):
            return launch.function.run(grid=launch.grid, warmup=True, **arguments, **launch.options)

    try:
        found, code = settled(launch, build)
    except Exception:
        return None
    return found if code.metadata.shared <= gpu.shared else None
