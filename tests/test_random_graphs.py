"""Random modules of supported operators: whatever the passes fuse, the numbers are eager's."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, note, settings
from torch import nn

LARGEST = 20_000


Operator = Callable[["Program"], str]


class Program:
    """A module as text, built line by line; every line runs at once, which gives its shape.

    A shorter program of the same seed is the longer one's beginning, so that a failure shrinks.
    """

    def __init__(self, operators: Sequence[Operator], seed: int, length: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.values: dict[str, torch.Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)
        batch = self.integer(1, 3)
        image = (batch, *(self.integer(1, 9) for _ in range(3)))
        for shape in (image, image, (batch, self.integer(1, 7), self.integer(1, 20))):
            name = f"v{len(self.values)}"
            self.values[name] = torch.randn(shape, generator=self.generator)
        self.inputs = {name: value.clone() for name, value in self.values.items()}
        for _ in range(length):
            self.add(self.choose(operators)(self))
        if not self.lines:
            self.add("v0 * 2 + v1")

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def choose(self, options: Any) -> Any:
        return self.random.choice(list(options))

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        """The name of a new parameter."""
        name = f"w{len(self.weights)}"
        self.weights[name] = torch.randn(shape, generator=self.generator) / fan_in**0.5
        return f"self.{name}"

    def pick(self, *ranks: int) -> tuple[str, torch.Size]:
        """Some value of one of these ranks; often the newest, so that chains grow long."""
        names = [n for n, v in self.values.items() if v.dim() in (ranks or (1, 2, 3, 4, 5))]
        name = self.choose([names[-1], self.choose(names)]) if names else "v0"
        return name, self.values[name].shape

    def add(self, expression: str) -> None:
        """Append a line, unless it does not run, gives nothing, or gives too much."""
        scope = {"F": F, "torch": torch, **{k: v.clone() for k, v in self.values.items()}}
        scope["self"] = type("", (), self.weights)
        name = f"v{len(self.values)}"
        try:
            exec(f"{name} = {expression}", scope)
        except (RuntimeError, IndexError, ValueError):
            return
        result = scope[name]
        if result.dtype is not torch.float32 or not 0 < result.numel() <= LARGEST:
            return
        if result.isfinite().all() and result.abs().max() < 1e4:
            self.lines.append(f"{name} = {expression}")
            self.values = {k: scope[k] for k in self.values} | {name: result}

    def source(self) -> str:
        """The module's ``forward``; it returns what no line reads, and some of the rest."""
        made = list(self.values)[len(self.inputs) :]
        read = {n for line in self.lines for n in re.findall(r"v\d+", line.split(" = ", 1)[1])}
        results = [n for n in made if n not in read or n.endswith("5")]
        lines = [*self.lines, f"return ({', '.join(results)},)"]
        body = "".join(f"    {line}\n" for line in lines)
        return f"def forward(self, {', '.join(self.inputs)}):\n{body}"

    def module(self) -> nn.Module:
        """The module itself, its weights parameters."""
        scope = {"F": F, "torch": torch}
        exec(self.source(), scope)
        module = type("Random", (nn.Module,), {"forward": scope["forward"]})()
        for name, weight in self.weights.items():
            setattr(module, name, nn.Parameter(weight.clone(), requires_grad=False))
        return module.eval()


def conv(p: Program) -> str:
    x, (_, channels, *_) = p.pick(4)
    groups = p.choose([g for g in (1, 2, 3, channels) if channels % g == 0])
    out = groups * p.integer(1, 5)
    height, width = p.choose([(1, 1), (3, 3), (3, 3), (1, 3), (2, 2), (5, 4)])
    inner = channels // groups
    weight = p.weight(out, inner, height, width, fan_in=inner * height * width)
    bias = p.weight(out) if p.integer(0, 1) else None
    stride, padding = p.choose([1, 1, 2, (2, 1)]), p.choose([0, 1, 1, (2, 1), (0, 3)])
    dilation = p.choose([1, 1, 1, 2])
    return (
        f"F.conv2d({x}, {weight}, {bias}, stride={stride}, padding={padding},"
        f" dilation={dilation}, groups={groups})"
    )


def linear(p: Program) -> str:
    x, shape = p.pick()
    out = p.integer(1, 40)
    weight = p.weight(out, shape[-1], fan_in=shape[-1])
    return f"F.linear({x}, {weight}, {p.weight(out) if p.integer(0, 1) else None})"


def geglu(p: Program) -> str:
    x, shape = p.pick()
    out = p.integer(1, 20)
    weight, bias = p.weight(2 * out, shape[-1], fan_in=shape[-1]), p.weight(2 * out)
    gate = p.choose(["torch.sigmoid", "F.gelu", "F.silu"])
    return f"(lambda a, b: a * {gate}(b))(*F.linear({x}, {weight}, {bias}).chunk(2, -1))"


