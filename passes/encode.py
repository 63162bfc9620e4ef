"""Linears and convolutions take coded weights: 2 to 8 bits, and integer arithmetic.

The weight stays an expression over the model's own: an ``encode`` call on it that a target
evaluates once, when it packs the layer.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from zoomc.kernels.integer import LONGEST
from zoomc.kernels.weights import Encoding, encode, prune
from zoomc.kernels.weights.coded import stored_bits
from zoomc.kernels.weights.op import ENCODE, PRUNE
from zoomc.kernels.weights.pruning import kept_steps

from . import precision
from .constants import constant_inputs, is_constant
from .context import Context, Layer, PassRecord
from .ops import CONV2D, LINEAR
from .rewrite import (
    Call,
    Editor,
    Op,
    Value,
    arguments,
    build,
    call,
    dtype,
    fake_mode,
    is_call,
    shape,
)
from .stored import Stored, stored

KEEP = Encoding("keep")
INT8 = Encoding("int8")

#: Weights with fewer elements than this are kept: their scales would outweigh what codes save.
TINY = 1024

#: Rows up to which a matrix is taken for one row a picture even where there are no pictures.
FEW_ROWS = 8

_GETITEM = cast("Op", operator.getitem)


@dataclass(eq=False)
class Candidate:
    """A layer that could take a coded weight.

    Attributes:
        node: the linear or convolution.
        ladder: encodings the target can run, from the fewest bits up; the last keeps the weight.
        reason: why the ladder does not start with the encoding asked for; else empty.
        level: the rung taken.
        errors: the layer's own error on each rung, where measured.
        stored: the codes the model stores the weight in, if it does.
        gram: second moments of what the layer reads, where codes are chosen by them.
        bounds: the ends of what it reads, where its scale is chosen by them.
        dynamic: why it is not, where it was to be; else empty.
    """

    node: fx.Node
    ladder: list[Encoding]
    reason: str = ""
    level: int = 0
    errors: list[float] = field(default_factory=list)
    stored: Stored | None = None
    gram: torch.Tensor | None = None
    bounds: torch.Tensor | None = None
    dynamic: str = ""

    @property
    def encoding(self) -> Encoding:
        """The rung taken."""
        return self.ladder[self.level]

    def run(
        self, level: int, args: Sequence[Any], kwargs: Mapping[str, Any], memo: dict[Any, Any]
    ) -> torch.Tensor:
        """Run the layer on a rung; ``memo`` keeps encoded weights, at a byte a weight."""
        weight, encoding = args[1], self.ladder[level]
        extra: dict[str, Any] = {}
        if encoding.kind == "keep":
            weight = prune(weight, encoding.pruning) if encoding.pruning else weight
        else:
            key = self.node.args[1], str(encoding)
            if key not in memo:
                memo[key] = encode(weight, encoding, gram=self.gram if encoding.table else None)
            coded = memo[key]
            weight, extra["channel_scale"] = coded.codes, coded.channel_scale
            if encoding.table:
                extra |= {"table": coded.table, "group_scale": coded.group_scale}
            extra["bounds"] = self.bounds
        op = cast("Op", self.node.target)
        return op(args[0], weight, *args[2:], **kwargs, **extra)  # type: ignore[no-any-return]

    def bits(self, level: int) -> int:
        """What the weight takes to store on a rung."""
        weight = self.node.args[1]
        element = dtype(weight).itemsize * 8  # type: ignore[arg-type]
        return stored_bits(shape(weight), self.ladder[level], element)  # type: ignore[arg-type]


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
    _calibrate(gm, candidates, context)
    if context.ranges is not None:
        _fix(gm, candidates, editor, context)
    if context.max_error is not None:
        from .budget import fit

        free = [c for c in candidates if c.stored is None]
        record.measured = fit(gm, [*free, *attentions], context.max_error, context.inputs)
    precision.settle(attentions, editor, context, record)
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
                coded[key] = _coded(candidate, encoding, gram)
            bounds = _attribute(gm, "bounds", candidate.bounds, node)
            new = editor.insert(_with(node, coded[key] | {"bounds": bounds}), node, memo)
            why = context.weight_only(new, constant_inputs(new)) or ""
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


def _calibrate(gm: fx.GraphModule, candidates: list[Candidate], context: Context) -> None:
    """Give layers what is known of their activations, as far as the context asks for it.

    Those that may take codes of a table get moments, and all that may take codes their ranges.
    """
    from .calibrate import learn

    by_moments, by_range = {}, {}
    for candidate in candidates:
        weight = cast("fx.Node", candidate.node.args[1])
        key = weight_name(weight), shape(weight)
        if candidate.stored is None and candidate.ladder[0].table:
            by_moments[candidate.node] = key
        if candidate.ladder[0].kind != "keep":
            by_range[candidate.node] = key
    moments, ranges = learn(gm, by_moments, by_range, context)
    for candidate in candidates:
        candidate.gram = moments.get(candidate.node)
        candidate.bounds = ranges.get(candidate.node)
        if context.ranges is not None and candidate.node in by_range and candidate.bounds is None:
            candidate.dynamic = "the first call's values have no range, or none that is finite"


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


def find(gm: fx.GraphModule, asked: Encoding) -> list[Candidate]:
    """The layers with constant floating weights, each with the encodings it can bear."""
    layers = [
        node
        for node in gm.graph.nodes
        if is_call(node, CONV2D, LINEAR)
        and is_constant(node.args[1])
        and dtype(node.args[1]).is_floating_point
        and arguments(node)["channel_scale"] is None
        and not is_call(node.args[1], PRUNE)
    ]
    first, last = _ends(gm, layers)
    pictures = {shape(cast("list[fx.Node]", n.args[0])[0])[0] for n in layers if is_call(n, CONV2D)}
    candidates = []
    for node in layers:
        weight = cast("fx.Node", node.args[1])
        depth = math.prod(shape(weight)[1:])
        ladder, reason = [asked, INT8, KEEP], ""
        if math.prod(shape(weight)) < TINY:
            ladder, reason = [KEEP], f"fewer than {TINY} weights"
        elif dtype(weight) is torch.float64:
            ladder, reason = [KEEP], "float64 asks for more than integers give"
        elif depth > LONGEST:
            ladder, reason = [KEEP], f"sums over more than {LONGEST} products leave int32"
        elif node in first or node in last:
            end = "first" if node in first else "last"
            ladder, reason = [INT8, KEEP], f"the {end} convolution"
        elif is_call(node, LINEAR) and row_a_picture(
            shape(cast("fx.Node", node.args[0])), pictures
        ):
            ladder, reason = [INT8, KEEP], "a row a picture, as in time embeddings"
        if asked.kind in ("keep", "int8"):
            ladder = [e for e in ladder if e in (asked, KEEP)]
            reason = reason if asked not in ladder else ""
        codes = stored(weight)
        if codes is not None:
            ladder, reason = [codes.encoding, KEEP], ""
        candidates.append(Candidate(node, ladder, reason, stored=codes))
    return candidates


def _ends(gm: fx.GraphModule, layers: list[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Convolutions that no layer feeds, and those that feed none."""
    known = set(layers)
    fed: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if any(n in fed or n in known for n in node.all_input_nodes):
            fed.add(node)
    feeds: set[fx.Node] = set()
    for node in reversed(gm.graph.nodes):
        if any(n in feeds or n in known for n in node.users):
            feeds.add(node)
    convs = [node for node in layers if is_call(node, CONV2D)]
    first = {node for node in convs if not any(x in fed or x in known for x in node.args[0])}
    return first, {node for node in convs if node not in feeds}


