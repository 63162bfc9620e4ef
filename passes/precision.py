"""What attention multiplies: the operands as they are, bf16, or int8."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx
from zoomc.kernels.attention.op import ARITHMETICS

from .constants import constant_inputs
from .context import Attention, Context, PassRecord
from .ops import ATTENTION
from .rewrite import Editor, arguments, change, dtype, is_call, shape

#: What may be asked for: ``auto`` is the fastest, if it is not the most exact.
CHOICES = ("auto", *ARITHMETICS)

#: What less exact arithmetic must win at least, of the time, to be worth its error.
WORTH = 0.9

_BITS = {"int8": 8, "bf16": 16}


@dataclass(eq=False)
class Choice:
    """An attention that could multiply less exactly.

    Attributes:
        node: the attention.
        ladder: arithmetics the target can run, the fewest bits first; the last is ``keep``.
        reason: why the ladder does not start with the one asked for; else empty.
        level: the rung taken.
        errors: its own error on each rung, where measured.
    """

    node: fx.Node
    ladder: list[str]
    reason: str = ""
    level: int = 0
    errors: list[float] = field(default_factory=list)

    @property
    def operands(self) -> list[fx.Node]:
        """Queries, keys and values."""
        values = arguments(self.node)
        return [values[name] for name in "qkv"]

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Batch, heads, queries, keys and size of a head."""
        values = arguments(self.node)
        (batch, queries, _), (_, keys, _) = (shape(x) for x in self.operands[:2])
        return batch, values["heads"], queries, keys, values["head_dim"]

    def bits(self, level: int) -> int:
        """Bits of the operands that are multiplied on a rung."""
        batch, heads, queries, keys, size = self.shape
        element = _BITS.get(self.ladder[level], 8 * dtype(self.operands[0]).itemsize)
        return batch * heads * (queries + 2 * keys) * size * element

    def run(
        self, level: int, args: Sequence[Any], kwargs: Mapping[str, Any], _: dict[Any, Any]
    ) -> torch.Tensor:
        """Run it on a rung."""
        op = cast("torch._ops.OpOverload", self.node.target)
        return op(*args, **{**kwargs, "arithmetic": self.ladder[level]})  # type: ignore[no-any-return]


def find(gm: fx.GraphModule, context: Context) -> list[Choice]:
    """Every attention, with the arithmetics that it may have."""
    asked = context.attention
    if asked == "keep" or (asked == "auto" and context.weights == "keep"):
        return []
    editor = Editor(gm)
    choices = []
    for node in list(gm.graph.nodes):
        if is_call(node, ATTENTION) and arguments(node)["arithmetic"] == "keep":
            choices.append(_offered(node, _trials(node, editor, context), asked))
    return choices


def _trials(node: fx.Node, editor: Editor, context: Context) -> dict[str, float | str]:
    """What each arithmetic is expected to take, or why it cannot be."""
    found: dict[str, float | str] = {}
    own = dtype(arguments(node)["q"])
    for arithmetic in ARITHMETICS:
        if arithmetic == "keep":
            found[arithmetic] = context.cost(node, constant_inputs(node))
        elif own is torch.float64:
            found[arithmetic] = "float64 asks for more"
        elif arithmetic == "bf16" and own is not torch.float32:
            found[arithmetic] = f"its operands are {own}".replace("torch.", "")
        else:
            trial = editor.insert(change(node, arithmetic=arithmetic), node)
            constant = constant_inputs(trial)
            refused = context.refuses(trial, constant)
            found[arithmetic] = refused or context.cost(trial, constant)
            editor.erase_dead(trial)
    return found


def _offered(node: fx.Node, trials: Mapping[str, float | str], asked: str) -> Choice:
    """The rungs an attention has: those asked for, or those that each win time."""
    costs = {a: cost for a, cost in trials.items() if not isinstance(cost, str)}
    if asked != "auto":
        able = [a for a in costs if ARITHMETICS.index(a) >= ARITHMETICS.index(asked)]
        return Choice(node, able, "" if asked in able else f"not in {asked}: {trials[asked]}")
    ladder, least = ["keep"], costs["keep"]
    for arithmetic in reversed(ARITHMETICS[:-1]):
        if costs.get(arithmetic, math.inf) < WORTH * least:
            ladder.insert(0, arithmetic)
            least = costs[arithmetic]
    return Choice(node, ladder, "" if len(ladder) > 1 else "nothing less exact is faster")


def settle(choices: Sequence[Choice], editor: Editor, context: Context, record: PassRecord) -> None:
    """Write the rungs taken into the graph."""
    for choice in choices:
        arithmetic, node = choice.ladder[choice.level], choice.node
        if arithmetic != "keep":
            if not context.spend():
                return
            node = editor.insert(change(node, arithmetic=arithmetic), node)
            choice.node.replace_all_uses_with(node)
            found = choice.shape
            editor.erase_dead(choice.node)
            record.hit(f"attention(q, k, v) => attention(q, k, v) in {arithmetic}")
        else:
            found = choice.shape
        error = choice.errors[choice.level] if choice.errors else None
        record.attentions.append(Attention(node.name, found, arithmetic, choice.reason, error))
