"""Time the few best choices of each kernel on the GPU and put the fastest first."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable
from typing import Any

import torch

from ...kernels.triton.gpu import Gpu
from ...kernels.triton.kernel import Kernel
from ...kernels.triton.run import execute
from .build import all_fit, compile_choices
from .executable import elapsed
from .plan import Plan

#: Choices timed of each kernel.
TIMED = 4

#: What was found, by problem: the index of the fastest choice. Kept while the process lives.
_FOUND: dict[Hashable, int] = {}


def tune(
    plan: Plan,
    gpu: Gpu,
    tensors: Callable[[Kernel], dict[str, torch.Tensor]] | None = None,
    clock: Callable[[Callable[[], None]], float] | None = None,
) -> int:
    """Reorder every kernel's choices, the fastest first.

    A choice wins only if its result agrees with the first one's, which the tests know. All of a
    kernel's choices take the same operands, so weights that are packed stay as they are.

    Args:
        plan: whose kernels.
        gpu: the GPU at hand.
        tensors: makes a kernel's tensors to run on; random ones if None.
        clock: seconds of a call; the GPU's own if None.

    Returns:
        for how many kernels another choice than the first was faster.
    """
    changed = 0
    fits: dict[Hashable, bool] = {}
    for kernels in plan.kernels.values():
        same = [k for k in kernels[:TIMED] if _operands(k) == _operands(kernels[0])]
        if len(same) < 2:
            continue
        key = (gpu.name, *map(_identity, same))
        if key not in _FOUND:
            if clock is None:
                compile_choices(same, gpu, fits)
                same = [k for k in same if all_fit(k, fits)] or same[:1]
            _FOUND[key] = kernels.index(_fastest(same, tensors or _random, clock))
        best = kernels[_FOUND[key]]
        if best is not kernels[0]:
            kernels.remove(best)
            kernels.insert(0, best)
            changed += 1
    return changed


def _operands(kernel: Kernel) -> dict[str, Hashable]:
    """What a kernel's operands are packed as."""
    return {n: o.pack.key if o.pack else None for n, o in kernel.operands.items()}


def _identity(kernel: Kernel) -> Hashable:
    """What a kernel's time depends on."""
    launches = ((x.function.fn, x.grid, repr(sorted(x.arguments.items()))) for x in kernel.launches)
    return (*launches, tuple(kernel.specs.items()))


def _random(kernel: Kernel) -> dict[str, torch.Tensor]:
    tensors = {}
    generator = torch.Generator().manual_seed(0)
    for name, spec in kernel.specs.items():
        if spec.dtype.is_floating_point:
            value = torch.randn(spec.shape, generator=generator).to(spec.dtype)
        else:
            value = torch.randint(0, 2, spec.shape, generator=generator).to(spec.dtype)
        tensors[name] = value.cuda()
    return tensors


def _fastest(
    kernels: list[Kernel],
    make: Callable[[Kernel], dict[str, torch.Tensor]],
    clock: Callable[[Callable[[], None]], float] | None,
) -> Kernel:
    shared = make(kernels[0])
    expected: Any = None
    times: list[tuple[float, int]] = []
    for index, kernel in enumerate(kernels):
        tensors = {name: shared[name] for name in kernel.operands}
        for name, spec in {"out": kernel.out, **kernel.scratch}.items():
            tensors[name] = torch.empty(spec.shape, dtype=spec.dtype, device=shared["out"].device)

        def go(kernel: Kernel = kernel, tensors: dict[str, torch.Tensor] = tensors) -> None:
            execute(kernel, tensors)

        go()
        result = tensors["out"].float()
        if expected is None:
            expected = result
        elif not agree(result, expected):
            continue
        measure = clock or (lambda fn: elapsed(fn, interpreted=False))
        times.append((statistics.median(measure(go) for _ in range(5)), index))
    return kernels[min(times)[1]]


def agree(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results differ by rounding alone."""
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return False
    error = (actual[finite] - expected[finite]).norm()
    return bool(error <= 1e-2 * expected[finite].norm() + 1e-6)
