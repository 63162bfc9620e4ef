"""Elementary functions on fp32 vectors, in plain TIR operations that vectorise on every path.

LLVM has no vector form of most of these and would call the C library once a lane. Each function
takes fp32 lanes and their number and returns fp32 lanes; each is accurate to a few units in the
last place over the whole range, denormals included, and gives IEEE results at infinities and
NaN. The polynomials are interpolations at Chebyshev points of the remainder that is left after
the terms known exactly, computed here at import.

The code relies on the compiler not reassociating floating point; contraction of ``a * b + c``
into one fused operation is welcome.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from .memory import splat, typed

Expr = Any

_LN2 = math.log(2.0)
_ROUND = 1.5 * 2.0**23  # adding it leaves the nearest integer in the low bits of an fp32
_ROUND_BITS = struct.unpack("i", struct.pack("f", _ROUND))[0]


def _fp32(value: float) -> float:
    return float(np.float32(value))


def _split(value: float, bits: int) -> tuple[float, float]:
    """A head of few bits, whose product with a small integer is exact, and the rest."""
    mantissa, exponent = math.frexp(value)
    head = math.ldexp(round(mantissa * 2**bits), exponent - bits)
    return head, value - head


def _fit(
    fn: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int
) -> list[float]:
    """Coefficients, constant first, of the near-minimax polynomial of ``fn``."""
    chebyshev = np.polynomial.Chebyshev.interpolate(fn, degree, domain=[low, high])
    return [float(c) for c in chebyshev.convert(kind=np.polynomial.Polynomial, domain=[-1, 1]).coef]


def constant(value: float, lanes: int) -> Expr:
    """An fp32 constant in every lane."""
    return splat(T.float32(value), lanes)


def _bits(value: Expr, lanes: int) -> Expr:
    return T.reinterpret(typed("int32", lanes), value)


def _float(bits: Expr, lanes: int) -> Expr:
    return T.reinterpret(typed("float32", lanes), bits)


def _int(value: int, lanes: int) -> Expr:
    return splat(T.int32(value), lanes)


def let(value: Expr) -> Expr:
    """Name an intermediate, so that it is computed once however often it is used.

    It goes through a local buffer, which LLVM keeps in a register. A plain ``T.bind`` will not
    do: TVM's analysers inline it at every use, in time exponential in the length of a chain.
    """
    dtype, _, lanes = str(value.ty.dtype).partition("x")
    buffer = T.alloc_buffer((int(lanes or 1),), dtype, scope="local")
    T.buffer_store(buffer, value, [T.ramp(0, 1, int(lanes)) if lanes else 0])
    return buffer.vload([0], dtype=str(value.ty.dtype)) if lanes else buffer[0]


def polynomial(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    """``coefficients[0] + coefficients[1] x + ...`` by Horner's rule."""
    value = constant(coefficients[-1], lanes)
    for c in reversed(coefficients[:-1]):
        value = value * x + constant(c, lanes)
    return value


# --- exponentials ---------------------------------------------------------------------------

_LOG2E = _fp32(1 / _LN2)
_LN2_HI, _LN2_LO = _split(_LN2, 15)

# (e^r - 1 - r) / r² for |r| ≤ ln 2 / 2.
_EXPM1_TAIL = _fit(
    lambda r: np.array([sum(v**k / math.factorial(k + 2) for k in range(16)) for v in r]),
    -0.36,
    0.36,
    5,
)
# 2^r for |r| ≤ 1/2.
_EXP2 = _fit(np.exp2, -0.51, 0.51, 6)


def _power_of_two(n: Expr, lanes: int) -> Expr:
    """``2^n`` for int32 lanes between -126 and 127."""
    return _float(T.shift_left(n + _int(127, lanes), _int(23, lanes)), lanes)


def _nearest(x: Expr, lanes: int) -> tuple[Expr, Expr]:
    """The nearest integer of small lanes, as int32 and as fp32."""
    # The way back is a conversion, not a subtraction, which TVM would simplify away.
    integer = let(_bits(x + constant(_ROUND, lanes), lanes) - _int(_ROUND_BITS, lanes))
    return integer, let(T.Cast(typed("float32", lanes), integer))


def _scale(x: Expr, n: Expr, lanes: int) -> Expr:
    """``x · 2^n`` in two steps, so that denormal and overflowing results round once."""
    half = let(T.shift_right(n, _int(1, lanes)))
    return x * _power_of_two(half, lanes) * _power_of_two(n - half, lanes)


