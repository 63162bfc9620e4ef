"""Machines: each target turns a graph of zoomc operators into something that runs.

A new target is a module with a class that follows :class:`Target` and one line in ``_TARGETS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .profile import Profile

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx

    from .constants import Constants

#: name → where its class is; imported only when asked for.
_TARGETS: dict[str, tuple[str, str]] = {
    "cpu": ("zoomc.targets.tvm.cpu", "CpuTarget"),
    "triton": ("zoomc.targets.triton.target", "TritonTarget"),
    "npu": ("zoomc.targets.tvm.npu.target", "NpuTarget"),
}

#: device type → target, for ``target="auto"``.
_BY_DEVICE = {"cpu": "cpu", "cuda": "triton"}


class Executable(Protocol):
    """What a target makes of one graph."""

    report: dict[str, Any]

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Run on the graph's placeholders in order; returns the graph's outputs in order."""
        ...

    def bind(self) -> None:
        """Take the weights as they are now."""
        ...

    def validate(self, *inputs: Tensor) -> list[dict[str, Any]]:
        """Each kernel's error against its reference on these inputs."""
        ...

    def profile(self, *inputs: Tensor) -> Profile:
        """Seconds a step spends in each kernel."""
        ...

    def source(self) -> list[tuple[str, str]]:
        """Each kernel's symbol and generated code."""
        ...


class Target(Protocol):
    """A machine to compile for."""

    name: str
    device: str

    def compute_dtype(self, asked: torch.dtype | None, gm: fx.GraphModule) -> torch.dtype | None:
        """The dtype to compute in when the user asked for one, or for the model's (None)."""
        ...

    def refuses(self, node: fx.Node, constant: set[fx.Node]) -> str | None:
        """Why a node cannot be lowered, given which of its inputs are constant; None if it can."""
        ...

    def weight_only(self, node: fx.Node, constant: set[fx.Node]) -> str | None:
        """Why what a layer with coded weights reads had better not be quantised; None if it had."""
        ...

    def cost(self, node: fx.Node, constant: set[fx.Node]) -> float:
        """What a node is expected to take, in units of its operator's; infinity if refused."""
        ...

    def compile(self, gm: fx.GraphModule, constants: Constants) -> Executable:
        """Lower and build ``gm``; ``constants`` evaluates and packs what depends on weights."""
        ...


def names() -> tuple[str, ...]:
    """Every target's name."""
    return tuple(_TARGETS)


def for_device(device: str) -> str | None:
    """The target that runs tensors of a device type, if any does."""
    return _BY_DEVICE.get(device)


def create(name: str, options: Any) -> Target:
    """The target of that name, set up with the compiler's options.

    Raises:
        ZoomcError: a subclass that says what is missing on this machine and what to do.
    """
    module, cls = _TARGETS[name]
    target: Target = getattr(importlib.import_module(module), cls)(options)
    return target


class Eager:
    """An executable that runs a graph as it is: the last resort, with its reason reported."""

    def __init__(self, call: Callable[..., Any], report: dict[str, Any]) -> None:
        self.report = report
        self._call = call

    def __call__(self, *inputs: Tensor) -> Any:
        """Run in eager."""
        return self._call(*inputs)

    def bind(self) -> None:
        """Nothing is packed: eager reads the weights themselves."""

    def validate(self, *_: Tensor) -> list[dict[str, Any]]:
        """Nothing is generated."""
        return []

    def profile(self, *_: Tensor) -> Profile:
        """Nothing is generated."""
        return Profile()

    def source(self) -> list[tuple[str, str]]:
        """Nothing is generated."""
        return []
