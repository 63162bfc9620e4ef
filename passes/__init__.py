"""Graph to graph: from functional ATen to fused zoomc operators.

``PIPELINE`` is the one ordered list. After every pass the graph still runs in eager torch, so a
pass is tested by running the graph before and after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from .attention import ATTENTION_RULES, PARTS_RULES
from .canonicalize import CANONICAL_RULES
from .channels_last import CHANNELS_LAST_RULES
from .constants import constant_nodes, mark_constants
from .context import Context, Layer, Moments, PassRecord, Ranges, Smoothing, Trace
from .cse import merge_equal
from .dtype import set_dtype
from .encode import encode_weights
from .fuse_conv import CONV_RULES
from .fuse_linear import LINEAR_RULES
from .fuse_mlp import fuse_mlp
from .lower import LOWER_RULES
from .merge import MERGE_RULES
from .rewrite import Rule, apply_rules, erase_dead_nodes
from .validate import Validator

Step = Callable[[fx.GraphModule, Context, PassRecord], None]


@dataclass(frozen=True)
class Pass:
    """One step of the pipeline: rules tried until none matches, or a function."""

    name: str
    steps: Sequence[Rule] | Step


PIPELINE: tuple[Pass, ...] = (
    Pass("canonicalize", CANONICAL_RULES),
    Pass("share equal values", merge_equal),
    Pass("compute dtype", set_dtype),
    Pass("attention", ATTENTION_RULES),
    Pass("lower", LOWER_RULES),
    Pass("attention from its parts", PARTS_RULES),
    Pass("channels last", CHANNELS_LAST_RULES),
    Pass("share equal values", merge_equal),
    Pass("merge linears", MERGE_RULES),
    Pass("fuse into linear", LINEAR_RULES),
    Pass("fuse into conv", CONV_RULES),
    Pass("share equal values", merge_equal),
    Pass("encode weights", encode_weights),
    Pass("fuse linears", fuse_mlp),
)


def run(
    gm: fx.GraphModule,
    context: Context | None = None,
    pipeline: Sequence[Pass] = PIPELINE,
) -> Trace:
    """Rewrite ``gm`` in place.

    Args:
        gm: functional ATen graph with ``meta["val"]`` on every node and weights as attributes.
        context: dtype, fuel, dump folder, validation; the defaults change no numbers.
        pipeline: the passes, in order.

    Returns:
        what each pass did. ``meta["constant"]`` then tells, for every node, whether it depends
        on weights alone.
    """
    context = context or Context()
    trace = Trace()
    erase_dead_nodes(gm)
    _look(gm, context, PassRecord("captured"), 0)
    for number, step in enumerate(pipeline, 1):
        record = PassRecord(step.name)
        start = time.perf_counter()
        if callable(step.steps):
            step.steps(gm, context, record)
        else:
            apply_rules(gm, step.steps, context, record)
        erase_dead_nodes(gm)
        record.milliseconds = (time.perf_counter() - start) * 1e3
        record.nodes = len(gm.graph.nodes)
        _look(gm, context, record, number)
        trace.passes.append(record)
    mark_constants(gm)
    gm.recompile()
    return trace


def _look(gm: fx.GraphModule, context: Context, record: PassRecord, number: int) -> None:
    """Dump and validate the graph, where asked."""
    if context.dump is None and context.validate is None:
        return
    gm.recompile()
    if context.dump is not None:
        context.dump.mkdir(parents=True, exist_ok=True)
        text = gm.print_readable(print_output=False)
        name = f"{number:02d}_{record.name.replace(' ', '_')}.txt"
        (context.dump / name).write_text(text)
    if context.validate is not None:
        record.error = context.validate(gm)


__all__ = [
    "PIPELINE",
    "Context",
    "Layer",
    "Moments",
    "Pass",
    "PassRecord",
    "Ranges",
    "Smoothing",
    "Trace",
    "Validator",
    "constant_nodes",
    "mark_constants",
    "run",
]