def row_a_picture(size: Sequence[int], pictures: Collection[int]) -> bool:
    """Whether a linear reads one row for each picture, as those of time embeddings do.

    Args:
        size: of what the linear reads.
        pictures: how many the model's convolutions read at a time.
    """
    rows = math.prod(size[:-1])
    return len(size) <= 2 and (rows <= FEW_ROWS or rows in pictures)


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
    candidate: Candidate, encoding: Encoding, gram: fx.Node | None = None
) -> dict[str, Value]:
    """The arguments by which a layer takes its weight in an encoding."""
    weight, found = cast("fx.Node", candidate.node.args[1]), candidate.stored
    gated = _gated(candidate.node)
    values: dict[str, Value]
    if found is not None:
        values = {"weight": found.codes, "channel_scale": found.channel_scale}
        values["kept_steps"] = found.kept_steps(gated)
        if found.table is not None and found.group_scale is not None:
            values |= {"table": found.table, "group_scale": found.group_scale}
        return values
    if encoding.kind == "keep":
        steps = kept_steps(shape(weight), encoding.pruning, gated)
        return {"weight": call(PRUNE, weight, str(encoding)), "kept_steps": steps}
    coded = call(ENCODE, weight, str(encoding), *([] if gram is None else [gram]))
    parts = [Call(_GETITEM, (coded, i)) for i in range(4)]
    values = {"weight": parts[0], "channel_scale": parts[3]}
    values["kept_steps"] = kept_steps(shape(weight), encoding.pruning, gated)
    if encoding.table:
        values |= {"table": parts[1], "group_scale": parts[2]}
    return values


def _gated(node: fx.Node) -> bool:
    """Whether half of the layer's outputs gate the others."""
    return arguments(node).get("activation") == "geglu"


def _with(node: fx.Node, coded: dict[str, Value]) -> Call:
    """The layer at ``node`` on a coded weight."""
    return build(node.target, {**arguments(node), **coded}, node, size=shape(node))


def weight_name(weight: fx.Node) -> str:
    """The names of the model's weights that a value is computed from."""
    names: dict[str, None] = {}
    stack, seen = [weight], {weight}
    while stack:
        node = stack.pop()
        if "weight" in node.meta:
            names[node.meta["weight"]] = None
        inputs = [n for n in reversed(node.all_input_nodes) if n not in seen]
        seen.update(inputs)
        stack += inputs
    return " + ".join(names)
