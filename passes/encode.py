"""Linears and convolutions take coded weights: 2 to 8 bits, and integer arithmetic.

The weight stays an expression over the model's own: an ``encode`` call on it that a target
evaluates once, when it packs the layer.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from typing import cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from zoomc.kernels.weights import Encoding
from zoomc.kernels.weights.op import ENCODE, PRUNE
from zoomc.kernels.weights.pruning import kept_steps

from . import precision
from .candidates import KEEP, Candidate, find, weight_name
from .constants import constant_inputs, constant_nodes
from .context import Context, Layer, PassRecord
from .ops import CONV2D
from .rewrite import (
    Call,
    Editor,
    Op,
    Value,
    arguments,
    build,
    call,
    fake_mode,
    is_call,
    shape,
)
from .smooth import foldable, folded

_GETITEM = cast("Op", operator.getitem)


def encode_weights(gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
    """Give every layer the encoding asked for, or the nearest it and the target can bear.

    What attention multiplies is chosen beside; see :mod:`.precision`. With ``context.max_error``,
    both then climb to more bits until the measured error is within it; see :mod:`.budget`.
    """
    asked = Encoding.parse(context.weights)
    candidates = find(gm, asked)
    # Of a compressed model, what its codes left alone was left alone for a reason.
    compressed = [c for c in candidates if c.stored is not None]
    if asked == KEEP or compressed:
        candidates = compressed
    editor = Editor(gm)
    attentions = precision.find(gm, context)
    for candidate in candidates:
        _refuse(candidate, editor, context)
    _calibrate(gm, candidates, editor, context)
    if context.ranges is not None:
        _fix(gm, candidates, editor, context)
    if context.max_error is not None:
        from .budget import fit

        free = [c for c in candidates if c.stored is None]
        record.measured = fit(gm, [*free, *attentions], context.max_error, context.inputs)
    precision.settle(attentions, editor, context, record)
    constant = constant_nodes(gm)
    coded: dict[tuple[fx.Node, str, bool], dict[str, Value]] = {}
    memo: dict[Call, fx.Node] = {}
    for candidate in candidates:
        node, encoding = candidate.node, candidate.encoding
        weight = cast("fx.Node", node.args[1])
        layer = Layer(
            node.name,
            weight_name(weight),
            shape(weight),
            str(encoding),
            candidate.bits(candidate.level),
            candidate.reason,
            error=candidate.errors[candidate.level] if candidate.errors else None,
            errors=dict(zip(map(str, candidate.ladder), candidate.errors, strict=False)),
        )
        if encoding != KEEP:
            if not context.spend():
                return
            key = weight, str(encoding), _gated(node)
            if key not in coded:
                gram = _attribute(gm, "gram", candidate.gram, node) if encoding.table else None
                factors = None
                if candidate.factors is not None and context.spend():
                    factors = _attribute(gm, "factors", candidate.factors, node)
                    smoothed = int((candidate.factors != 1).sum())
                    layer = dataclasses.replace(layer, smoothed=smoothed)
                    record.hit("norm(x), w => norm(x) / s, s * w")
                coded[key] = _coded(candidate, encoding, gram, factors)
            bounds = _attribute(gm, "bounds", candidate.bounds, node)
            new = editor.insert(_with(node, coded[key] | {"bounds": bounds}), node, memo)
            constant |= constant_inputs(new)
            why = context.weight_only(new, constant) or ""
            if why:
                quantised = new
                new = editor.insert(_with(node, coded[key] | {"weight_only": True}), node, memo)
                editor.erase_dead(quantised)
            node.replace_all_uses_with(new)
            editor.erase_dead(node)
            layer = dataclasses.replace(layer, node=new.name, weight_only=why)
            if not why:
                ends = None if candidate.bounds is None else tuple(candidate.bounds.tolist())
                layer = dataclasses.replace(layer, bounds=ends, dynamic=candidate.dynamic)
            kind = "conv2d" if is_call(new, CONV2D) else "linear"
            record.hit(f"{kind}(x, w) => {kind}(x, {encoding} of w)")
        record.layers.append(layer)


def _calibrate(
    gm: fx.GraphModule, candidates: list[Candidate], editor: Editor, context: Context
) -> None:
    """Give layers what is known of their activations, as far as the context asks for it.

    Those that may take codes of a table get moments, all that may take codes their ranges or, where
    norms make what they read, factors.
    """
    from .calibrate import learn

    by_moments, by_range, to_smooth = {}, {}, {}
    uses = Counter(candidate.node.args[1] for candidate in candidates)
    for candidate in candidates:
        weight = cast("fx.Node", candidate.node.args[1])
        key = weight_name(weight), shape(weight)
        if candidate.stored is None and candidate.ladder[0].table:
            by_moments[candidate.node] = key
        if candidate.ladder[0].kind != "keep":
            by_range[candidate.node] = key
            own = candidate.stored is None and uses[weight] == 1  # another norm would differ
            if own and context.ranges is None and foldable(candidate.node):
                to_smooth[candidate.node] = key, candidate.ladder[0]
    known = learn(gm, by_moments, by_range, to_smooth, context)
    for candidate in candidates:
        candidate.gram = known.moments.get(candidate.node)
        candidate.bounds = known.ranges.get(candidate.node)
        if candidate.node in known.smoothing and not _weight_only(candidate, editor, context):
            candidate.factors = known.smoothing[candidate.node]
        if context.ranges is not None and candidate.node in by_range and candidate.bounds is None:
            candidate.dynamic = "the first call's values have no range, or none that is finite"


def _weight_only(candidate: Candidate, editor: Editor, context: Context) -> bool:
    """Whether the target may leave what the layer reads as it is: there is no scale to mend."""
    node = candidate.node
    for encoding in candidate.ladder:
        if encoding.kind != "keep":
            trial = editor.insert(_with(node, _coded(candidate, encoding)), node)
            reason = context.weight_only(trial, constant_inputs(trial))
            editor.erase_dead(trial)
            if reason is not None:
                return True
    return False


def _fix(gm: fx.GraphModule, candidates: list[Candidate], editor: Editor, context: Context) -> None:
    """Leave scales to be found by every call where the target would not have them otherwise."""
    for candidate in candidates:
        if candidate.bounds is None:
            continue
        node = candidate.node
        values = _coded(candidate, candidate.ladder[0])
        values["bounds"] = _attribute(gm, "bounds", candidate.bounds, node)
        trial = editor.insert(_with(node, values), node)
        reason = context.refuses(trial, constant_inputs(trial))
        editor.erase_dead(trial)
        if reason is not None:
            candidate.bounds, candidate.dynamic = None, f"the target cannot fix them: {reason}"


def _refuse(candidate: Candidate, editor: Editor, context: Context) -> None:
    """Take what the target cannot run off the ladder, with its reason."""
    node, ladder = candidate.node, []
    for encoding in candidate.ladder:
        if encoding.kind == "keep":
            ladder.append(encoding)
            continue
        trial = editor.insert(_with(node, _coded(candidate, encoding)), node)
        reason = context.refuses(trial, constant_inputs(trial))
        editor.erase_dead(trial)
        if reason is None:
            ladder.append(encoding)
        elif not candidate.reason:
            candidate.reason = f"the target cannot run {encoding}: {reason}"
    candidate.ladder = ladder


def _attribute(
    gm: fx.GraphModule, kind: str, value: torch.Tensor | None, before: fx.Node
) -> fx.Node | None:
    """What a layer was seen to read, as a constant of the graph."""
    if value is None:
        return None
    name = f"{kind}_of_{before.name}"
    gm.register_buffer(name, value, persistent=False)
    with gm.graph.inserting_before(before):
        node = gm.graph.get_attr(name)
    mode = fake_mode(gm)
    node.meta["val"] = (
        mode.from_tensor(value, static_shapes=True) if isinstance(mode, FakeTensorMode) else value
    )
    return node


def _coded(
    candidate: Candidate,
    encoding: Encoding,
    gram: fx.Node | None = None,
    factors: fx.Node | None = None,
) -> dict[str, Value]:
    """The arguments by which a layer takes its weight in an encoding."""
    weight, found = cast("fx.Node", candidate.node.args[1]), candidate.stored
    gated = _gated(candidate.node)
    values: dict[str, Value]
    if found is not None:
        values = {"weight": found.codes, "kept_steps": found.kept_steps(gated)}
        if found.channel_scale is not None:
            values["channel_scale"] = found.channel_scale
        if found.table is not None and found.group_scale is not None:
            values |= {"table": found.table, "group_scale": found.group_scale}
        return values
    if encoding.kind == "keep":
        steps = kept_steps(shape(weight), encoding.pruning, gated)
        return {"weight": call(PRUNE, weight, str(encoding)), "kept_steps": steps}
    learned = {"gram": gram, "factors": factors}
    given = {name: value for name, value in learned.items() if value is not None}
    coded = call(ENCODE, weight, str(encoding), **given)
    parts = [Call(_GETITEM, (coded, i)) for i in range(4)]
    values = {"weight": parts[0], "channel_scale": parts[3]}
    values["kept_steps"] = kept_steps(shape(weight), encoding.pruning, gated)
    if encoding.table:
        values |= {"table": parts[1], "group_scale": parts[2]}
    if factors is not None:
        values |= folded(candidate.node, factors)
    return values


def _gated(node: fx.Node) -> bool:
    """Whether half of the layer's outputs gate the others."""
    return arguments(node).get("activation") == "geglu"


def _with(node: fx.Node, coded: dict[str, Value]) -> Call:
    """The layer at ``node`` on a coded weight."""
    return build(node.target, {**arguments(node), **coded}, node, size=shape(node))
