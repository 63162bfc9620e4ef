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
def to_int8(x, inverse):
    """``clamp(round(x · inverse), -127, 127)``, halves to even; NaN gives 0.

    ``inverse`` is 127 times a reciprocal, as torch divides a number by a tensor.
    """
    y = x * inverse
    y = tl.where(y == y, y, 0.0)
    y = tl.minimum(tl.maximum(y, -127.0), 127.0)
    # Adding 1.5 · 2^23 leaves no bit for a fraction: the addition itself rounds to even.
    return ((y + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def largest_of(low, high, NAME: tl.constexpr, DIP: tl.constexpr, DEPTH: tl.constexpr):
    """The largest magnitude an activation reaches from ``low`` to ``high``; NaN if either is.

    ``DEPTH`` is how far the activation dips below zero at ``DIP``; 0 if it only rises.
    """
    a = tl.abs(activate(low, NAME))
    b = tl.abs(activate(high, NAME))
    top = tl.where(a > b, a, b)
    if DEPTH > 0:
        inside = (low < DIP) & (high > DIP)
        top = tl.where(inside & (top < DEPTH), DEPTH, top)
    top = tl.where(top < 7.888609052210118e-31, 7.888609052210118e-31, top)  # 2^-100
    return tl.where((a == a) & (b == b), top, a + b)


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
