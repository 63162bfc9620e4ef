"""What stands around a linear moves into it: norm, activations, GEGLU, bias, residual."""

from __future__ import annotations

from torch import fx

from .canonicalize import slice_range
from .constants import is_constant
from .match import ACTIVATION_OPS, activation, sum_of, used_only_by
from .ops import ADD, LAYER_NORM, LINEAR, MUL, RESHAPE, SLICE
from .rewrite import Answer, Rule, arguments, call, change, dtype, is_call, only_user, rule, shape
from .views import VIEW_RULES


@rule("value(l) * gelu(gate(l)), l = linear(x) => linear[geglu](x)", MUL)
def _geglu(node: fx.Node) -> Answer:
    for value, gated in (node.args, node.args[::-1]):
        gelu = activation(gated)
        if gelu is None or gelu.name != "gelu" or not is_call(value, SLICE):
            continue
        gate = gelu.x
        if not is_call(gate, SLICE) or gate.args[0] is not value.args[0]:
            continue
        linear = value.args[0]
        if not is_call(linear, LINEAR):
            continue
        values = arguments(linear)
        if values["activation"] != "none" or values["residual"] is not None:
            continue
        last, width = len(shape(linear)) - 1, shape(linear)[-1]
        halves = (last, 0, width // 2, 1), (last, width // 2, width, 1)
        if width % 2 or (slice_range(value), slice_range(gate)) != halves:
            continue
        inner = used_only_by(linear, [value, gate]) and used_only_by(gate, [gated])
        if inner and used_only_by(value, [node]) and used_only_by(gated, [node]):
            return change(linear, activation="geglu")
    return None


@rule("activation(linear(x)) => linear[activation](x)", *ACTIVATION_OPS)
def _activation(node: fx.Node) -> Answer:
    found = activation(node)
    if found is None or not is_call(found.x, LINEAR) or not used_only_by(found.x, found.nodes):
        return None
    values = arguments(found.x)
    if values["activation"] != "none" or values["residual"] is not None:
        return None
    return change(found.x, activation=found.name)


@rule("linear(activation(x), w) => linear[pre_activation](x, w)", LINEAR)
def _pre_activation(node: fx.Node) -> Answer:
    values = arguments(node)
    found = activation(values["x"])
    if found is None or values["norm"] or values["pre_activation"] != "none":
        return None
    # Several linears may each apply it again: that is cheaper than a pass over memory.
    if not all(is_call(user, LINEAR) and user.args[0] is values["x"] for user in values["x"].users):
        return None
    return change(node, x=found.x, pre_activation=found.name)


@rule("linear(layer_norm(x), w) => linear[norm](x, w)", LINEAR)
def _norm(node: fx.Node) -> Answer:
    values = arguments(node)
    norm = values["x"]
    if values["norm"] or not is_call(norm, LAYER_NORM) or not used_only_by(norm, [node]):
        return None
    inner = arguments(norm)
    return change(
        node,
        x=inner["x"],
        norm=True,
        norm_weight=inner["weight"],
        norm_bias=inner["bias"],
        norm_eps=inner["eps"],
    )


@rule("linear(x, w) + constant vector => linear(x, w, bias)", ADD)
def _bias(node: fx.Node) -> Answer:
    for linear, b in sum_of(node):
        if not is_call(linear, LINEAR) or not only_user(linear) or not is_constant(b):
            continue
        values = arguments(linear)
        taken = values["bias"] is not None or values["residual"] is not None
        if taken or values["activation"] != "none" or dtype(b) != dtype(linear):
            continue
        if shape(b) == shape(linear)[-1:]:
            return change(linear, bias=b)
    return None


def _takes_residual(linear: fx.Node, user: fx.Node, y: fx.Node) -> bool:
    return (
        is_call(linear, LINEAR)
        and used_only_by(linear, [user])
        and arguments(linear)["residual"] is None
        and dtype(y) == dtype(linear)
    )


@rule("linear(x, w) + y => linear[residual](x, w, y)", ADD)
def _residual(node: fx.Node) -> Answer:
    for linear, y in sum_of(node):
        if _takes_residual(linear, node, y) and shape(y) == shape(linear):
            return change(linear, residual=y)
    return None


@rule("reshape(linear(x, w)) + y => reshape(linear[residual](x, w, reshape(y)))", ADD)
def _reshaped_residual(node: fx.Node) -> Answer:
    for view, y in sum_of(node):
        if not is_call(view, RESHAPE) or not only_user(view) or shape(y) != shape(view):
            continue
        linear = view.args[0]
        if _takes_residual(linear, view, y):
            fused = change(linear, residual=call(RESHAPE, y, list(shape(linear))))
            return call(RESHAPE, fused, list(shape(node)))
    return None


LINEAR_RULES: tuple[Rule, ...] = (
    _geglu,
    _activation,
    _norm,
    _pre_activation,
    _bias,
    _residual,
    _reshaped_residual,
    *VIEW_RULES,
)
