"""One Relax module from a planned graph: kernels in order, memory planned by TVM."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from torch import fx
from tvm import relax

from ...kernels.tir.kernel import STORAGE, Kernel, Operand, TensorSpec
from .plan import Plan, spec_of

#: TVM's block builders share one stack among all threads.
_BUILDING = threading.Lock()


@dataclass
class Segment:
    """Consecutive nodes that run as one Relax function.

    Attributes:
        name: the function's name.
        nodes: what it computes, in order.
        inputs: values it reads that are computed elsewhere, in parameter order.
        outputs: values others read, in result order.
        constants: packed constants, the parameters after the inputs.
        alone: the placeholder it reads if its results are kept while that stays the same.
    """

    name: str
    nodes: list[fx.Node]
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    constants: list[Operand]
    alone: fx.Node | None = None


def type_of(spec: TensorSpec) -> relax.TensorType:
    """The Relax type of a tensor."""
    return relax.TensorType(spec.shape, STORAGE[spec.dtype])


def emit(
    builder: relax.BlockBuilder,
    segment: Segment,
    plan: Plan,
    symbol: Callable[[Kernel], str],
) -> None:
    """Add a segment's function to the module; ``symbol`` names a kernel's compiled function."""
    variables: dict[fx.Node, Any] = {
        node: relax.Var(f"in{i}", type_of(spec_of(node))) for i, node in enumerate(segment.inputs)
    }
    constants = {
        id(operand): relax.Var(f"w{i}", type_of(operand.spec))
        for i, operand in enumerate(segment.constants)
    }
    parameters = [*variables.values(), *constants.values()]
    with builder.function(segment.name, parameters):
        with builder.dataflow():
            for node in segment.nodes:
                if node in plan.views:
                    variables[node] = builder.emit(
                        relax.op.reshape(variables[plan.views[node]], spec_of(node).shape)
                    )
                    continue
                kernel = plan.kernels[node]
                operands = [
                    constants[id(o)] if id(o) in constants else variables[o.values[0].source]
                    for o in kernel.operands
                ]
                results = [type_of(kernel.out), *map(type_of, kernel.scratch)]
                call = builder.emit(
                    relax.call_dps_packed(
                        symbol(kernel), operands, out_ty=results if kernel.scratch else results[0]
                    )
                )
                variables[node] = (
                    builder.emit(relax.TupleGetItem(call, 0)) if kernel.scratch else call
                )
            result = builder.emit_output(relax.Tuple([variables[n] for n in segment.outputs]))
        builder.emit_func_output(result)


def build(
    segments: Sequence[Segment],
    plan: Plan,
    symbol: Callable[[Kernel], str],
    libraries: Sequence[Any],
    target: tvm.target.Target,
) -> relax.VMExecutable:
    """Compile the segments into code for the virtual machine, linked with the kernels."""
    with _BUILDING:
        builder = relax.BlockBuilder()
        for segment in segments:
            emit(builder, segment, plan, symbol)
    executable = tvm.compile(builder.get(), target=target)
    # TVM adds an empty C module where a graph has no generated code of its own. It would make the
    # virtual machine emit every kernel a second time, as objects for the system's C compiler:
    # slow, a tool the user may not have, and not safe from two threads.
    executable.mod.clear_imports()
    for library in libraries:
        executable.mod.import_module(library.mod)
    return executable
