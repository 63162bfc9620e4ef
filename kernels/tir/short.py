"""Activations for results rounded to bf16 or int8: short polynomials instead of long ones.

They keep 8 bits; the exact functions of :mod:`.math` spend most of their time on bits it drops.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from .isa import Isa
from .llvm import attributes
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


# 2^f for |f| ≤ 1/2, to 1e-4.
_EXP2 = [
    float(c)
    for c in np.polynomial.Chebyshev.interpolate(np.exp2, 3, domain=[-0.5, 0.5])
    .convert(kind=np.polynomial.Polynomial, domain=[-1, 1])
    .coef
]


def _bits64(value: float) -> str:
    """An fp32 constant as LLVM spells it: the bits of the same number in fp64."""
    return f"0x{struct.unpack('Q', struct.pack('d', float(np.float32(value))))[0]:016X}"


def _silu() -> str:
    vector = "<16 x float>"
    constants = [_bits64(c) for c in _EXP2]
    lines = [
        f"declare {vector} @llvm.x86.avx512.rcp14.ps.512({vector}, {vector}, i16)",
        f"declare {vector} @llvm.x86.avx512.mask.scalef.ps.512({vector}, {vector}, {vector}, i16,"
        " i32 immarg)",
        f"declare {vector} @llvm.rint.v16f32({vector})",
        f"declare {vector} @llvm.fma.v16f32({vector}, {vector}, {vector})",
        f"define {vector} @zoomc_short_silu({vector} %x) #0 {{",
        f"  %t = fmul {vector} %x, splat (float {_bits64(-1 / math.log(2))})",
        f"  %n = call {vector} @llvm.rint.v16f32({vector} %t)",
        f"  %f = fsub {vector} %t, %n",
    ]
    last = f"splat (float {constants[3]})"
    for i in (2, 1, 0):
        lines.append(
            f"  %p{i} = call {vector} @llvm.fma.v16f32({vector} %f, {vector} {last}, "
            f"{vector} splat (float {constants[i]}))"
        )
        last = f"%p{i}"
    lines += [
        f"  %e = call {vector} @llvm.x86.avx512.mask.scalef.ps.512({vector} %p0, {vector} %n, "
        f"{vector} zeroinitializer, i16 -1, i32 4)",
        f"  %d = fadd {vector} %e, splat (float 1.0)",
        f"  %r = call {vector} @llvm.x86.avx512.rcp14.ps.512({vector} %d, {vector} "
        "zeroinitializer, i16 -1)",
        f"  %y = fmul {vector} %x, %r",
        f"  ret {vector} %y",
        "}",
    ]
    return "\n".join(lines) + "\n" + attributes(("avx512f",))


def texts(isa: Isa) -> list[str]:
    """LLVM IR that :func:`prepared` needs on this path."""
    return [_silu()] if isa.lanes == 16 else []


def prepared(isa: Isa, name: str) -> Callable[[Expr, int], Expr]:
    """The activation of that name for values on their way into int8: within 2e-4 of each."""
    if name == "silu" and isa.lanes == 16:

        def silu(x: Expr, lanes: int) -> Expr:
            if lanes < 16:
                return ACTIVATIONS["silu"](x, lanes)
            return T.call_extern("float32x16", "zoomc_short_silu", x)

        return silu
    return ACTIVATIONS[name]


def activation(name: str, stored: str) -> Callable[[Expr, int], Expr]:
    """The activation of that name for a result stored in a TIR dtype."""
    if name == "gelu" and stored == "uint16":
        return gelu
    return ACTIVATIONS[name]
