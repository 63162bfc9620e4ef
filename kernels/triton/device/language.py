"""Arithmetic the kernels share: activations as the references have them, exact rounding."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, NAME: tl.constexpr):
    """An activation by the name operators spell it with, of fp32 values."""
    if NAME == "relu":
        x = tl.where(x < 0.0, 0.0, x)  # and not a maximum, which would lose a NaN
    elif NAME == "silu":
        x = x * sigmoid(x)
    elif NAME == "quick_gelu":
        x = x * sigmoid(1.702 * x)
    elif NAME == "gelu":
        x = gelu(x)
    elif NAME == "gelu_tanh":
        # 0.5 (1 + tanh u) is the sigmoid of 2u.
        x = x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return x


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))``."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gelu(x):
    """The exact GELU."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def to_int8(x, inverse, zero):
    """``round(x · inverse + zero)``, halves to even; NaN gives 0.

    ``zero`` is an integer in fp32.
    """
    # Adding 1.5 · 2^23 leaves no bit for a fraction: the addition itself rounds to even.
    y = (x * inverse + (12582912.0 + zero)) - 12582912.0
    y = tl.where(y == y, y, 0.0)
    return tl.minimum(tl.maximum(y, -128.0), 127.0).to(tl.int8)


@triton.jit
def magnitude(x):
    """``|x|``, infinite where NaN: the scale of such values is infinite and their codes are 0.

    Their product is NaN, as it must be; a maximum alone may pass over a NaN.
    """
    return tl.where(x == x, tl.abs(x), float("inf"))


@triton.jit
def biased(x):
    """``x + 1.5 · 2^23`` as fp32 of int32 values up to 2^22, exactly.

    Their sum with that number's bits is the result's: an addition, where the instruction that
    converts is several times slower.
    """
    return (x + 0x4B400000).to(tl.float32, bitcast=True)


@triton.jit
def extent(low, high, NAME: tl.constexpr, DIP: tl.constexpr, DEPTH: tl.constexpr):
    """The least and largest value an activation takes from ``low`` to ``high`` and at 0.

    ``DEPTH`` is how far the activation dips below zero at ``DIP``; 0 if it only rises. An end that
    is NaN stays so.
    """
    low = tl.where(low > 0.0, 0.0, low)
    least = activate(low, NAME)
    most = activate(tl.where(high < 0.0, 0.0, high), NAME)
    if DEPTH > 0:
        least = tl.where((low < DIP) & (least > -DEPTH), -DEPTH, least)
    return least, most


@triton.jit
def largest(x):
    """The largest magnitude of each row; NaN of a row that holds one, which a maximum may miss."""
    magnitude = tl.abs(x)
    spoiled = tl.sum((magnitude != magnitude).to(tl.int32), 1) > 0
    top = tl.max(tl.where(magnitude == magnitude, magnitude, 0.0), 1)
    return tl.where(spoiled, float("nan"), top)


@triton.jit
def scale_of(largest, CODES: tl.constexpr):
    """What values up to this are multiplied by to give so many codes, and the scale back."""
    largest = tl.where(largest < 7.888609052210118e-31, 7.888609052210118e-31, largest)  # 2^-100
    return tl.div_rn(CODES * 1.0, largest), tl.div_rn(largest, CODES * 1.0)


@triton.jit
def scale_between(low, high):
    """As the reference's ``quantise_between``: the inverse, the zero in fp32, the scale back."""
    inverse, scale = scale_of(high - low, 254)
    zero = tl.floor(-low * inverse) - 127.0
    return inverse, tl.where(zero == zero, zero, 0.0), scale


@triton.jit
def tile_of(program, blocks_m, blocks_n, group):
    """Block row and column of a program, in an order that reuses what is in the L2 cache.

    Programs walk down ``group`` block rows before they step to the next block column, so those
    that run at the same time share both operands.
    """
    per_group = group * blocks_n
    first = program // per_group * group
    height = tl.minimum(blocks_m - first, group)
    inside = program % per_group
    return first + inside % height, inside // height
