"""The ``zoomc::linear`` and ``zoomc::matmul`` operators: schema, cost and reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from .. import integer
from ..activation import ACTIVATIONS
from ..operator import operator


def _linear_flops(args: Mapping[str, Any]) -> int:
    return 2 * args["x"].shape[:-1].numel() * args["weight"].numel()


@operator(
    "linear(Tensor x, Tensor weight, Tensor? bias=None, *, bool norm=False,"
    " Tensor? norm_weight=None, Tensor? norm_bias=None, float norm_eps=1e-05,"
    ' str pre_activation="none", str activation="none", Tensor? residual=None,'
    " Tensor? table=None, Tensor? group_scale=None, Tensor? channel_scale=None,"
    " bool weight_only=False, int kept_steps=0, Tensor? bounds=None) -> Tensor",
    flops=_linear_flops,
)
def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    norm: bool = False,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    norm_eps: float = 1e-5,
    pre_activation: str = "none",
    activation: str = "none",
    residual: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    group_scale: torch.Tensor | None = None,
    channel_scale: torch.Tensor | None = None,
    weight_only: bool = False,
    kept_steps: int = 0,
    bounds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Layer norm, activate, multiply, activate and add, in that order.

    Args:
        x: ``(..., K)``.
        weight: ``(N, K)``; with ``activation="geglu"`` the first ``N / 2`` rows give the value
            and the rest the gate.
        bias: ``(N,)``.
        norm: whether a layer norm over the last axis comes first.
        norm_weight: ``(K,)`` gain of the norm.
        norm_bias: ``(K,)`` offset of the norm.
        norm_eps: added to the variance.
        pre_activation: a name of :data:`ACTIVATIONS`, applied to ``x`` after the norm.
        activation: a name of :data:`ACTIVATIONS`, or ``"geglu"``: value × gelu(gate).
        residual: the result's shape, added last.
        table: int8, the weights that uint8 codes stand for: 4, 16 or 256 of them.
        group_scale: int8 ``(N, ceil(K / 64))``, what the table's values are multiplied by.
        channel_scale: fp32 ``(N,)``. If given, the product is one of integers: ``weight`` holds
            int8 values or codes, and rows are quantised to int8, each by a scale of its own;
            all else is computed in fp32. See :mod:`zoomc.kernels.integer`.
        weight_only: with coded weights, rows are not quantised: they are multiplied by the codes'
            integers as they are, with sums in fp32.
        kept_steps: says of constant weights that every aligned 32 rows (with geglu 16 and their
            gates) have values other than 0 in at most so many of the steps of 64 input features,
            so that a kernel may skip the others. 0 says nothing. No result depends on it, but for
            floating weights in front of values that are not finite: 0 · ∞, a NaN, may be skipped.
        bounds: fp32 ``(2,)``, not above and not below 0: the larger magnitude is every row's
            largest, in place of its own. Values beyond are clamped; a row with a value that is
            not finite before the activation has no finite result.

    Returns:
        ``(..., N)``, or ``(..., N / 2)`` with geglu; dense, in the dtype of ``x``.
    """
    stored = x.dtype
    if channel_scale is not None:
        x, bias, norm_weight, norm_bias, residual = integer.wide(
            x, bias, norm_weight, norm_bias, residual
        )
    if norm:
        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, norm_eps)
    before, x = x, ACTIVATIONS[pre_activation](x)
    if channel_scale is None:
        y = F.linear(x, weight, bias)
    elif weight_only:
        weight = integer.integer_weight(weight, table, group_scale)
        y = F.linear(x, weight.to(x.dtype)) * channel_scale
        y = y if bias is None else y + bias
    else:
        codes, scale = integer.quantise(x, integer.token_largest(before, x, bounds))
        weight = integer.integer_weight(weight, table, group_scale)
        sums = F.linear(integer.terms(codes), integer.terms(weight))  # exact
        y = sums.float() * (scale * channel_scale)
        y = y if bias is None else y + bias
    if activation == "geglu":
        value, gate = y.chunk(2, dim=-1)
        y = value * F.gelu(gate)
    else:
        y = ACTIVATIONS[activation](y)
    if residual is not None:
        y = y + residual
    return y.to(stored).clone(memory_format=torch.contiguous_format)


def _matmul_flops(args: Mapping[str, Any]) -> int:
    a, b = args["a"], args["b"]
    batch = math.prod(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    columns = b.shape[-2] if args["transpose_b"] else b.shape[-1]
    return 2 * batch * a.shape[-2] * a.shape[-1] * columns


@operator(
    "matmul(Tensor a, Tensor b, *, bool transpose_b=False) -> Tensor",
    flops=_matmul_flops,
)
def matmul(a: torch.Tensor, b: torch.Tensor, *, transpose_b: bool = False) -> torch.Tensor:
    """Batched product of two activations: ``(..., M, K) @ (..., K, N)``.

    ``b`` is ``(..., N, K)`` when ``transpose_b``; leading axes broadcast as in torch.
    """
    return torch.matmul(a, b.mT if transpose_b else b).contiguous()
