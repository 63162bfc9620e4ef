"""Layers whose weights could be codes, and the encodings that each could bear."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx
from zoomc.kernels.integer import LONGEST
from zoomc.kernels.weights import Encoding, encode, prune
from zoomc.kernels.weights.coded import stored_bits
from zoomc.kernels.weights.op import PRUNE

from .constants import is_constant
from .ops import CONV2D, LINEAR
from .rewrite import Op, arguments, dtype, is_call, shape
from .smooth import divided
from .stored import Stored, stored

KEEP = Encoding("keep")
INT8 = Encoding("int8")

#: Weights with fewer elements than this are kept: their scales would outweigh what codes save.
TINY = 1024

#: Rows up to which a matrix is taken for one row a picture even where there are no pictures.
FEW_ROWS = 8


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
        factors: what its norm is divided by and its weight multiplied by, where that is of use.
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
    factors: torch.Tensor | None = None
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
                gram = self.gram if encoding.table else None
                memo[key] = encode(weight, encoding, gram=gram, factors=self.factors)
            coded = memo[key]
            weight, extra["channel_scale"] = coded.codes, coded.channel_scale
            if encoding.table:
                extra |= {"table": coded.table, "group_scale": coded.group_scale}
            extra["bounds"] = self.bounds
            if self.factors is not None:
                kwargs = {**kwargs, **divided(kwargs, self.factors)}
        op = cast("Op", self.node.target)
        return op(args[0], weight, *args[2:], **kwargs, **extra)  # type: ignore[no-any-return]

    def bits(self, level: int) -> int:
        """What the weight takes to store on a rung."""
        weight = self.node.args[1]
        element = dtype(weight).itemsize * 8  # type: ignore[arg-type]
        return stored_bits(shape(weight), self.ladder[level], element)  # type: ignore[arg-type]


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
