"""Nodes without a kernel: groups of them, compiled by Inductor, or run in eager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...kernels.errors import first_line


@dataclass
class Leftovers:
    """Nodes that run as one call.

    Attributes:
        nodes: what it computes, in order.
        inputs: values it reads that are computed elsewhere, in parameter order.
        outputs: values others read, in result order.
        reasons: for each node, why it has no kernel; empty for a view that came along.
        reason: why the group runs in eager; None once Inductor has compiled it.
    """

    nodes: list[fx.Node]
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    reasons: list[str]
    reason: str | None = "not compiled yet"
    call: Callable[..., Sequence[Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.call = self.module()

    @property
    def how(self) -> str:
        """How it runs, for people."""
        return f"in eager: {self.reason}" if self.reason else "by Inductor"

    @classmethod
    def of(cls, nodes: Sequence[fx.Node], reasons: Sequence[str]) -> Leftovers:
        """A group of nodes of one graph, in an order they can run in."""
        inside = set(nodes)
        inputs = dict.fromkeys(
            source for node in nodes for source in node.all_input_nodes if source not in inside
        )
        outputs = [n for n in nodes if any(user not in inside for user in n.users)]
        return cls(list(nodes), list(inputs), outputs, list(reasons))

    def module(self) -> fx.GraphModule:
        """The group as a graph of its own."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for i, node in enumerate(self.inputs):
            copies[node] = graph.placeholder(f"x{i}")
        for node in self.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in self.outputs))
        return fx.GraphModule(torch.nn.Module(), graph)

    def compile(self, inductor: bool) -> None:
        """Let Inductor compile the group; whatever it cannot take runs in eager."""
        values = [node.meta.get("val") for node in (*self.inputs, *self.outputs)]
        if not inductor:
            self.reason = "Inductor is not asked"
        elif not all(isinstance(value, torch.Tensor) for value in values):
            self.reason = "a value that is not one tensor"
        else:
            # Values here are dense whatever strides they were captured with, and zeros index
            # nothing out of bounds, which on a GPU would end the process's use of it.
            examples: list[Any] = [
                torch.zeros(v.shape, dtype=v.dtype, device=v.device)
                for v in values[: len(self.inputs)]
            ]
            try:
                # Graphs of its own could not be recorded as a part of the step's.
                compiled = torch._inductor.compile(
                    self.module(), examples, {"triton.cudagraphs": False}
                )
                with torch.no_grad():
                    compiled(*examples)  # what it does at its first call, it does now
            except Exception as error:
                self.reason = f"Inductor cannot compile it: {first_line(error)}"
            else:
                self.call, self.reason = compiled, None
