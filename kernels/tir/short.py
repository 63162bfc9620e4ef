"""Activations for results rounded to bf16: one short polynomial instead of an exponential.

bf16 keeps 8 bits; the exact functions of :mod:`.math` spend most of their time on bits it drops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .math import ACTIVATIONS, clamp, constant, let, polynomial

Expr = Any

#: Where the error function is taken to have reached one.
_END = 3.1
_DEGREE = 8
#: Covers the rounding of the polynomial in fp32, so that it does reach one.
_SLACK = 4e-5


def _erf_coefficients() -> list[float]:
    """Least squares in absolute error of ``t · p(t²)`` to erf, scaled to reach one at the end."""
    nodes = (np.cos(np.pi * (np.arange(4000) + 0.5) / 4000) + 1) / 2
    t = np.sqrt(nodes) * _END
    basis = np.polynomial.chebyshev.chebvander(2 * nodes - 1, _DEGREE) * t[:, None]
    fitted, *_ = np.linalg.lstsq(basis, np.array([math.erf(v) for v in t]), rcond=None)
    series = np.polynomial.Chebyshev(fitted, domain=[0, _END**2])
    power = series.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1])
    plain = power.coef.astype(np.float64)
    reached = float(_END * np.polyval(plain[::-1], _END**2))
    return [float(c) for c in plain * (1 + _SLACK) / min(reached, 1.0)]


_ERF = _erf_coefficients()


def gelu(x: Expr, lanes: int) -> Expr:
    """``x Φ(x)`` within 2e-4, exact beyond ±4.4."""
    x = let(x)
    t = let(clamp(let(x * constant(math.sqrt(0.5), lanes)), -_END, _END, lanes))
    erf = let(clamp(let(t * polynomial(let(t * t), _ERF, lanes)), -1.0, 1.0, lanes))
    half = x * constant(0.5, lanes)
    return let(half + half * erf)


def activation(name: str, stored: str) -> Callable[[Expr, int], Expr]:
    """The activation of that name for a result stored in a TIR dtype."""
    if name == "gelu" and stored == "uint16":
        return gelu
    return ACTIVATIONS[name]