def clamp(x: Expr, low: float, high: float, lanes: int) -> Expr:
    """Between two constants; NaN stays NaN. ``x`` is evaluated more than once: name it first."""
    below = let(T.Select(x < constant(low, lanes), constant(low, lanes), x))
    return T.Select(below > constant(high, lanes), constant(high, lanes), below)


def _reduce(x: Expr, lanes: int) -> tuple[Expr, Expr]:
    """``x = n ln 2 + r`` with ``|r| ≤ ln 2 / 2``: n as int32, and r."""
    n, whole = _nearest(x * constant(_LOG2E, lanes), lanes)
    r = x - whole * constant(_LN2_HI, lanes) - whole * constant(_LN2_LO, lanes)
    return n, let(r)


def exp(x: Expr, lanes: int) -> Expr:
    """``e^x``."""
    x = let(clamp(let(x), -104.0, 89.0, lanes))
    n, r = _reduce(x, lanes)
    p = r + r * r * polynomial(r, _EXPM1_TAIL, lanes)
    return let(_scale(p + constant(1.0, lanes), n, lanes))


def exp2(x: Expr, lanes: int) -> Expr:
    """``2^x``."""
    x = let(clamp(let(x), -151.0, 128.0, lanes))
    n, whole = _nearest(x, lanes)
    r = let(x - whole)
    return let(_scale(polynomial(r, _EXP2, lanes), n, lanes))


def expm1(x: Expr, lanes: int) -> Expr:
    """``e^x - 1``, exact to the last places near zero."""
    x = let(clamp(let(x), -20.0, 89.0, lanes))
    n, r = _reduce(x, lanes)
    p = r + r * r * polynomial(r, _EXPM1_TAIL, lanes)
    half = let(_power_of_two(n - _int(1, lanes), lanes))
    y = (half * p + (half - constant(0.5, lanes))) * constant(2.0, lanes)
    # Keeps the sign of zero, and tiny arguments as they are.
    return let(T.Select(n.equal(_int(0, lanes)), p, y))


def sigmoid(x: Expr, lanes: int) -> Expr:
    """``1 / (1 + e^-x)``."""
    one = constant(1.0, lanes)
    return let(one / (one + exp(constant(0.0, lanes) - x, lanes)))


# --- logarithms -----------------------------------------------------------------------------

# (log(1 + f) - f + f²/2) / f³ on the mantissa's range.
_LOG_TAIL = _fit(
    lambda f: np.array([sum((-v) ** k / (k + 3) for k in range(120)) for v in f]),
    math.sqrt(0.5) - 1,
    math.sqrt(2.0) - 1,
    9,
)
_SQRT_HALF_BITS = 0x3F3504F3


def _log_parts(x: Expr, lanes: int, minus_one: Expr = None) -> tuple[Expr, Expr, Expr]:
    """``log x = n ln 2 + (f + t)`` for positive finite lanes, denormals included.

    ``minus_one`` is ``x - 1`` where the caller knows it better than ``x`` does.
    """
    small = x < constant(2.0**-126, lanes)
    scaled = T.Select(small, x * constant(2.0**23, lanes), x)
    bits = let(_bits(scaled, lanes) - _int(_SQRT_HALF_BITS, lanes))
    exponent = let(T.shift_right(bits, _int(23, lanes)))
    mantissa = T.bitwise_and(bits, _int(0x7FFFFF, lanes)) + _int(_SQRT_HALF_BITS, lanes)
    f = _float(mantissa, lanes) - constant(1.0, lanes)
    if minus_one is not None:
        f = T.Select(exponent.equal(_int(0, lanes)), minus_one, f)
    f = let(f)
    n = T.Cast(typed("float32", lanes), exponent)
    n = let(n - T.Select(small, constant(23.0, lanes), constant(0.0, lanes)))
    square = let(f * f)
    tail = f * polynomial(f, _LOG_TAIL, lanes) * square - constant(0.5, lanes) * square
    return n, f, let(tail)


def _log_edges(x: Expr, y: Expr, lanes: int) -> Expr:
    """IEEE results of a logarithm where its argument is not positive and finite."""
    zero = constant(0.0, lanes)
    infinity = constant(math.inf, lanes)
    y = T.Select(x < infinity, y, x)  # +inf, and NaN for NaN
    y = T.Select(x < zero, constant(math.nan, lanes), y)
    return let(T.Select(x.equal(zero), constant(-math.inf, lanes), y))


