"""The ``zoomc::mlp`` operator: schema, cost and reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..linear.op import linear
from ..operator import operator


def _mlp_flops(args: Mapping[str, Any]) -> int:
    rows = args["x"].shape[:-1].numel()
    return 2 * rows * (args["weight"].numel() + args["down"].numel())


@operator(
    "mlp(Tensor x, Tensor weight, Tensor? bias, Tensor down, Tensor? down_bias=None, *,"
    " bool norm=False, Tensor? norm_weight=None, Tensor? norm_bias=None, float norm_eps=1e-05,"
    ' str activation="none", Tensor? residual=None, Tensor? table=None, Tensor? group_scale=None,'
    " Tensor? channel_scale=None, int kept_steps=0, Tensor? down_table=None,"
    " Tensor? down_group_scale=None, Tensor? down_channel_scale=None, int down_kept_steps=0)"
    " -> Tensor",
    flops=_mlp_flops,
)
def mlp(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    down_bias: torch.Tensor | None = None,
    *,
    norm: bool = False,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    norm_eps: float = 1e-5,
    activation: str = "none",
    residual: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    group_scale: torch.Tensor | None = None,
    channel_scale: torch.Tensor | None = None,
    kept_steps: int = 0,
    down_table: torch.Tensor | None = None,
    down_group_scale: torch.Tensor | None = None,
    down_channel_scale: torch.Tensor | None = None,
    down_kept_steps: int = 0,
) -> torch.Tensor:
    """A linear of a linear, with what stands between in the dtype of ``x``.

    Args:
        x: ``(..., K)``.
        weight: ``(H, K)``, or ``(2 H, K)`` with ``activation="geglu"``.
        bias: ``(H,)`` or ``(2 H,)``.
        down: ``(N, H)``.
        down_bias: ``(N,)``.
        norm: as for :func:`~zoomc.kernels.linear.op.linear`, in front of the first, like all
            arguments with no ``down_`` before them but the residual.
        norm_weight: ``(K,)``.
        norm_bias: ``(K,)``.
        norm_eps: added to the variance.
        activation: applied to the first's result.
        residual: the result's shape, added last.
        table: of the first's codes.
        group_scale: int8 ``(H, ceil(K / 64))``.
        channel_scale: fp32 ``(H,)``.
        kept_steps: of the first.
        down_table: of the second's codes.
        down_group_scale: int8 ``(N, ceil(H / 64))``.
        down_channel_scale: fp32 ``(N,)``.
        down_kept_steps: of the second.

    Returns:
        ``(..., N)``; dense, in the dtype of ``x``.
    """
    hidden = linear(
        x,
        weight,
        bias,
        norm=norm,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        norm_eps=norm_eps,
        activation=activation,
        table=table,
        group_scale=group_scale,
        channel_scale=channel_scale,
        kept_steps=kept_steps,
    )
    result: torch.Tensor = linear(
        hidden,
        down,
        down_bias,
        residual=residual,
        table=down_table,
        group_scale=down_group_scale,
        channel_scale=down_channel_scale,
        kept_steps=down_kept_steps,
    )
    return result
