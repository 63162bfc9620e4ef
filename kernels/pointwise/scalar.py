"""One lane's worth of every pointwise operator, on scalars or vectors alike.

Floats narrower than 32 bits are computed in fp32 and rounded where they are stored or converted;
fp64 stays fp64, integers wrap in their own dtype, and booleans are bytes of 0 or 1. Types promote
as torch promotes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..tir import math as m
from ..tir.kernel import STORAGE, Call, Unsupported, Value
from ..tir.memory import from_fp32, is_nan, splat, to_fp32, typed

Expr = Any
#: Reads an argument: ``read(value or number, dtype)`` gives lanes of that dtype.
Read = Callable[[Any, torch.dtype], Expr]

_HALF = (torch.bfloat16, torch.float16)


def computed(dtype: torch.dtype) -> str:
    """The TIR dtype in which a torch dtype is computed."""
    return "float32" if dtype in _HALF else STORAGE[dtype]


def literal(value: Any, dtype: torch.dtype, n: int) -> Expr:
    """A number in every lane."""
    kind = computed(dtype)
    if kind.startswith("float"):
        return splat(getattr(T, kind)(float(value)), n)
    if dtype is torch.bool:
        return splat(T.uint8(int(bool(value))), n)
    info = torch.iinfo(dtype)
    wrapped = (int(value) - info.min) % (info.max - info.min + 1) + info.min
    return splat(getattr(T, kind)(wrapped), n)


def flag(condition: Expr, n: int) -> Expr:
    """A condition as a boolean value."""
    return T.Select(condition, splat(T.uint8(1), n), splat(T.uint8(0), n))


def unless(condition: Expr, n: int) -> Expr:
    """The opposite of a condition as a boolean value; right for unordered floats too."""
    return T.Select(condition, splat(T.uint8(0), n), splat(T.uint8(1), n))


def truth(x: Expr, dtype: torch.dtype, n: int) -> Expr:
    """Whether lanes are not zero (a NaN is not), as a boolean value."""
    return unless(T.EQ(x, literal(0, dtype, n)), n)


def chosen(x: Expr, n: int) -> Expr:
    """A boolean value as a condition."""
    return T.GT(x, splat(T.uint8(0), n))


def convert(x: Expr, source: torch.dtype, dtype: torch.dtype, n: int) -> Expr:
    """Convert lanes as torch does; a narrow float is rounded to what its dtype holds."""
    if source is dtype:
        return x
    if dtype is torch.bool:
        return truth(x, source, n)
    have, want = computed(source), computed(dtype)
    if source.is_floating_point and not dtype.is_floating_point:
        wide = "int64" if dtype is torch.int64 else "int32"
        x = T.Cast(typed(wide, n), x)
        have = wide
    if have != want:
        x = T.Cast(typed(want, n), x)
    if dtype in _HALF and source not in _HALF:
        x = m.let(x)
        stored = STORAGE[dtype]
        x = to_fp32(from_fp32(x, stored, n), stored, n)
    return x


def common(*values: Any) -> torch.dtype:
    """The dtype torch promotes these operands to."""

    def stand_in(x: Any) -> Any:
        if isinstance(x, Value):
            return torch.empty([1] * len(x.spec.shape), dtype=x.spec.dtype, device="meta")
        return x

    result = stand_in(values[0])
    if len(values) == 1:
        return torch.result_type(result, result)
    dtype = torch.result_type(result, stand_in(values[1]))
    for i in range(2, len(values)):
        dtype = torch.promote_types(dtype, torch.result_type(result, stand_in(values[i])))
    return dtype


# Arithmetic that must not pass through TVM's simplifier as if integers never overflowed is on
# data, never on indices; ``let`` hides it from the simplifier.


def _extern(name: str, dtype: torch.dtype, *args: Expr) -> Expr:
    """The C library's function, one lane."""
    kind = computed(dtype)
    return T.call_pure_extern(kind, name + ("" if kind == "float64" else "f"), *args)


def elementary(name: str, x: Expr, dtype: torch.dtype, n: int) -> Expr:
    """An elementary function: vector code in fp32 where there is some, else the C library."""
    fast = getattr(m, name, None)
    if computed(dtype) == "float32" and fast is not None:
        return fast(x, n)
    one = literal(1, dtype, n)
    if name == "rsqrt":
        return one / T.sqrt(x)
    if name == "sqrt":
        return T.sqrt(x)
    if name == "reciprocal":
        return one / x
    if name == "sigmoid":
        return one / (one + _extern("exp", dtype, literal(0, dtype, n) - x))
    return _extern(name, dtype, x)


