"""What stands around a convolution moves into it, as do activations into a group norm."""

from __future__ import annotations

import math

from torch import fx

from .channels_last import TO_FIRST, TO_LAST
from .constants import is_constant
from .match import ACTIVATION_OPS, activation, sum_of, used_only_by
from .ops import ADD, CAT, CONV2D, EXPAND, GROUP_NORM, PAD, PERMUTE, RESHAPE, aten
from .rewrite import Answer, Rule, arguments, call, change, dtype, is_call, only_user, rule, shape
from .views import VIEW_RULES


def _single_input(conv: fx.Node) -> fx.Node | None:
    (inputs, *_) = conv.args
    return inputs[0] if len(inputs) == 1 else None


def _bare(conv: fx.Node) -> bool:
    """Whether nothing happens yet between the convolution's inputs and its padding."""
    values = arguments(conv)
    return not (values["norm_groups"] or values["upsample"] or values["pre_activation"] != "none")


@rule("activation(group_norm(x)) => group_norm[activation](x)", *ACTIVATION_OPS)
def _norm_activation(node: fx.Node) -> Answer:
    found = activation(node)
    if found is None or not is_call(found.x, GROUP_NORM):
        return None
    if arguments(found.x)["activation"] != "none" or not used_only_by(found.x, found.nodes):
        return None
    return change(found.x, activation=found.name)


@rule("conv2d([group_norm(x)], w) => conv2d[norm]([x], w)", CONV2D)
def _norm(node: fx.Node) -> Answer:
    norm = _single_input(node)
    values = arguments(node)
    if not is_call(norm, GROUP_NORM) or not used_only_by(norm, [node]) or values["norm_groups"]:
        return None
    inner = arguments(norm)
    if "none" not in (inner["activation"], values["pre_activation"]):
        return None
    both = {inner["activation"], values["pre_activation"]} - {"none"}
    return change(
        node,
        inputs=[inner["x"]],
        norm_groups=inner["groups"],
        norm_weight=inner["weight"],
        norm_bias=inner["bias"],
        norm_eps=inner["eps"],
        pre_activation=both.pop() if both else "none",
    )


@rule("conv2d([activation(x)], w) => conv2d[pre_activation]([x], w)", CONV2D)
def _pre_activation(node: fx.Node) -> Answer:
    found = activation(_single_input(node))
    values = arguments(node)
    if found is None or values["norm_groups"] or values["pre_activation"] != "none":
        return None
    # A norm under the activation is better off with it, and both then come in together.
    if is_call(found.x, GROUP_NORM) or not used_only_by(found.nodes[-1], [node]):
        return None
    return change(node, inputs=[found.x], pre_activation=found.name)


@rule("conv2d([pad(x)], w) => conv2d[padding]([x], w)", CONV2D)
def _pad(node: fx.Node) -> Answer:
    x = _single_input(node)
    if not is_call(x, PAD) or not _bare(node) or not used_only_by(x, [node]):
        return None
    values = arguments(x)
    left, right, top, bottom = [*values["pad"], *[0] * 8][2:6]
    outside = [*values["pad"][:2], *values["pad"][6:]]  # channels and images
    if values["value"] or any(outside) or min(left, right, top, bottom) < 0:
        return None
    sides = zip(arguments(node)["padding"], (top, bottom, left, right), strict=True)
    return change(node, inputs=[values["self"]], padding=[a + b for a, b in sides])


@rule("conv2d([nearest 2x upsample(x)], w) => conv2d[upsample]([x], w)", CONV2D)
def _upsample(node: fx.Node) -> Answer:
    last = _single_input(node)
    if not is_call(last, PERMUTE) or not _bare(node) or not used_only_by(last, [node]):
        return None
    up = last.args[0]
    nearest = (aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default)
    if not is_call(up, *nearest) or not used_only_by(up, [last]) or last.args[1] != TO_LAST:
        return None
    first = up.args[0]
    if not is_call(first, PERMUTE) or first.args[1] != TO_FIRST:
        x = call(PERMUTE, first, TO_LAST)
    else:
        x = first.args[0]
    n, channels, height, width = shape(first)
    if shape(up) != (n, channels, 2 * height, 2 * width):
        return None
    return change(node, inputs=[x], upsample=True)


@rule("conv2d([cat([x, y])], w) => conv2d([x, y], w)", CONV2D)
def _concat(node: fx.Node) -> Answer:
    inputs = node.args[0]
    flat: list[fx.Node] = []
    for x in inputs:
        # Every user must take the parts, or the whole is written to memory all the same.
        parts = is_call(x, CAT) and arguments(x)["dim"] in (3, -1)
        taken = parts and all(is_call(user, CONV2D) for user in x.users)
        flat += x.args[0] if taken else [x]
    return change(node, inputs=flat) if len(flat) > len(inputs) else None


def _open(conv: fx.Node) -> bool:
    """Whether the convolution's result is used once and still takes a residual."""
    return is_call(conv, CONV2D) and only_user(conv) and arguments(conv)["residual"] is None


@rule("conv2d(x, w) + constant channels => conv2d(x, w, bias)", ADD)
def _bias(node: fx.Node) -> Answer:
    for conv, b in sum_of(node):
        if not _open(conv) or not is_constant(b) or dtype(b) != dtype(conv):
            continue
        values = arguments(conv)
        if values["bias"] is not None or values["shift"] is not None:
            continue
        channels = shape(conv)[-1]
        if shape(b)[-1:] == (channels,) and math.prod(shape(b)) == channels:
            return change(conv, bias=call(RESHAPE, b, [channels]))
    return None


@rule("conv2d(x, w) + y[n, 1, 1, c] => conv2d[shift](x, w, y)", ADD)
def _shift(node: fx.Node) -> Answer:
    for conv, y in sum_of(node):
        if not _open(conv) or arguments(conv)["shift"] is not None or dtype(y) != dtype(conv):
            continue
        images, height, width, channels = shape(conv)
        if height * width == 1 or len(shape(y)) != 4 or shape(y)[1:] != (1, 1, channels):
            continue
        shift = call(RESHAPE, y, [shape(y)[0], channels])
        if shape(y)[0] != images:
            shift = call(EXPAND, shift, [images, channels])
        return change(conv, shift=shift)
    return None


def _work(conv: fx.Node) -> int:
    """Multiplies for each output element."""
    return math.prod(shape(conv.args[1])[1:])


@rule("conv2d(x, w) + y => conv2d[residual](x, w, y)", ADD)
def _residual(node: fx.Node) -> Answer:
    fit = [
        (conv, y)
        for conv, y in sum_of(node)
        if _open(conv) and shape(y) == shape(conv) and dtype(y) == dtype(conv)
    ]
    if not fit:
        return None
    # Of two convolutions the larger adds the smaller: its epilogue hides the read better.
    conv, y = max(fit, key=lambda pair: _work(pair[0]))
    return change(conv, residual=y)


CONV_RULES: tuple[Rule, ...] = (
    _norm_activation,
    _norm,
    _pre_activation,
    _pad,
    _upsample,
    _concat,
    _bias,
    _shift,
    _residual,
    *VIEW_RULES,
)
