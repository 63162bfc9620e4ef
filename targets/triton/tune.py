"""Time the few best choices of each kernel on the GPU and put the fastest first."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import fx

from ...kernels.triton.gpu import Gpu
from ...kernels.triton.kernel import Kernel, Slot
from ...kernels.triton.run import execute
from ..tuning import Entry, Problem, Store, problem, version
from .build import Built, all_fit, as_built, compile_choices
from .executable import elapsed
from .plan import ExtraOf, Plan

#: Choices timed of each kernel.
TIMED = 4


def recall(plan: Plan, gpu: Gpu, store: Store) -> int:
    """Put the choices first that a store knows to be the fastest; returns of how many kernels."""
    if not len(store):
        return 0
    found = 0
    for node, kernels in plan.kernels.items():
        entry = store.find(_problem(node, plan, gpu))
        if entry is not None and entry.kernels == version():
            found += _put_first(
                kernels, next((k for k in kernels if fields(k) == entry.plan), None)
            )
    return found


def tune(
    plan: Plan,
    gpu: Gpu,
    store: Store,
    tensors: Callable[[Kernel], dict[str, torch.Tensor]] | None = None,
    clock: Callable[[Callable[[], None]], float] | None = None,
) -> int:
    """Put every kernel's fastest choice first, measuring those that the store does not know.

    A choice wins only if its result agrees with the first one's, which the tests know. All of a
    kernel's choices take the same operands, so weights that are packed stay as they are.

    Args:
        plan: whose kernels.
        gpu: the GPU at hand.
        store: where what is found is kept.
        tensors: makes a kernel's tensors to run on; random ones if None.
        clock: seconds of a call; the GPU's own if None.

    Returns:
        for how many kernels another choice than the first was faster.
    """
    changed = 0
    built: Built = {}
    for node, kernels in plan.kernels.items():
        same = [k for k in kernels[:TIMED] if _operands(k) == _operands(kernels[0])]
        problem = _problem(node, plan, gpu)
        entry = store.find(problem)
        if len(same) < 2 or (entry is not None and entry.kernels == version()):
            continue
        if clock is None:
            compile_choices(same, gpu, built)
            same = [k for k in same if all_fit(k, built)] or same[:1]
            ready = {id(kernel): as_built(kernel, built) for kernel in same}
            kernels[:] = [ready.get(id(kernel), kernel) for kernel in kernels]
            same = list(ready.values())
        times = _times(same, tensors or _random, clock)
        best = min(times, key=times.__getitem__)
        chosen = fields(same[best])
        store.add(Entry(problem, version(), chosen, times[best], times[0], len(times)))
        changed += _put_first(kernels, same[best])
    return changed + recall(plan, gpu, store)


def fields(kernel: Kernel) -> dict[str, Any]:
    """What tells a choice from others, as plain values: its launches."""
    launches = [
        {"function": launch.function.__name__, "grid": launch.grid}
        | {name: x for name, x in launch.arguments.items() if not isinstance(x, Slot)}
        | {"warps": launch.warps, "stages": launch.stages}
        for launch in kernel.launches
    ]
    plain: dict[str, Any] = json.loads(json.dumps({"launches": launches}, default=str))
    return plain


def _put_first(kernels: list[Kernel], best: Kernel | None) -> bool:
    """Move a choice to the front; whether that changes anything."""
    if best is None or best is kernels[0]:
        return False
    kernels.remove(best)
    kernels.insert(0, best)
    return True


def _problem(node: fx.Node, plan: Plan, gpu: Gpu) -> Problem:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a GPU"
    return problem(plan.call(node), f"{name}, {gpu.name}")


def _operands(kernel: Kernel) -> dict[str, Hashable]:
    """What a kernel's operands are packed as."""
    return {n: o.pack.key if o.pack else None for n, o in kernel.operands.items()}


def _random(kernel: Kernel) -> dict[str, torch.Tensor]:
    tensors = {}
    generator = torch.Generator().manual_seed(0)
    # Given moments hold sums of squares: of negative ones all results would be NaN, and agree.
    given = {n for n, o in kernel.operands.items() if isinstance(o.values[0].source, ExtraOf)}
    for name, spec in kernel.specs.items():
        if spec.dtype.is_floating_point:
            value = torch.randn(spec.shape, generator=generator).to(spec.dtype)
            value = value.abs() if name in given else value
        else:
            value = torch.randint(0, 2, spec.shape, generator=generator).to(spec.dtype)
        tensors[name] = value.cuda()
    return tensors


def _times(
    kernels: list[Kernel],
    make: Callable[[Kernel], dict[str, torch.Tensor]],
    clock: Callable[[Callable[[], None]], float] | None,
) -> dict[int, float]:
    """Seconds of the choices that agree with the first, by their index."""
    shared = make(kernels[0])
    expected: Any = None
    times: dict[int, float] = {}
    for index, kernel in enumerate(kernels):
        tensors = {name: shared[name] for name in kernel.operands}
        for name, spec in kernel.made.items():
            tensors[name] = torch.empty(spec.shape, dtype=spec.dtype, device=shared["out"].device)

        def go(kernel: Kernel = kernel, tensors: dict[str, torch.Tensor] = tensors) -> None:
            execute(kernel, tensors)

        go()
        results = [tensors[name].float() for name in ("out", *kernel.extras)]
        if expected is None:
            expected = results
        elif not all(map(agree, results, expected)):
            continue
        measure = clock or (lambda fn: elapsed(fn, interpreted=False))
        times[index] = statistics.median(measure(go) for _ in range(5))
    return times


def agree(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results differ by rounding alone."""
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return False
    error = (actual[finite] - expected[finite]).norm()
    return bool(error <= 1e-2 * expected[finite].norm() + 1e-6)