_CIRCULAR = {"tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erfc"}
_ELEMENTARY = {
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos",
    "tanh", "sigmoid", "erf", "reciprocal", *_CIRCULAR,
}  # fmt: skip
_COMPARE = {"eq": T.EQ, "ne": None, "lt": T.LT, "le": T.LE, "gt": T.GT, "ge": T.GE}
_ROUND = {"floor": T.floor, "ceil": T.ceil, "trunc": T.trunc, "round": T.nearbyint}
_IDENTITY = {"clone", "alias", "detach", "contiguous", "lift_fresh_copy", "_to_copy", "to",
             "dropout", "detach_", "type_as"}  # fmt: skip
_BITWISE = {"bitwise_and": T.bitwise_and, "bitwise_or": T.bitwise_or, "bitwise_xor": T.bitwise_xor}
_LOGICAL = {
    "logical_and": T.bitwise_and,
    "logical_or": T.bitwise_or,
    "logical_xor": T.bitwise_xor,
}


def family(op: str) -> str:
    """``add`` for ``aten::add.Tensor``."""
    return op.removeprefix("aten::").split(".")[0]


def scalar_only(call: Call) -> bool:
    """Whether the operator calls the C library, which takes one lane at a time."""
    name = family(call.op)
    dtypes = [v.spec.dtype for v in call.args.values() if isinstance(v, Value)] + [call.out.dtype]
    if torch.float64 in dtypes:
        return True
    if name == "pow":
        return not (isinstance(call["exponent"], (int, float)) and call["exponent"] in _POWERS)
    floats = any(d.is_floating_point for d in dtypes)
    return (
        name in _CIRCULAR
        or name == "atan2"
        or (floats and name in ("fmod", "remainder", "floor_divide"))
        or (floats and call.args.get("rounding_mode") == "floor")
    )


_POWERS = (0, 1, 2, 3, 0.5, -0.5, -1, -2)


def _nan_aware(a: Expr, b: Expr, better: Any, floating: bool, n: int) -> Expr:
    a, b = m.let(a), m.let(b)
    best = T.Select(better(a, b), a, b)
    return T.Select(is_nan(a, n), a, best) if floating else best


def maximum(a: Expr, b: Expr, dtype: torch.dtype, n: int) -> Expr:
    """The larger; NaN if either is."""
    return _nan_aware(a, b, T.GT, dtype.is_floating_point, n)


def minimum(a: Expr, b: Expr, dtype: torch.dtype, n: int) -> Expr:
    """The smaller; NaN if either is."""
    return _nan_aware(a, b, T.LT, dtype.is_floating_point, n)


def _divide(a: Expr, b: Expr, dtype: torch.dtype, mode: str, n: int) -> Expr:
    """Quotient rounded down (``floor``) or to zero (``trunc``), and the remainders likewise."""
    a, b = m.let(a), m.let(b)
    zero = literal(0, dtype, n)
    if not dtype.is_floating_point:
        one = literal(1, dtype, n)
        b = m.let(T.Select(T.EQ(b, zero), one, b))  # torch raises; here at least no trap
        if dtype.is_signed:
            minus = T.EQ(b, literal(-1, dtype, n))
            safe = m.let(T.Select(minus, one, b))
        else:
            minus, safe = None, b
        quotient = m.let(T.truncdiv(a, safe))
        rest = m.let(a - quotient * safe)
        if mode in ("floor", "remainder") and dtype.is_signed:
            down = flag(T.LT(T.bitwise_xor(rest, b), zero), n)
            down = m.let(T.Select(T.EQ(rest, zero), splat(T.uint8(0), n), down))
            moved = T.Cast(typed(computed(dtype), n), down)
            quotient, rest = quotient - moved, rest + moved * b
        if mode in ("floor", "trunc"):
            return quotient if minus is None else T.Select(minus, zero - a, quotient)
        return rest if minus is None else T.Select(minus, zero, rest)
    if mode == "trunc":
        return T.trunc(a / b)
    rest = m.let(_extern("fmod", dtype, a, b))
    if mode == "fmod":
        return rest
    other = T.NE(flag(T.LT(b, zero), n), flag(T.LT(rest, zero), n))
    moved = T.Select(T.NE(rest, zero), T.Select(other, literal(1, dtype, n), zero), zero)
    moved = m.let(moved)
    if mode == "remainder":
        return T.Select(T.NE(moved, zero), rest + b, rest)
    quotient = m.let((a - rest) / b - moved)
    down = m.let(T.floor(quotient))
    nearest = T.Select(
        T.GT(quotient - down, literal(0.5, dtype, n)), down + literal(1, dtype, n), down
    )
    signed = T.Select(T.EQ(quotient, zero), zero * (a / b), nearest)
    return T.Select(T.EQ(b, zero), a / b, signed)


