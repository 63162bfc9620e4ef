# ruff: noqa: PLC3002  a case is one expression
"""Rules one by one on graphs of a few nodes: what they take, and above all what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from zoomc.passes import Context, Trace, constant_nodes, run

from tests.passes.util import assert_close, assert_meta_is_true, captured, counts, outputs

C = 8


class Net(nn.Module):
    """A few layers and a forward given as a function of them."""

    def __init__(self, forward: Callable) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = forward
        self.fc = nn.Linear(C, C)
        self.fc2 = nn.Linear(C, C, bias=False)
        self.wide = nn.Linear(C, 2 * C)
        self.conv = nn.Conv2d(C, C, 3, padding=1)
        self.conv2 = nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.point = nn.Conv2d(C, C, 1)
        self.ln = nn.LayerNorm(C)
        self.gn = nn.GroupNorm(2, C)
        self.fc3 = nn.Linear(C, C, bias=False)
        self.big = nn.Parameter(torch.randn(C, 2 * C, 1, 1))
        self.scale = nn.Parameter(torch.tensor(1.7))
        self.vector = nn.Parameter(torch.randn(C))
        for parameter in self.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        self.eval().requires_grad_(False)

    def forward(self, *args: torch.Tensor):
        return self.body(self, *args)


TOKENS = (2, 5, C)
IMAGE = (2, C, 6, 4)


def compiled(
    forward: Callable, *sizes: tuple[int, ...], context: Context | None = None
) -> tuple[fx.GraphModule, Trace]:
    """Capture, check that the passes keep the numbers, and return the result."""
    torch.manual_seed(1)
    gm, inputs = captured(Net(forward), [torch.randn(size) for size in sizes])
    want = outputs(gm, inputs)
    trace = run(gm, context)
    gm.graph.lint()
    assert_meta_is_true(gm)
    if context is None or context.dtype is None:
        assert_close(outputs(gm, inputs), want)
    return gm, trace


def live(gm: fx.GraphModule) -> dict[str, int]:
    """Calls by short name, without views and without what depends on weights alone."""
    views = ("reshape", "permute", "slice", "expand")
    return {
        op.split(".")[1]: n
        for op, n in counts(gm, constant=False).items()
        if op.split(".")[1] not in views
    }


def only(gm: fx.GraphModule, name: str) -> fx.Node:
    (node,) = (n for n in gm.graph.nodes if str(n.target) == f"zoomc.{name}.default")
    return node


# What is taken.

TAKEN = {
    "norm": (lambda m, x: m.fc(m.ln(x)), [TOKENS], {"linear": 1}),
    "norm without affine": (lambda m, x: m.fc(F.layer_norm(x, (C,))), [TOKENS], {"linear": 1}),
    "gelu": (lambda m, x: F.gelu(m.fc(x)), [TOKENS], {"linear": 1}),
    "gelu tanh": (lambda m, x: F.gelu(m.fc(x), approximate="tanh"), [TOKENS], {"linear": 1}),
    "pre-activation": (lambda m, x: m.fc(F.silu(x)), [TOKENS], {"linear": 1}),
    "bias": (lambda m, x: m.fc2(x) + m.vector, [TOKENS], {"linear": 1}),
    "residual": (lambda m, x: x + m.fc(x), [TOKENS], {"linear": 1}),
    "residual of residual": (lambda m, x: m.fc(m.ln(x)) + F.gelu(m.fc2(x)), [TOKENS], None),
    "geglu": (
        lambda m, x: (lambda a, b: a * F.gelu(b))(*m.wide(m.ln(x)).chunk(2, -1)),
        [TOKENS],
        {"linear": 1},
    ),
    "mm": (lambda m, x: x @ m.fc.weight, [(5, C)], {"linear": 1}),
    "addmm": (lambda m, x: torch.addmm(m.vector, x, m.fc.weight.t()), [(5, C)], {"linear": 1}),
    "product": (lambda m, x, y: x @ y.transpose(-1, -2), [TOKENS, TOKENS], {"matmul": 1}),
    "vector": (lambda m, x: m.fc(x), [(C,)], {"linear": 1}),
    "image norm": (lambda m, x: m.conv(F.silu(m.gn(x))), [IMAGE], {"conv2d": 1}),
    "image norm without affine": (
        lambda m, x: m.conv(F.group_norm(x, 4)),
        [IMAGE],
        {"conv2d": 1},
    ),
    "image pre-activation": (lambda m, x: m.conv(F.relu(x)), [IMAGE], {"conv2d": 1}),
    "padding": (lambda m, x: m.conv(F.pad(x, (0, 1, 2, 3))), [IMAGE], {"conv2d": 1}),
    "norm, then padding": (
        lambda m, x: m.conv(F.pad(F.silu(m.gn(x)), (0, 1, 0, 1))),
        [IMAGE],
        {"conv2d": 1},
    ),
    "upsample": (
        lambda m, x: m.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")),
        [IMAGE],
        {"conv2d": 1},
    ),
    "upsample to a size": (
        lambda m, x: m.conv(F.interpolate(x, size=(12, 8), mode="nearest")),
        [IMAGE],
        {"conv2d": 1},
    ),
    "norm, then upsample": (
        lambda m, x: m.conv(F.interpolate(m.gn(x), scale_factor=2.0, mode="nearest")),
        [IMAGE],
        {"conv2d": 1},
    ),
    "image bias": (lambda m, x: m.conv2(x) + m.vector[:, None, None], [IMAGE], {"conv2d": 1}),
    "shift": (
        lambda m, x, t: m.conv(x) + m.fc(t)[:, :, None, None],
        [IMAGE, (2, C)],
        {"conv2d": 1, "linear": 1},
    ),
    "shift of one for all": (
        lambda m, x, t: m.conv(x) + m.fc(t)[:, :, None, None],
        [IMAGE, (1, C)],
        {"conv2d": 1, "linear": 1},
    ),
    "image residual": (lambda m, x: x + m.conv(x), [IMAGE], {"conv2d": 1}),
    "two convolutions in one sum": (
        lambda m, x: m.point(x) + m.conv2(m.conv(x)),
        [IMAGE],
        {"conv2d": 3},
    ),
    "concatenation for two": (
        lambda m, x, y: (
            lambda z: F.conv2d(F.silu(F.group_norm(z, 4)), m.big) + F.conv2d(z, m.big)
        )(torch.cat([x, y], 1)),
        [IMAGE, IMAGE],
        {"conv2d": 2},
    ),
    "group norm of tokens": (
        lambda m, x: m.fc(m.gn(x.transpose(1, 2)).transpose(1, 2)),
        [TOKENS],
        {"group_norm": 1, "linear": 1},
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str) -> None:
    forward, sizes, want = TAKEN[name]
    gm, _ = compiled(forward, *sizes)
    if want is not None:
        assert live(gm) == want


def test_asymmetric_padding_goes_to_the_right_sides() -> None:
    gm, _ = compiled(lambda m, x: m.point(F.pad(x, (1, 2, 3, 4))), IMAGE)
    assert only(gm, "conv2d").kwargs["padding"] == [3, 4, 1, 2]


def test_larger_convolution_takes_the_smaller_as_residual() -> None:
    for forward in (
        lambda m, x: m.point(x) + m.conv(x),
        lambda m, x: m.conv(x) + m.point(x),
    ):
        gm, _ = compiled(forward, IMAGE)
        (fused,) = (n for n in gm.graph.nodes if n.kwargs.get("residual") is not None)
        assert fused.args[1].meta["val"].shape[2:] == (3, 3)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_named_padding_and_dilation(padding: str, kernel: int) -> None:
    weight = torch.randn(C, C // 2, kernel, kernel)
    net = Net(lambda m, x: F.conv2d(x, m.w, padding=padding, dilation=2, groups=2))
    net.w = nn.Parameter(weight, requires_grad=False)
    gm, inputs = captured(net, [torch.randn(2, C, 9, 7)])
    want = outputs(gm, inputs)
    run(gm)
    assert_close(outputs(gm, inputs), want)
    assert live(gm) == {"conv2d": 1}


def test_norm_shared_by_queries_keys_and_values_is_taken_once() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        h = m.ln(x)
        q, k, v = (f(h).unflatten(-1, (2, C // 2)).transpose(1, 2) for f in (m.fc, m.fc2, m.fc))
        y = F.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).flatten(2)

    gm, _ = compiled(forward, TOKENS)
    assert live(gm) == {"linear": 1, "attention": 1}
    assert only(gm, "attention").kwargs["offsets"] == [0, C, 0]
    assert only(gm, "linear").kwargs["norm"] is True


def test_keys_and_values_are_one_linear_in_each_layer() -> None:
    def forward(m: Net, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        for f, g in ((m.fc, m.fc2), (m.fc3, lambda h: h @ m.big[:, :C, 0, 0])):
            q, k, v = heads(f(x)), heads(f(prompt)), heads(g(prompt))
            x = x + joined(F.scaled_dot_product_attention(q, k, v))
        return x

    gm, _ = compiled(forward, TOKENS, (2, 7, C))
    assert live(gm) == {"linear": 4, "attention": 2, "add": 2}


def test_linear_that_two_attentions_read_stays_apart() -> None:
    def forward(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        k, v = heads(m.fc(y)), heads(m.fc2(y))
        for q in (heads(m.fc3(x)), heads(x)):
            x = x + joined(F.scaled_dot_product_attention(q, k, v))
        return x

    gm, _ = compiled(forward, TOKENS, (2, 7, C))
    assert live(gm) == {"linear": 3, "attention": 2, "add": 2}


@pytest.mark.parametrize("rank", [3, 4])
def test_sums_with_an_image_in_its_own_layout_settle(rank: int) -> None:
    """Neither operand's permute may be pushed back and forth over the sum."""

    def forward(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = y.softmax(1) + m.gn(x)
        return torch.cat([z, y.softmax(1)], 1) + torch.cat([y, m.gn(z)], 1)

    size = IMAGE[:rank]
    gm, _ = compiled(forward, size, size)
    assert live(gm)["group_norm"] == 2


def test_merged_weights_may_be_made_after_the_first_linear() -> None:
    def forward(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(h) for h in (m.fc(x), y @ m.a, y @ m.b.exp()))
        return F.scaled_dot_product_attention(q, k, v)

    net = Net(forward)
    net.a, net.b = (nn.Parameter(torch.randn(C, C) / C, requires_grad=False) for _ in range(2))
    gm, inputs = captured(net, [torch.randn(TOKENS), torch.randn(2, 7, C)])
    want = outputs(gm, inputs)
    run(gm)
    gm.graph.lint()
    assert_close(outputs(gm, inputs), want)
    assert live(gm) == {"linear": 2, "attention": 1}


# What is refused.

REFUSED = {
    "norm with another user": (
        lambda m, x: (lambda h: m.fc(h) * h)(m.ln(x)),
        [TOKENS],
        {"layer_norm", "linear", "mul"},
    ),
    "norm that is an output": (
        lambda m, x: (lambda h: (m.fc(h), h))(m.ln(x)),
        [TOKENS],
        {"layer_norm", "linear"},
    ),
    "norm over two axes": (
        lambda m, x: m.fc(F.layer_norm(x, (5, C))),
        [TOKENS],
        {"layer_norm", "linear"},
    ),
    "linear used before its activation": (
        lambda m, x: (lambda h: F.gelu(h) - h)(m.fc(x)),
        [TOKENS],
        {"linear", "gelu", "sub"},
    ),
    "linear that is an output": (
        lambda m, x: (lambda h: (h, h + x))(m.fc(x)),
        [TOKENS],
        {"linear", "add"},
    ),
    "linear plus itself": (
        lambda m, x: (lambda h: h + h)(m.fc(x)),
        [TOKENS],
        {"linear", "add"},
    ),
    "broadcast residual": (lambda m, x, y: m.fc(x) + y, [TOKENS, (1, 5, C)], {"linear", "add"}),
    "linear broadcast to its sum": (
        lambda m, x, y: m.fc(x) + y,
        [(1, 5, C), TOKENS],
        {"linear", "add"},
    ),
    "scaled residual": (
        lambda m, x: torch.add(m.fc(x), x, alpha=2),
        [TOKENS],
        {"linear", "add"},
    ),
    "activation across a cast": (
        lambda m, x: F.gelu(m.fc(x).double()),
        [TOKENS],
        {"linear", "_to_copy", "gelu"},
    ),
    "residual of another type": (
        lambda m, x: m.fc(x) + x.double(),
        [TOKENS],
        {"linear", "_to_copy", "add"},
    ),
    "gate before value": (
        lambda m, x: (lambda a, b: F.gelu(a) * b)(*m.wide(x).chunk(2, -1)),
        [TOKENS],
        {"linear", "gelu", "mul"},
    ),
    "geglu in unequal parts": (
        lambda m, x: (lambda h: h[..., :C] * F.gelu(h[..., C - 1 : -1]))(m.wide(x)),
        [TOKENS],
        {"linear", "gelu", "mul"},
    ),
    "geglu by tanh": (
        lambda m, x: (lambda a, b: a * F.gelu(b, approximate="tanh"))(*m.wide(x).chunk(2, -1)),
        [TOKENS],
        {"linear", "gelu", "mul"},
    ),
    "group norm with another user": (
        lambda m, x: (lambda h: m.conv(h) * h)(m.gn(x)),
        [IMAGE],
        {"group_norm", "conv2d", "mul"},
    ),
    "norm after activation": (
        lambda m, x: m.conv(m.gn(F.silu(x))),
        [IMAGE],
        {"silu", "conv2d"},
    ),
    "norm after padding": (
        lambda m, x: m.conv(m.gn(F.pad(x, (1, 1, 1, 1)))),
        [IMAGE],
        {"constant_pad_nd", "conv2d"},
    ),
    "padding by another value": (
        lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), value=2.0)),
        [IMAGE],
        {"constant_pad_nd", "conv2d"},
    ),
    "cropping": (
        lambda m, x: m.conv(F.pad(x, (-1, 1, 0, 0))),
        [IMAGE],
        {"constant_pad_nd", "conv2d"},
    ),
    "padding of channels": (
        lambda m, x: m.conv(F.pad(x[:, 1:], (0, 0, 0, 0, 0, 1))),
        [IMAGE],
        {"constant_pad_nd", "conv2d"},
    ),
    "padding before upsampling": (
        lambda m, x: m.conv(
            F.interpolate(F.pad(x, (0, 1, 0, 1)), scale_factor=2.0, mode="nearest")
        ),
        [IMAGE],
        {"constant_pad_nd", "conv2d"},
    ),
    "upsampling threefold": (
        lambda m, x: m.conv(F.interpolate(x, scale_factor=3.0, mode="nearest")),
        [IMAGE],
        {"upsample_nearest2d", "conv2d"},
    ),
    "upsampling of one axis": (
        lambda m, x: m.conv(F.interpolate(x, scale_factor=(2.0, 1.0), mode="nearest")),
        [IMAGE],
        {"upsample_nearest2d", "conv2d"},
    ),
    "concatenated rows": (
        lambda m, x, y: m.conv(torch.cat([x, y], 2)),
        [IMAGE, IMAGE],
        {"cat", "conv2d"},
    ),
    "concatenation with another user": (
        lambda m, x, y: (lambda z: (F.conv2d(z, m.big), z))(torch.cat([x, y], 1)),
        [IMAGE, IMAGE],
        {"cat", "conv2d"},
    ),
    "broadcast image residual": (
        lambda m, x, y: m.conv(x) + y,
        [IMAGE, (1, *IMAGE[1:])],
        {"conv2d", "add"},
    ),
    "one pixel column": (
        lambda m, x, y: m.conv(x) + y,
        [IMAGE, (2, C, 6, 1)],
        {"conv2d", "add"},
    ),
    "convolution used twice": (
        lambda m, x: (lambda h: (h, h + x))(m.conv(x)),
        [IMAGE],
        {"conv2d", "add"},
    ),
    "convolution by an activation": (
        lambda m, x, w: F.conv2d(x, w),
        [IMAGE, (3, C, 1, 1)],
        {"conv2d"},
    ),
    "transposed convolution": (
        lambda m, x: F.conv_transpose2d(x, m.conv.weight),
        [IMAGE],
        {"convolution"},
    ),
    "scalar tensor": (
        lambda m, x: m.conv(x) * m.scale + m.scale,
        [IMAGE],
        {"conv2d", "mul", "add"},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    forward, sizes, want = REFUSED[name]
    gm, _ = compiled(forward, *sizes)
    assert set(live(gm)) == want


def test_wide_linears_that_share_an_input_stay_apart() -> None:
    """Merging them would copy slices as large as the results."""
    gm, _ = compiled(lambda m, x: m.fc(x) * m.fc2(x), (64, C))
    assert live(gm) == {"linear": 2, "mul": 1}


# Attention.


def heads(x: torch.Tensor, n: int = 2) -> torch.Tensor:
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def joined(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


def folded(x: torch.Tensor) -> torch.Tensor:
    return heads(x).flatten(0, 1)


def by_parts(m: Net, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    p = (heads(q) @ heads(k).transpose(-1, -2) * 0.5).softmax(-1)
    return joined(p @ heads(v))


def by_parts_folded(m: Net, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(q.shape[0] * 2, q.shape[1], k.shape[1])
    scores = torch.baddbmm(empty, folded(q), folded(k).transpose(-1, -2), beta=0, alpha=0.5)
    y = torch.bmm(scores.softmax(-1), folded(v))
    return joined(y.unflatten(0, (-1, 2)))


QKV = [TOKENS, (2, 7, C), (2, 7, C)]
ATTENTION = {
    "fused": (
        lambda m, q, k, v: joined(F.scaled_dot_product_attention(*map(heads, (q, k, v)))),
        QKV,
    ),
    "scaled": (
        lambda m, q, k, v: joined(
            F.scaled_dot_product_attention(*map(heads, (q, k, v)), scale=0.3)
        ),
        QKV,
    ),
    "causal": (
        lambda m, q, k, v: joined(
            F.scaled_dot_product_attention(*map(heads, (q, k, v)), is_causal=True)
        ),
        [TOKENS] * 3,
    ),
    "masked": (
        lambda m, q, k, v, b: joined(
            F.scaled_dot_product_attention(*map(heads, (q, k, v)), attn_mask=b)
        ),
        [*QKV, (2, 1, 5, 7)],
    ),
    "mask of bits": (
        lambda m, q, k, v, b: joined(
            F.scaled_dot_product_attention(*map(heads, (q, k, v)), attn_mask=b > -1)
        ),
        [*QKV, (5, 7)],
    ),
    "one head": (F.scaled_dot_product_attention, QKV),
    "parts": (by_parts, QKV),
    "parts, heads folded": (by_parts_folded, QKV),
    "parts, masked": (
        lambda m, q, k, v, b: joined(
            ((heads(q) @ heads(k).transpose(-1, -2)) / 2 + b).softmax(-1) @ heads(v)
        ),
        [*QKV, (2, 1, 5, 7)],
    ),
}


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("batch", [1, 2])
def test_attention(name: str, batch: int) -> None:
    forward, sizes = ATTENTION[name]
    if forward is F.scaled_dot_product_attention:
        forward = lambda m, *args: F.scaled_dot_product_attention(*args)  # noqa: E731
    sizes = [(batch if len(size) > 2 else size[0], *size[1:]) for size in sizes]
    gm, _ = compiled(forward, *sizes)
    got = live(gm)
    got.pop("gt", None)
    assert got == {"attention": 1}
    if name != "one head" and not (name == "parts, heads folded" and batch == 1):
        assert only(gm, "attention").kwargs["heads"] == 2
    assert counts(gm)["aten.permute.default"] == 0


def test_softmax_over_another_axis_is_no_attention() -> None:
    gm, _ = compiled(lambda m, q, k, v: (q @ k.mT).softmax(1) @ v, *QKV)
    assert set(live(gm)) == {"matmul", "softmax"} or set(live(gm)) == {"matmul", "_softmax"}


def test_scores_that_are_an_output_stay() -> None:
    gm, _ = compiled(lambda m, q, k, v: (lambda p: (p @ v, p))((q @ k.mT).softmax(-1)), *QKV)
    assert live(gm)["matmul"] == 2


# Types.


def test_float_timestep_keeps_its_precision_until_a_weight() -> None:
    """981 is no bfloat16: cast at the edge, the sine would be that of 980."""

    def forward(m: Net, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        angle = t[:, None] * torch.exp(-torch.arange(C, dtype=torch.float32))
        return m.conv(x) + m.fc(torch.sin(angle))[:, :, None, None]

    net = Net(forward)
    inputs = [torch.randn(IMAGE), torch.tensor([981.0, 983.0])]
    gm, inputs = captured(net, inputs)
    (want,) = outputs(gm, inputs)
    run(gm, Context(dtype=torch.bfloat16))
    assert_meta_is_true(gm)
    (got,) = outputs(gm, inputs)
    assert_close([got], [want], 2e-2)
    (sin,) = (n for n in gm.graph.nodes if str(n.target) == "aten.sin.default")
    assert sin.meta["val"].dtype == torch.float32
    assert {n.meta["val"].dtype for n in gm.graph.nodes if "zoomc" in str(n.target)} == {
        torch.bfloat16
    }
    # Inputs are cast once each, weights once each, the output back once.
    casts = [n for n in gm.graph.nodes if str(n.target) == "aten._to_copy.default"]
    assert len(casts) == 2 + 4 + 1


def test_half_model_raised_to_single() -> None:
    net = Net(lambda m, x: m.fc(F.silu(m.fc2(x).float()).to(torch.bfloat16))).bfloat16()
    gm, inputs = captured(net, [torch.randn(TOKENS).bfloat16()])
    run(gm, Context(dtype=torch.float32))
    assert_meta_is_true(gm)
    kinds = {n.meta["val"].dtype for n in gm.graph.nodes if "zoomc" in str(n.target)}
    assert kinds == {torch.float32}
    (y,) = outputs(gm, inputs)
    assert y.dtype == torch.bfloat16


def test_explicit_upcast_in_a_half_model_stays() -> None:
    net = Net(lambda m, x: m.fc(F.softmax(m.fc2(x).float(), -1).half())).bfloat16()
    net.fc.half()
    gm, inputs = captured(net, [torch.randn(TOKENS).bfloat16()])
    want = outputs(gm, inputs)
    run(gm)
    assert_close(outputs(gm, inputs), want)
    (softmax,) = (n for n in gm.graph.nodes if "softmax" in str(n.target))
    assert softmax.meta["val"].dtype == torch.float32


def test_the_models_own_type_changes_nothing() -> None:
    gm, trace = compiled(lambda m, x: m.fc(x), TOKENS, context=Context(dtype=torch.float32))
    assert counts(gm) == {"zoomc.linear.default": 1}
    assert trace.rewrites == 1


# Constants.


def test_constants_are_marked_not_evaluated() -> None:
    gm, _ = compiled(
        lambda m, x: F.linear(x, m.fc.weight * 2 + torch.arange(C), m.vector.exp()), TOKENS
    )
    constant = {n.name for n in constant_nodes(gm)}
    for node in gm.graph.nodes:
        assert node.meta["constant"] == (node.name in constant)
        if node.op == "call_function":
            assert node.meta["constant"] == (str(node.target) != "zoomc.linear.default")
    assert {"aten.mul.Tensor", "aten.exp.default"} <= set(counts(gm))


def test_random_values_are_neither_constant_nor_shared() -> None:
    net = Net(lambda m, x: m.fc(x) * torch.rand(C) + torch.rand(C))
    gm, _ = captured(net, [torch.randn(TOKENS)])
    run(gm)
    random = [n for n in gm.graph.nodes if "rand" in str(n.target)]
    assert len(random) == 2 and not any(n.meta["constant"] for n in random)