def layer_norm(p: Program) -> str:
    x, shape = p.pick()
    affine = f"{p.weight(shape[-1])}, {p.weight(shape[-1])}" if p.integer(0, 2) else "None, None"
    return f"F.layer_norm({x}, ({shape[-1]},), {affine}, {p.choose([1e-5, 1e-2])})"


def group_norm(p: Program) -> str:
    x, (_, channels, *_) = p.pick(3, 4)
    groups = p.choose([g for g in (1, 2, 4, channels) if channels % g == 0])
    affine = f"{p.weight(channels)}, {p.weight(channels)}" if p.integer(0, 2) else "None, None"
    return f"F.group_norm({x}, {groups}, {affine}, 1e-3)"


def activation(p: Program) -> str:
    names = ["F.silu", "F.gelu", "F.relu", "torch.sigmoid", "torch.tanh"]
    return f"{p.choose(names)}({p.pick()[0]})"


def more_pointwise(p: Program) -> str:
    x = p.pick()[0]
    return p.choose(
        [
            f"F.gelu({x}, approximate='tanh')",
            f"F.leaky_relu({x}, 0.1)",
            f"F.elu({x})",
            f"F.softplus({x})",
            f"F.hardtanh({x})",
            f"{x}.abs().sqrt()",
            f"{x}.clamp(-0.5, 1)",
            f"torch.exp(-{x} * {x})",
            f"torch.rsqrt({x} ** 2 + 1)",
            f"torch.sin({x}) - torch.cos({x})",
            f"{x} / (1 + {x}.abs())",
            f"2 - {x}",
            f"{x} * torch.sigmoid(1.702 * {x})",
        ]
    )


def softmax(p: Program) -> str:
    x, shape = p.pick()
    return f"F.softmax({x}, {p.integer(-len(shape), len(shape) - 1)})"


def arithmetic(p: Program) -> str:
    a, b, sign = p.pick()[0], p.pick()[0], p.choose("+-*")
    return p.choose([f"{a} {sign} {b}", f"{a} {sign} 0.5", f"torch.add({a}, {b}, alpha=-2)"])


def broadcast(p: Program) -> str:
    x, shape = p.pick()
    keep = [size if p.integer(0, 1) else 1 for size in shape]
    other = p.weight(*keep[p.integer(0, len(shape) - 1) :])
    return f"{x} {p.choose('+*-')} {other}"


def cat(p: Program) -> str:
    x, shape = p.pick()
    others = [n for n, v in p.values.items() if v.dim() == len(shape)]
    parts = [x, *(p.choose(others) for _ in range(p.integer(1, 2)))]
    return f"torch.cat([{', '.join(parts)}], {p.integer(-len(shape), len(shape) - 1)})"


def split(p: Program) -> str:
    x, shape = p.pick()
    axis = p.integer(0, len(shape) - 1)
    if p.integer(0, 1):
        return f"{x}.chunk({p.integer(1, 3)}, {axis})[-1]"
    return f"{x}.split({p.integer(1, max(1, shape[axis]))}, {axis})[0]"


def move(p: Program) -> str:
    x, shape = p.pick()
    axes = p.random.sample(range(len(shape)), len(shape))
    first, last = p.integer(0, len(shape) - 1), p.integer(0, len(shape) - 1)
    ways = [f"{x}.permute({tuple(axes)})", f"{x}.transpose({first}, {last})", f"{x}.flatten(1)"]
    ways += [f"{x}.unsqueeze({first})"] if len(shape) < 4 else [f"{x}.flatten(2).transpose(1, 2)"]
    return p.choose([*ways, f"{x}.reshape({shape[0]}, -1, {shape[-1]})"])


def slicing(p: Program) -> str:
    x, shape = p.pick()
    axis = p.integer(0, len(shape) - 1)
    size = shape[axis]
    part = f"{p.integer(-size, size - 1)}:{p.choose(['', size, -1])}:{p.choose(['', 2])}"
    return f"{x}[{', '.join([':'] * axis + [p.choose([part, part, part, '0', '-1'])])}]"


def reduce(p: Program) -> str:
    x, shape = p.pick()
    dims = p.random.sample(range(len(shape)), p.integer(1, len(shape)))
    name = p.choose(["mean", "sum", "amax", "amin"])
    return f"{x}.{name}({tuple(sorted(dims))}, keepdim={p.integer(0, 2) > 0})"


def upsample(p: Program) -> str:
    return f"F.interpolate({p.pick(4)[0]}, scale_factor=2.0, mode='nearest')"