def _power(call: Call, read: Read, n: int) -> Expr:
    base, exponent = call["self"], call["exponent"]
    out = call.out.dtype
    x = m.let(read(base, out))
    if isinstance(exponent, (int, float)) and exponent in _POWERS:
        one = literal(1, out, n)
        if not out.is_floating_point and exponent < 0:
            raise Unsupported("an integer to a negative power")
        return {
            0: lambda: one,
            1: lambda: x,
            2: lambda: x * x,
            3: lambda: x * x * x,
            0.5: lambda: T.sqrt(x),
            -0.5: lambda: one / T.sqrt(x),
            -1: lambda: one / x,
            -2: lambda: one / (x * x),
        }[exponent]()
    if not out.is_floating_point:
        raise Unsupported("a power of integers")
    return _extern("pow", out, x, read(exponent, out))


def pointwise(call: Call, read: Read, n: int) -> Expr:
    """Lanes of the result, in the dtype :func:`computed` gives for ``call.out.dtype``.

    Raises:
        Unsupported: the operator, or these dtypes or options of it, are not known here.
    """
    name, out, args = family(call.op), call.out.dtype, call.args
    x = args.get("self", args.get("input"))
    zero, one = literal(0, out, n), literal(1, out, n)

    if name in _IDENTITY:
        if name == "dropout" and args["train"]:
            raise Unsupported("dropout in training")
        return read(x, out)
    if name in _ELEMENTARY:
        return elementary(name, m.let(read(x, out)), out, n)
    if name in ("add", "sub", "rsub"):
        alpha = args.get("alpha", 1)
        a, b = read(x, out), read(args["other"], out)
        if out is torch.bool:
            if name != "add" or alpha != 1:
                raise Unsupported("subtraction of booleans")
            return T.bitwise_or(a, b)
        if name == "rsub":
            a, b = b, a
        if alpha != 1:
            b = b * literal(alpha, out, n)
        return a - b if name in ("sub", "rsub") else a + b
    if name == "mul":
        a, b = read(x, out), read(args["other"], out)
        return T.bitwise_and(a, b) if out is torch.bool else a * b
    if name in ("div", "floor_divide"):
        mode = "floor" if name == "floor_divide" else args.get("rounding_mode")
        a, b = read(x, out), read(args["other"], out)
        return a / b if mode is None else _divide(a, b, out, mode, n)
    if name in ("fmod", "remainder"):
        return _divide(read(x, out), read(args["other"], out), out, name, n)
    if name == "pow":
        return _power(call, read, n)
    if name == "atan2":
        return _extern("atan2", out, read(x, out), read(args["other"], out))
    if name == "neg":
        a = read(x, out)
        return a * literal(-1, out, n) if out.is_floating_point else zero - a
    if name == "abs":
        a = m.let(read(x, out))
        if computed(out) == "float32":
            return m.absolute(a, n)
        return T.abs(a) if out.is_floating_point else T.Select(T.LT(a, zero), zero - a, a)
    if name in ("sign", "sgn"):
        a = m.let(read(x, out))
        below = zero - one if out.is_signed else zero
        y = T.Select(T.GT(a, zero), one, T.Select(T.LT(a, zero), below, zero))
        return T.Select(is_nan(a, n), zero, y) if out.is_floating_point else y
    if name in _ROUND:
        if args.get("decimals"):
            raise Unsupported("rounding to decimals")
        a = read(x, out)
        return _ROUND[name](a) if out.is_floating_point else a
    if name in ("minimum", "maximum"):
        better = minimum if name == "minimum" else maximum
        return better(read(x, out), read(args["other"], out), out, n)
    if name in ("clamp", "clamp_min", "clamp_max", "hardtanh", "relu6"):
        low, high = args.get("min", args.get("min_val")), args.get("max", args.get("max_val"))
        y = read(x, out)
        if low is not None:
            y = maximum(y, read(low, out), out, n)
        return y if high is None else minimum(y, read(high, out), out, n)
    if name in _COMPARE:
        dtype = common(x, args["other"])
        a, b = read(x, dtype), read(args["other"], dtype)
        if name == "ne":  # TVM's own is false for NaN
            return unless(T.EQ(a, b), n)
        return flag(_COMPARE[name](a, b), n)
    if name in ("isnan", "isinf", "isfinite"):
        dtype = x.spec.dtype
        if not dtype.is_floating_point:
            return literal(name == "isfinite", torch.bool, n)
        a = m.let(read(x, dtype))
        if name == "isnan":
            return flag(is_nan(a, n), n)
        infinite = T.EQ(T.abs(a), literal(math.inf, dtype, n))
        if name == "isinf":
            return flag(infinite, n)
        return flag(T.LT(T.abs(a), literal(math.inf, dtype, n)), n)
    if name in _LOGICAL:
        return _LOGICAL[name](read(x, torch.bool), read(args["other"], torch.bool))
    if name == "logical_not":
        return T.bitwise_xor(read(x, torch.bool), splat(T.uint8(1), n))
    if name in _BITWISE:
        return _BITWISE[name](read(x, out), read(args["other"], out))
    if name == "bitwise_not":
        a = read(x, out)
        return T.bitwise_xor(a, literal(1 if out is torch.bool else -1, out, n))
    if name == "where":
        yes = chosen(read(args["condition"], torch.bool), n)
        return T.Select(yes, read(x, out), read(args["other"], out))
    if name == "masked_fill":
        yes = chosen(read(args["mask"], torch.bool), n)
        return T.Select(yes, read(args["value"], out), read(x, out))
    if name in ("addcmul", "addcdiv"):
        a, b = read(args["tensor1"], out), read(args["tensor2"], out)
        a = a * literal(args["value"], out, n)
        return read(x, out) + (a * b if name == "addcmul" else a / b)
    if name == "lerp":
        a, b = m.let(read(x, out)), m.let(read(args["end"], out))
        w = m.let(read(args["weight"], out))
        near = a + w * (b - a)
        far = b - (b - a) * (one - w)
        return T.Select(T.LT(T.abs(w), literal(0.5, out, n)), near, far)
    return _activation(name, args, m.let(read(x, out)), out, n)


