"""Look inside a compiled graph: every kernel against its reference, and every kernel's time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import tvm
import tvm_ffi
from torch import fx
from tvm import relax

from ...kernels.tir.kernel import Kernel, TensorSpec
from ...kernels.tir.run import as_storage
from ...kernels.tir.stages import parts
from ..constants import Constants
from ..profile import Profile
from ..tensors import dense
from .plan import Plan


def validate(
    gm: fx.GraphModule,
    plan: Plan,
    function: Callable[[Kernel], Callable[..., None]],
    constants: Constants,
    inputs: Sequence[torch.Tensor],
) -> list[dict[str, Any]]:
    """Run operator by operator: each kernel on the reference's inputs, beside the reference.

    Returns:
        one row a kernel: node, kernel name, relative error (2-norm), whether finite values agree.
    """
    values: dict[fx.Node, Any] = dict(
        zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True)
    )
    rows = []
    for node in gm.graph.nodes:
        if node.op not in {"call_function", "get_attr"}:
            continue
        if node in plan.constant:
            values[node] = constants.evaluate(node)
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        with torch.no_grad():
            values[node] = node.target(*args, **kwargs)
        if node in plan.kernels:
            kernel = plan.kernels[node]
            actual = run_alone(kernel, function(kernel), constants, values)
            rows.append({"node": node.name, "kernel": kernel.name, **compare(actual, values[node])})
    return rows


def run_alone(
    kernel: Kernel,
    function: Callable[..., None],
    constants: Constants,
    values: dict[fx.Node, torch.Tensor],
) -> torch.Tensor:
    """One kernel on given values."""
    operands = [
        constants.packed(operand)
        if all(v.constant for v in operand.values)
        else dense(values[operand.values[0].source])
        for operand in kernel.operands
    ]
    out, *scratch = (empty(spec) for spec in (kernel.out, *kernel.scratch))
    function(*(as_storage(t) for t in (*operands, out, *scratch)))
    return out


def empty(spec: TensorSpec) -> torch.Tensor:
    """An uninitialised tensor."""
    return torch.empty(spec.shape, dtype=spec.dtype)


def compare(actual: torch.Tensor, expected: torch.Tensor) -> dict[str, Any]:
    """Relative error over the finite values, and whether both are finite in the same places."""
    finite = expected.isfinite()
    a, e = actual[finite].double(), expected[finite].double()
    norm = float(e.norm())
    return {
        "error": float((a - e).norm()) / (norm or 1.0),
        "finite": bool(torch.equal(finite, actual.isfinite())),
    }


def profile(
    executable: relax.VMExecutable,
    run: Callable[[relax.VirtualMachine], None],
    rounds: int,
    kernels: Mapping[str, Kernel],
) -> Profile:
    """Median seconds over all calls in one step; ``kernels`` are those of the symbols."""
    machine = relax.VirtualMachine(executable, tvm.cpu(), memory_cfg="pooled")
    run(machine)
    steps: list[dict[tuple[str, str], float]] = []
    started = 0.0

    def instrument(_: Any, symbol: str, before: bool, __: Any, *args: Any) -> int:
        nonlocal started
        if before:
            started = time.perf_counter()
            return 0
        seconds, step = time.perf_counter() - started, steps[-1]
        step[symbol, ""] = step.get((symbol, ""), 0.0) + seconds
        kernel = kernels.get(symbol)
        if kernel and kernel.stages:
            stamps = torch.utils.dlpack.from_dlpack(args[len(kernel.operands) + 1]).tolist()
            for name, part in parts(tuple(kernel.stages), stamps).items():
                step[symbol, name] = step.get((symbol, name), 0.0) + seconds * part
        return 0

    machine.set_instrument(tvm_ffi.convert(instrument))
    for _ in range(rounds):
        steps.append({})
        run(machine)
    result = Profile()
    for symbol, name in steps[0]:
        median = sorted(step.get((symbol, name), 0.0) for step in steps)[rounds // 2]
        if name:
            result.stages.setdefault(symbol, {})[name] = median
        else:
            result.kernels[symbol] = median
    return result