def log(x: Expr, lanes: int) -> Expr:
    """Natural logarithm."""
    x = let(x)
    n, f, tail = _log_parts(x, lanes)
    y = n * constant(_LN2_LO, lanes) + tail + f + n * constant(_LN2_HI, lanes)
    return _log_edges(x, y, lanes)


def log2(x: Expr, lanes: int) -> Expr:
    """Binary logarithm, exact at powers of two."""
    x = let(x)
    n, f, tail = _log_parts(x, lanes)
    head, rest = _split(1 / _LN2, 12)
    y = (f + tail) * constant(rest, lanes) + tail * constant(head, lanes)
    return _log_edges(x, y + f * constant(head, lanes) + n, lanes)


def log10(x: Expr, lanes: int) -> Expr:
    """Decimal logarithm."""
    x = let(x)
    n, f, tail = _log_parts(x, lanes)
    two_head, two_rest = _split(math.log10(2), 15)
    y = (f + tail) * constant(1 / math.log(10), lanes) + n * constant(two_rest, lanes)
    return _log_edges(x, y + n * constant(two_head, lanes), lanes)


def log1p(x: Expr, lanes: int) -> Expr:
    """``log(1 + x)``, exact to the last places near zero."""
    x = let(x)
    u = let(x + constant(1.0, lanes))
    n, f, tail = _log_parts(u, lanes, minus_one=x)
    y = n * constant(_LN2_LO, lanes) + tail + f + n * constant(_LN2_HI, lanes)
    # The last case keeps the sign of zero.
    return let(T.Select(x.equal(constant(0.0, lanes)), x, _log_edges(u, y, lanes)))


# --- hyperbolic, error function ---------------------------------------------------------------


def absolute(x: Expr, lanes: int) -> Expr:
    """``|x|``."""
    return _float(T.bitwise_and(_bits(x, lanes), _int(0x7FFFFFFF, lanes)), lanes)


def copysign(magnitude: Expr, sign: Expr, lanes: int) -> Expr:
    """A non-negative magnitude with the sign of another value."""
    bit = T.bitwise_and(_bits(sign, lanes), _int(-0x80000000, lanes))
    return _float(T.bitwise_or(_bits(magnitude, lanes), bit), lanes)


# (tanh(√z) / √z - 1) / z and erf(√z) / √z, as functions of the square z.
_TANH_TAIL = _fit(lambda z: (np.tanh(np.sqrt(z)) / np.sqrt(z) - 1) / z, 1e-6, 0.41, 5)
_ERF_SMALL = _fit(
    lambda z: np.array([math.erf(math.sqrt(v)) / math.sqrt(v) for v in z]), 1e-9, 1.0, 6
)
# -log(erfc(t)) on the rest, up to where erf rounds to one.
_ERF_LARGE = _fit(lambda t: np.array([-math.log(math.erfc(v)) for v in t]), 1.0, 4.1, 8)


def tanh(x: Expr, lanes: int) -> Expr:
    """Hyperbolic tangent."""
    x = let(x)
    magnitude = let(absolute(x, lanes))
    z = let(x * x)
    near = x + x * z * polynomial(z, _TANH_TAIL, lanes)
    one, two = constant(1.0, lanes), constant(2.0, lanes)
    far = one - two / (exp(magnitude + magnitude, lanes) + one)
    return let(T.Select(magnitude < constant(0.625, lanes), near, copysign(far, x, lanes)))


def erf(x: Expr, lanes: int) -> Expr:
    """Error function."""
    x = let(x)
    magnitude = let(absolute(x, lanes))
    near = x * polynomial(let(x * x), _ERF_SMALL, lanes)
    t = let(T.Select(magnitude > constant(4.05, lanes), constant(4.05, lanes), magnitude))
    shifted = constant(0.0, lanes) - polynomial(t, _ERF_LARGE, lanes)
    far = constant(1.0, lanes) - exp(shifted, lanes)
    return let(T.Select(magnitude < constant(1.0, lanes), near, copysign(far, x, lanes)))


# --- circular -------------------------------------------------------------------------------

_SIN_TAIL = _fit(
    lambda z: np.array(
        [sum((-v) ** k * -1 / math.factorial(2 * k + 3) for k in range(9)) for v in z]
    ),
    0.0,
    0.63,
    3,
)
_COS_TAIL = _fit(
    lambda z: np.array([sum((-v) ** k / math.factorial(2 * k + 4) for k in range(9)) for v in z]),
    0.0,
    0.63,
    3,
)