def _activation(name: str, args: Any, x: Expr, out: torch.dtype, n: int) -> Expr:
    zero, one = literal(0, out, n), literal(1, out, n)

    def c(value: float) -> Expr:
        return literal(value, out, n)

    if name == "relu":
        return T.Select(T.LT(x, zero), zero, x)
    if not out.is_floating_point:
        raise Unsupported(f"no kernel for aten::{name} of integers")
    single = computed(out) == "float32"
    if name in ("silu", "gelu"):
        kind = name if args.get("approximate", "none") == "none" else "gelu_tanh"
        if single:
            return m.ACTIVATIONS[kind](x, n)
        if kind == "silu":
            return x / (one + _extern("exp", out, zero - x))
        if kind == "gelu":
            return c(0.5) * x * (one + _extern("erf", out, x * c(math.sqrt(0.5))))
        inner = c(math.sqrt(2 / math.pi)) * (x + c(0.044715) * x * x * x)
        return c(0.5) * x * (one + _extern("tanh", out, inner))
    if name == "leaky_relu":
        return T.Select(T.GT(x, zero), x, x * c(args["negative_slope"]))
    if name == "elu":
        scale, alpha = args.get("scale", 1), args.get("alpha", 1)
        low = elementary("expm1", m.let(x * c(args.get("input_scale", 1))), out, n)
        return T.Select(T.GT(x, zero), x * c(scale), low * c(alpha * scale))
    if name == "softplus":
        scaled = m.let(x * c(args["beta"]))
        soft = elementary("log1p", m.let(elementary("exp", scaled, out, n)), out, n)
        return T.Select(T.GT(scaled, c(args["threshold"])), x, soft / c(args["beta"]))
    if name in ("hardsigmoid", "hardswish"):
        gate = minimum(maximum(x + c(3), zero, out, n), c(6), out, n) / c(6)
        return gate if name == "hardsigmoid" else x * gate
    raise Unsupported(f"no CPU kernel for aten::{name}")


POINTWISE = frozenset(
    _ELEMENTARY | set(_COMPARE) | set(_ROUND) | set(_BITWISE) | set(_LOGICAL) | _IDENTITY
    | {"add", "sub", "rsub", "mul", "div", "floor_divide", "fmod", "remainder", "pow", "atan2",
       "neg", "abs", "sign", "sgn", "minimum", "maximum", "clamp", "clamp_min", "clamp_max",
       "hardtanh", "isnan", "isinf", "isfinite", "logical_not", "bitwise_not", "where",
       "masked_fill", "addcmul", "addcdiv", "lerp", "relu", "silu", "gelu", "leaky_relu", "elu",
       "softplus", "hardsigmoid", "hardswish"}
)  # fmt: skip
