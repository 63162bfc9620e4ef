"""Run launches on tensors, and compile them ahead of time for a GPU that need not be there."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

import torch

from ..tir.run import bind
from .gpu import Gpu
from .kernel import Kernel, Launch, Slot, TensorSpec, candidates

#: Triton's names of dtypes, in signatures.
TYPES: dict[torch.dtype, str] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.bool: "i1",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


def execute(kernel: Kernel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Launch a kernel on tensors by slot name; with ``TRITON_INTERPRET=1`` in the interpreter."""
    for launch in kernel.launches:
        arguments = {
            name: tensors[value.name] if isinstance(value, Slot) else value
            for name, value in launch.arguments.items()
        }
        launch.function[launch.grid](**arguments, **launch.options)


def run(
    gpu: Gpu, op: str, *args: Any, choice: int = 0, device: str = "cpu", **kwargs: Any
) -> torch.Tensor:
    """Lower and run one operator call on tensors: what kernel tests stand on.

    Args:
        gpu: the GPU to generate for.
        op: the operator, as ``zoomc::conv2d``.
        *args: its arguments, on the CPU.
        choice: which candidate runs.
        device: where; ``cpu`` needs the interpreter.
        **kwargs: more of its arguments.
    """
    return evaluate(candidates(bind(op, *args, **kwargs), gpu)[choice], device)


def evaluate(kernel: Kernel, device: str = "cpu", result: str = "out") -> torch.Tensor:
    """Run a kernel whose values hold tensors; returns a result by its slot name."""
    tensors = {}
    for name, operand in kernel.operands.items():
        values = [value.source for value in operand.values]
        tensor = operand.tensor(values)
        assert (tuple(tensor.shape), tensor.dtype) == (operand.spec.shape, operand.spec.dtype), name
        tensors[name] = tensor.to(device).contiguous()
    # Garbage in scratch and result: a kernel that relies on zeros there fails its test.
    tensors |= {name: _garbage(spec).to(device) for name, spec in kernel.made.items()}
    execute(kernel, tensors)
    return tensors[result].cpu()


def _garbage(spec: TensorSpec) -> torch.Tensor:
    raw = torch.full((max(spec.nbytes, 1),), 0xA5, dtype=torch.uint8)[: spec.nbytes]
    return raw.view(spec.dtype).view(spec.shape)


def _signature(
    launch: Launch, specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[Any]]]:
    """Types, constants and alignments of a launch's parameters, as the just-in-time path has them.

    Tensors are aligned to 16 bytes; a number that is a multiple of 16 is compiled as one, and
    1 is compiled in, unless its parameter takes any number.
    """
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: dict[tuple[int], list[Any]] = {}
    for index, parameter in enumerate(launch.function.params):
        value = launch.arguments[parameter.name]
        if isinstance(value, Slot):
            types[parameter.name] = "*" + TYPES[specs[value.name].dtype]
            aligned[(index,)] = [["tt.divisibility", 16]]
            continue
        special = type(value) is int and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and value == 1):
            types[parameter.name] = "constexpr"
            constants[parameter.name] = value
        else:
            types[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if special and value % 16 == 0:
                aligned[(index,)] = [["tt.divisibility", 16]]
    return types, constants, aligned


def code_key(launch: Launch, specs: Mapping[str, TensorSpec]) -> Hashable:
    """What determines a launch's code: equal keys compile to the same."""
    types, constants, aligned = _signature(launch, specs)
    return (
        launch.function.fn.__qualname__,
        tuple(types.items()),
        tuple((name, repr(value)) for name, value in constants.items()),
        tuple(aligned),
        launch.warps,
        launch.stages,
        *([] if launch.registers is None else [launch.registers]),
    )


def symbol(launch: Launch, specs: Mapping[str, TensorSpec]) -> str:
    """A name for a launch's code, the same for equal code."""
    digest = hashlib.sha256(repr(code_key(launch, specs)).encode()).hexdigest()[:10]
    return f"{launch.function.fn.__name__}_{digest}"


def compile_for(gpu: Gpu, launch: Launch, specs: Mapping[str, TensorSpec]) -> Any:
    """Compile one launch for a GPU; the result's ``asm`` and ``metadata`` tell what came of it.

    Args:
        gpu: the GPU; none need be installed.
        launch: what to compile.
        specs: specs of the tensors its slots name.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, aligned = _signature(launch, specs)
    source = ASTSource(launch.function, types, constexprs=constants, attrs=aligned)
    target = GPUTarget(gpu.kind, gpu.arch, gpu.warp)
    return triton.compile(source, target=target, options=launch.options)
