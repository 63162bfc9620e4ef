"""Products and layer norms become zoomc operators, one for one."""

from __future__ import annotations

from torch import fx

from .constants import is_constant
from .ops import ADD, LAYER_NORM, LINEAR, MATMUL, MUL, PERMUTE, aten
from .rewrite import Answer, Rule, Value, arguments, build, call, dtype, is_call, rule, shape


def _transposed(node: fx.Node) -> Value | None:
    """The last two axes of ``node`` swapped, if that undoes a permute of the innermost axis."""
    if not is_call(node, PERMUTE):
        return None
    x, dims = node.args
    if len(dims) < 2 or dims[-2] != len(dims) - 1:
        return None
    swapped = [*dims[:-2], dims[-1], dims[-2]]
    return x if swapped == sorted(swapped) else call(PERMUTE, x, swapped)


@rule("linear(x, constant w) => zoomc.linear(x, w)", aten.linear.default)
def _lower_linear(node: fx.Node) -> Answer:
    values = arguments(node)
    x, w, b = values["input"], values["weight"], values["bias"]
    if len(shape(w)) != 2 or not shape(x):
        return None
    if is_constant(w) and is_constant(b):
        return build(LINEAR, {"x": x, "weight": w, "bias": b}, node)
    if len(shape(x)) < 2:
        return None
    product = call(MATMUL, x, w, transpose_b=True)
    return product if b is None else call(ADD, product, b)


@rule(
    "x @ constant w => zoomc.linear(x, w.T); x @ y => zoomc.matmul(x, y)",
    aten.mm.default,
    aten.bmm.default,
    aten.matmul.default,
)
def _lower_matmul(node: fx.Node) -> Answer:
    a, b = node.args
    if min(len(shape(a)), len(shape(b))) < 2:
        return None
    if len(shape(b)) == 2 and is_constant(b):
        w = _transposed(b)
        return call(LINEAR, a, w if w is not None else call(PERMUTE, b, [1, 0]))
    source = _transposed(b)
    if source is not None:
        return call(MATMUL, a, source, transpose_b=True)
    return call(MATMUL, a, b)


@rule("addmm(b, x, constant w) => zoomc.linear(x, w.T, b)", aten.addmm.default)
def _lower_addmm(node: fx.Node) -> Answer:
    values = arguments(node)
    b, x, w = values["self"], values["mat1"], values["mat2"]
    plain = values["beta"] == values["alpha"] == 1 and shape(b) == (shape(w)[1],)
    if not (plain and is_constant(w) and is_constant(b)):
        return None
    source = _transposed(w)
    return call(LINEAR, x, source if source is not None else call(PERMUTE, w, [1, 0]), b)


@rule("baddbmm(m, a, b) => m * beta + matmul(a, b) * alpha", aten.baddbmm.default)
def _lower_baddbmm(node: fx.Node) -> Answer:
    values = arguments(node)
    product = call(aten.bmm.default, values["batch1"], values["batch2"])
    if values["alpha"] != 1:
        product = call(MUL, product, values["alpha"])
    if values["beta"] == 0:  # torch ignores the first operand then, whatever it holds
        return product
    m = values["self"]
    if values["beta"] != 1:
        m = call(MUL, m, values["beta"])
    return call(ADD, product, m)


@rule("layer_norm(x) over the last axis => zoomc.layer_norm(x)", aten.layer_norm.default)
def _lower_layer_norm(node: fx.Node) -> Answer:
    values = arguments(node)
    weight, bias = values["weight"], values["bias"]
    types = {dtype(n) for n in (values["input"], weight, bias) if n is not None}
    if len(values["normalized_shape"]) != 1 or len(types) != 1:
        return None
    arguments_ = {"x": values["input"], "weight": weight, "bias": bias, "eps": values["eps"]}
    return build(LAYER_NORM, arguments_, node)


LOWER_RULES: tuple[Rule, ...] = (
    _lower_linear,
    _lower_matmul,
    _lower_addmm,
    _lower_baddbmm,
    _lower_layer_norm,
)
