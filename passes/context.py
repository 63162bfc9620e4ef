"""What a run of the passes is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx

#: Says of a node, and the set of its constant inputs, why the target will not have it as it is.
Refuses = Callable[[fx.Node, set[fx.Node]], str | None]

#: What a layer's weight is known by in every graph of a model: its name and shape.
Key = tuple[str, tuple[int, ...]]

#: Second moments of what products read.
Moments = dict[Key, torch.Tensor]

#: The least and the largest value that products read, and 0: fp32 ``(2,)``.
Ranges = dict[Key, torch.Tensor]

#: What the norm before a weight is divided by, and the weight's input channels are multiplied by:
#: fp32, one a channel; None where nothing is gained.
Smoothing = dict[Key, torch.Tensor | None]

#: Says of such a node what it is expected to take, in units of its operator's.
Cost = Callable[[fx.Node, set[fx.Node]], float]


def _costs_nothing(_: fx.Node, __: set[fx.Node]) -> float:
    return 0.0


def _nothing(_: fx.Node, __: set[fx.Node]) -> str | None:
    return None


@dataclass
class Context:
    """The settings of one run.

    Attributes:
        dtype: floating type to compute in; None keeps the model's own.
        weights: how weights are stored, as :class:`zoomc.kernels.weights.Encoding` spells it.
        attention: what attention multiplies, as :data:`.precision.CHOICES` spells it.
        max_error: relative error of the outputs (2-norm, the worst of them) on ``inputs`` that
            the encoding and attention may cause; None means any.
        moments: what layers read, by weight and shape, where codes are chosen by it: graphs of one
            model share it, so that a weight has the same codes in each. What is missing is found
            by running ``inputs``. None leaves activations out.
        ranges: the same for the scales of activations. None leaves it to every call to find
            scales for what it reads.
        smoothing: the same for what norms give the weights behind them. None leaves norms alone,
            and so do ``ranges``: those of smoothed layers would be others.
        inputs: one tensor for each placeholder; needed for ``max_error``, ``moments``, ``ranges``
            and ``smoothing`` only.
        refuses: why the target cannot run a node, given which of its inputs are constant; None
            if it can.
        weight_only: why the target would rather not quantise what a layer with coded weights
            reads, given which nodes before it are constant; None where it would.
        cost: what a node is expected to take; infinity where the target refuses it.
        fuel: how many rewrites may still happen; None means no limit. Counted down, so a wrong
            result can be bisected to the one rewrite that causes it.
        dump: folder that receives the graph's text after every pass.
        validate: called with the graph before the first pass and after each; returns the
            relative error of its outputs against the first call's.
    """

    dtype: torch.dtype | None = None
    weights: str = "keep"
    attention: str = "keep"
    max_error: float | None = None
    moments: Moments | None = None
    ranges: Ranges | None = None
    smoothing: Smoothing | None = None
    inputs: Sequence[torch.Tensor] = ()
    refuses: Refuses = _nothing
    weight_only: Refuses = _nothing
    cost: Cost = _costs_nothing
    fuel: int | None = None
    dump: Path | None = None
    validate: Callable[[fx.GraphModule], float] | None = None

    def spend(self) -> bool:
        """Ask for one rewrite; False once the fuel is used up."""
        if self.fuel is None:
            return True
        if self.fuel <= 0:
            return False
        self.fuel -= 1
        return True


@dataclass(frozen=True)
class Layer:
    """How one layer's weight is stored.

    Attributes:
        node: the linear or convolution in the graph.
        weight: the names of the model's weights it is made of.
        shape: the weight's.
        encoding: as :class:`zoomc.kernels.weights.Encoding` spells it.
        bits: what it takes to store, scales included.
        reason: why it is not the encoding asked for; else empty.
        weight_only: why what it reads is not quantised although its weight is; else empty.
        bounds: the ends of what it reads, where scales were to be known in advance and are.
        dynamic: why they are not, where they were to be; else empty.
        smoothed: input channels whose size the norm before shares with the weight.
        error: the layer's own relative error on the measured inputs, if measured.
        errors: the same with each encoding that was tried, by its spelling.
    """

    node: str
    weight: str
    shape: tuple[int, ...]
    encoding: str
    bits: int
    reason: str = ""
    weight_only: str = ""
    bounds: tuple[float, float] | None = None
    dynamic: str = ""
    smoothed: int = 0
    error: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Attention:
    """What one attention multiplies.

    Attributes:
        node: in the graph.
        shape: batch, heads, queries, keys and size of a head.
        arithmetic: as :data:`zoomc.kernels.attention.op.ARITHMETICS` spells it.
        reason: why it is not the one asked for; else empty.
        error: its own relative error on the measured inputs, if measured.
    """

    node: str
    shape: tuple[int, int, int, int, int]
    arithmetic: str
    reason: str = ""
    error: float | None = None


@dataclass
class PassRecord:
    """What one pass did.

    Attributes:
        name: the pass.
        hits: rewrites by rule.
        milliseconds: spent.
        nodes: left in the graph.
        error: of the graph after it, if validated.
        layers: how weights are stored, after the pass that encodes them.
        attentions: what each attention multiplies, after the same pass.
        measured: the error that both cause, where a budget was given.
    """

    name: str
    hits: dict[str, int] = field(default_factory=dict)
    milliseconds: float = 0.0
    nodes: int = 0
    error: float | None = None
    layers: list[Layer] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    measured: float | None = None

    def hit(self, rule: str) -> None:
        """Count one application of ``rule``."""
        self.hits[rule] = self.hits.get(rule, 0) + 1


@dataclass
class Trace:
    """What every pass did, in order."""

    passes: list[PassRecord] = field(default_factory=list)

    @property
    def rewrites(self) -> int:
        """Rewrites in all: the fuel that repeats this run."""
        return sum(sum(record.hits.values()) for record in self.passes)

    @property
    def layers(self) -> list[Layer]:
        """The layers that could take coded weights, of whichever pass looked at them."""
        return [layer for record in self.passes for layer in record.layers]

    def of(self, name: str) -> PassRecord:
        """What the last pass of that name did."""
        return next(record for record in reversed(self.passes) if record.name == name)

    def hits(self, rule: str) -> int:
        """How often the rule of that name applied, over all passes."""
        return sum(record.hits.get(rule, 0) for record in self.passes)

    def __str__(self) -> str:
        lines = []
        for record in self.passes:
            error = "" if record.error is None else f"  error {record.error:.1e}"
            lines.append(
                f"{record.name}: {record.nodes} nodes, {record.milliseconds:.0f} ms{error}"
            )
            lines += [f"  {count:5d}  {rule}" for rule, count in record.hits.items()]
        return "\n".join(lines)