def _circular(x: Expr, quarter: int, lanes: int) -> Expr:
    """``sin(x + quarter · π/2)``; the argument is reduced in fp64, for ``|x|`` up to 2^27."""
    double = typed("float64", lanes)

    def c64(value: float) -> Expr:
        return splat(T.float64(value), lanes)

    wide = let(T.Cast(double, x))
    shifted = T.reinterpret(typed("int64", lanes), wide * c64(2 / math.pi) + c64(1.5 * 2.0**52))
    integer = let(T.Cast(typed("int32", lanes), shifted))
    whole = let(T.Cast(double, integer))
    head, _ = _split(math.pi / 2, 26)
    # π/2 to twice the precision of fp64, less its head.
    rest = (math.pi / 2 - head) + 6.123233995736766e-17
    r = let(T.Cast(typed("float32", lanes), wide - whole * c64(head) - whole * c64(rest)))
    quadrant = let(T.bitwise_and(integer + _int(quarter, lanes), _int(3, lanes)))
    z = let(r * r)
    sine = let(r + r * z * polynomial(z, _SIN_TAIL, lanes))
    one, half = constant(1.0, lanes), constant(0.5, lanes)
    cosine = let(one - half * z + z * z * polynomial(z, _COS_TAIL, lanes))
    odd = T.bitwise_and(quadrant, _int(1, lanes)).equal(_int(1, lanes))
    value = T.Select(odd, cosine, sine)
    flip = T.shift_left(T.bitwise_and(quadrant, _int(2, lanes)), _int(30, lanes))
    y = _float(T.bitwise_xor(_bits(value, lanes), flip), lanes)
    finite = absolute(x, lanes) < constant(math.inf, lanes)
    return let(T.Select(finite, y, constant(math.nan, lanes)))


def sin(x: Expr, lanes: int) -> Expr:
    """Sine, for ``|x|`` up to 2^27 (beyond, the argument's own rounding says nothing)."""
    return _circular(let(x), 0, lanes)


def cos(x: Expr, lanes: int) -> Expr:
    """Cosine, for ``|x|`` up to 2^27."""
    return _circular(let(x), 1, lanes)


# --- roots ----------------------------------------------------------------------------------


def sqrt(x: Expr, lanes: int) -> Expr:
    """Square root, correctly rounded: one instruction."""
    del lanes
    return T.sqrt(x)


def rsqrt(x: Expr, lanes: int) -> Expr:
    """``1 / √x``."""
    return constant(1.0, lanes) / T.sqrt(x)


def reciprocal(x: Expr, lanes: int) -> Expr:
    """``1 / x``."""
    return constant(1.0, lanes) / x


# --- activations ----------------------------------------------------------------------------


def relu(x: Expr, lanes: int) -> Expr:
    """``max(x, 0)``, NaN kept."""
    x = let(x)
    zero = constant(0.0, lanes)
    return T.Select(x < zero, zero, x)


def silu(x: Expr, lanes: int) -> Expr:
    """``x · sigmoid(x)``."""
    x = let(x)
    return let(x / (constant(1.0, lanes) + exp(constant(0.0, lanes) - x, lanes)))


def gelu(x: Expr, lanes: int) -> Expr:
    """``x Φ(x)`` with the exact normal distribution."""
    x = let(x)
    half, one = constant(0.5, lanes), constant(1.0, lanes)
    return let(half * x * (one + erf(x * constant(math.sqrt(0.5), lanes), lanes)))


def gelu_tanh(x: Expr, lanes: int) -> Expr:
    """GELU's tanh approximation."""
    x = let(x)
    half, one = constant(0.5, lanes), constant(1.0, lanes)
    inner = x + constant(0.044715, lanes) * x * x * x
    y = tanh(constant(math.sqrt(2 / math.pi), lanes) * inner, lanes)
    return let(half * x * (one + y))


def quick_gelu(x: Expr, lanes: int) -> Expr:
    """``x · sigmoid(1.702 x)``."""
    x = let(x)
    return let(x / (constant(1.0, lanes) + exp(constant(-1.702, lanes) * x, lanes)))


#: The activations of :mod:`zoomc.kernels.activation`, by the same names: ``fn(x, lanes)``.
ACTIVATIONS: dict[str, Callable[[Expr, int], Expr]] = {
    "none": lambda x, lanes: x,
    "relu": relu,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}
