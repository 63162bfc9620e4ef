"""Build a kernel and time it, on this machine or, by :mod:`.remote`, on another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import tvm
import tvm_ffi

from ...kernels.tir.isa import Isa
from ...kernels.tir.kernel import STORAGE, Kernel, TensorSpec
from ...kernels.tir.run import as_storage
from .tuned import machine

#: TVM's own: evicts the tensors it is given, but for the first, from every cache.
FLUSH = "cache_flush_cpu_non_first_arg"


def build(kernel: Kernel, isa: Isa) -> tvm.runtime.Module:
    """A kernel as a module whose function is ``main``."""
    function = kernel.build().with_attr("global_symbol", "main")
    target = tvm.target.Target(isa.target)
    return tvm.compile(tvm.IRModule({"main": function}), target=target).mod


class Device:
    """This machine.

    Attributes:
        isa: the path kernels are generated for.
        machine: what entries of a store are found by.
    """

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
        self.machine = machine(isa)
        self._flush: Any = tvm_ffi.get_global_func(FLUSH)

    def put(self, tensor: torch.Tensor) -> Any:
        """A copy of a tensor that kernels can take."""
        return tvm.runtime.tensor(as_storage(tensor.contiguous()).numpy(), self._cpu())

    def load(self, module: tvm.runtime.Module) -> tvm.runtime.Module:
        """A module that :func:`build` made, ready to run here."""
        return module

    def candidate(
        self, kernel: Kernel, module: tvm.runtime.Module, operands: Sequence[Any]
    ) -> Candidate:
        """A kernel built as ``module``, ready to be measured on operands of :meth:`put`."""
        return Candidate(kernel, self.load(module), operands, self)

    def timer(
        self, module: tvm.runtime.Module, arguments: Sequence[Any], constants: Sequence[Any]
    ) -> Callable[[], float]:
        """Gives the seconds of one call that finds the constants in no cache, as a step does."""
        run = module["main"]

        def once() -> float:
            self._flush(arguments[0], *constants)
            start = time.perf_counter()
            run(*arguments)
            return time.perf_counter() - start

        return once

    def _cpu(self) -> Any:
        return tvm.cpu()

    def empty(self, spec: TensorSpec) -> Any:
        """An uninitialised tensor."""
        return tvm.runtime.empty(spec.shape, STORAGE[spec.dtype], self._cpu())


class Candidate:
    """A kernel on a device, on operands that it may share with other candidates."""

    def __init__(
        self, kernel: Kernel, module: tvm.runtime.Module, operands: Sequence[Any], device: Device
    ) -> None:
        self.kernel = kernel
        self._out = device.empty(kernel.out)
        work = [device.empty(spec) for spec in kernel.scratch]
        arguments = [*operands, self._out, *work]
        self._run = lambda: module["main"](*arguments)
        fixed = [all(v.constant for v in operand.values) for operand in kernel.operands]
        constants = [x for x, constant in zip(operands, fixed, strict=True) if constant]
        #: Seconds of one call.
        self.seconds = device.timer(module, arguments, constants)

    def result(self) -> torch.Tensor:
        """What the kernel computes."""
        self._run()
        return torch.from_numpy(self._out.numpy()).view(self.kernel.out.dtype)