def upsample_to(p: Program) -> str:
    x, (*_, height, width) = p.pick(4)
    return f"F.interpolate({x}, size=({height + p.integer(0, 3)}, {2 * width}), mode='nearest')"


def attention(p: Program) -> str:
    x, (batch, _, channels) = p.pick(3)
    context = p.choose([n for n, v in p.values.items() if v.dim() == 3 and len(v) == batch])
    heads, inner = p.integer(1, 3), p.integer(1, 9)
    project = "F.linear({}, {}).view(" + f"{batch}, -1, {heads}, {inner}).transpose(1, 2)"
    width = p.values[context].shape[-1]
    q = project.format(x, p.weight(heads * inner, channels, fan_in=channels))
    k, v = (project.format(context, p.weight(heads * inner, width, fan_in=width)) for _ in range(2))
    extra = p.choose(["", "", ", is_causal=True", ", scale=0.3"])
    product = f"F.scaled_dot_product_attention({q}, {k}, {v}{extra})"
    return p.choose([product, f"{product}.transpose(1, 2).flatten(2)"])


def bare_attention(p: Program) -> str:
    x, _ = p.pick(3, 4)
    return f"F.scaled_dot_product_attention({x}, {p.pick(3, 4)[0]}, {x})"


def matmul(p: Program) -> str:
    a, shape = p.pick(2, 3, 4)
    b = p.pick(2, 3, 4)[0]
    return p.choose(
        [
            f"{a} @ {b}",
            f"{a} @ {b}.transpose(-1, -2)",
            f"{a}.transpose(-1, -2) @ {a} / {shape[-2]}",
            f"{a} @ {p.weight(shape[-1], p.integer(1, 9), fan_in=shape[-1])}",
        ]
    )


def pad(p: Program) -> str:
    x, shape = p.pick()
    amounts = [p.integer(-1, 2) for _ in range(2 * p.integer(1, min(2, len(shape))))]
    return f"F.pad({x}, {tuple(amounts)}, value={p.choose([0.0, 0.0, 1.5])})"


def where(p: Program) -> str:
    """Continuous where the mask flips, or rounding alone could change a result."""
    a, b = p.pick()[0], p.pick()[0]
    sign = p.choose([">", ">=", "<", "<="])
    return p.choose(
        [f"torch.where({a} {sign} 0, {a}, {a} * {b})", f"torch.where({a} {sign} {b}, {a}, {b})"]
    )


def in_place(p: Program) -> str:
    a, b = p.pick()[0], p.pick()[0]
    return p.choose([f"{a}.relu_()", f"{a}.add_({b})", f"{a}.mul_(0.5)", f"F.silu({a}, True)"])


CORE = [
    conv,
    linear,
    geglu,
    layer_norm,
    group_norm,
    activation,
    softmax,
    arithmetic,
    broadcast,
    cat,
    split,
    move,
    slicing,
    reduce,
    upsample,
    upsample_to,
    attention,
    matmul,
    pad,
    where,
]
ALL = [*CORE, more_pointwise, bare_attention, in_place]


def programs(operators: Sequence[Operator]) -> st.SearchStrategy[Program]:
    return st.builds(Program, st.just(operators), st.integers(0, 2**32), st.integers(2, 12))


def check(program: Program, options: dict[str, Any]) -> None:
    """Compare with eager, allowing what eager's own distance from fp64 allows."""
    note(program.source())
    for name, value in program.inputs.items():
        note(f"{name}: {tuple(value.shape)}")
    for name, value in program.weights.items():
        note(f"self.{name}: {tuple(value.shape)}")
    torch._dynamo.reset()
    module = program.module()
    inputs = [[v.clone() for v in program.inputs.values()] for _ in range(3)]
    expected = module(*inputs[0])
    actual = torch.compile(module, backend="zoomc", options=options)(*inputs[1])
    inputs[2] = [v.double() for v in inputs[2]]
    exact = program.module().double()(*inputs[2])
    # In-place updates reach the arguments as well.
    triples = zip((*actual, *inputs[1]), (*expected, *inputs[0]), (*exact, *inputs[2]), strict=True)
    for a, e, truth in triples:
        assert a.shape == e.shape and a.dtype == e.dtype
        spread = (e - truth).abs().max().item()
        scale = truth.abs().max().item()
        error = (a - truth).abs().max().item()
        assert error <= 1e-5 * scale + 20 * spread + 1e-6, f"{error=} {spread=} {scale=}"


COMMON = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=list(HealthCheck),
)


@COMMON
@given(programs(CORE))
def test_core_operators_never_fall_back(program: Program) -> None:
    check(program, {"fallback": "error"})


@COMMON
@given(programs(ALL))
def test_any_operators_are_right(program: Program) -> None:
    check(program, {"fallback": "eager"})
