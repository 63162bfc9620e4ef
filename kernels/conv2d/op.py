"""The ``zoomc::conv2d`` operator: schema, cost and reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .. import integer
from ..activation import ACTIVATIONS
from ..operator import operator


def _flops(args: Mapping[str, Any]) -> int:
    n, height, width, _ = args["inputs"][0].shape
    scale = 2 if args["upsample"] else 1
    out_channels, in_channels, kh, kw = args["weight"].shape
    out_h = _out(height * scale, kh, args["padding"][:2], args["stride"][0], args["dilation"][0])
    out_w = _out(width * scale, kw, args["padding"][2:], args["stride"][1], args["dilation"][1])
    return 2 * n * out_h * out_w * out_channels * in_channels * kh * kw


def _out(size: int, kernel: int, padding: Sequence[int], stride: int, dilation: int) -> int:
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


@operator(
    "conv2d(Tensor[] inputs, Tensor weight, Tensor? bias=None, *, int[2] stride=[1, 1],"
    " int[4] padding=[0, 0, 0, 0], int[2] dilation=[1, 1], int groups=1, bool upsample=False,"
    " int norm_groups=0, Tensor? norm_weight=None, Tensor? norm_bias=None, float norm_eps=1e-05,"
    ' str pre_activation="none", Tensor? shift=None, Tensor? residual=None,'
    " Tensor? table=None, Tensor? group_scale=None, Tensor? channel_scale=None,"
    " bool weight_only=False, int kept_steps=0, Tensor? bounds=None) -> Tensor",
    flops=_flops,
)
def conv2d(
    inputs: list[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    upsample: bool = False,
    norm_groups: int = 0,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    norm_eps: float = 1e-5,
    pre_activation: str = "none",
    shift: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    group_scale: torch.Tensor | None = None,
    channel_scale: torch.Tensor | None = None,
    weight_only: bool = False,
    kept_steps: int = 0,
    bounds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Concatenate, upsample, normalise, activate, convolve, shift and add, in that order.

    Args:
        inputs: maps of shape ``(N, H, W, C_i)``, concatenated along the channels.
        weight: ``(O, sum(C_i) / groups, KH, KW)``, in torch's own layout.
        bias: ``(O,)``.
        stride: rows, columns.
        padding: zeros added at top, bottom, left, right, after the activation.
        dilation: rows, columns.
        groups: as in :func:`torch.nn.functional.conv2d`.
        upsample: repeat every pixel 2×2 (nearest) before the convolution.
        norm_groups: groups of the group norm over the concatenated input; 0 means no norm.
        norm_weight: ``(sum(C_i),)`` gain of the norm.
        norm_bias: ``(sum(C_i),)`` offset of the norm.
        norm_eps: added to the variance.
        pre_activation: a name of :data:`ACTIVATIONS`, applied after the norm.
        shift: ``(N, O)``, added to every pixel: the time embedding.
        residual: ``(N, OH, OW, O)``, added last.
        table: int8, the weights that uint8 codes stand for: 4, 16 or 256 of them.
        group_scale: int8 ``(O, ceil(sum(C_i) / groups / 64), KH, KW)``, what the table's values
            are multiplied by.
        channel_scale: fp32 ``(O,)``. If given, the product is one of integers: ``weight`` holds
            int8 values or codes, and images are quantised to int8, each by a scale and a zero of
            its own; all else is computed in fp32. See :mod:`zoomc.kernels.integer`.
        weight_only: with coded weights, images are not quantised: they are multiplied by the
            codes' integers as they are, with sums in fp32.
        kept_steps: says of constant weights that every aligned 32 output channels have values
            other than 0 in at most so many steps (64 input channels, aligned, at one tap), so that
            a kernel may skip the others. 0 says nothing. No result depends on it, but for floating
            weights in front of values that are not finite: 0 · ∞, a NaN, may be skipped.
        bounds: fp32 ``(2,)``, not above and not below 0: where the codes of every image begin and
            end, in place of its own extremes. Values beyond are clamped; an image with a value
            that is not finite before the activation has no finite result.

    Returns:
        ``(N, OH, OW, O)``, dense, in the dtype of ``inputs``.
    """
    x = torch.cat([t.permute(0, 3, 1, 2) for t in inputs], dim=1)
    stored = x.dtype
    if channel_scale is not None:
        x, bias, norm_weight, norm_bias, shift, residual = integer.wide(
            x, bias, norm_weight, norm_bias, shift, residual
        )
    if norm_groups:
        x = F.group_norm(x, norm_groups, norm_weight, norm_bias, norm_eps)
    ends = x, x
    if channel_scale is not None and not weight_only:
        ends = integer.image_ends(x, pre_activation, bounds)
    x = ACTIVATIONS[pre_activation](x)
    if upsample:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    top, bottom, left, right = padding
    sides, steps = (left, right, top, bottom), (list(stride), 0, list(dilation), groups)
    if channel_scale is None:
        x = F.conv2d(F.pad(x, sides), weight, bias, *steps)
    elif weight_only:
        weight = integer.integer_weight(weight, table, group_scale)
        x = F.conv2d(F.pad(x, sides), weight.to(x.dtype), None, *steps)
        x = x * channel_scale[:, None, None]
        x = x if bias is None else x + bias[:, None, None]
    else:
        codes, zero, scale = integer.quantise_between(x, *ends)
        weight = integer.integer_weight(weight, table, group_scale)
        terms = integer.terms(codes) - integer.terms(zero)
        sums = F.conv2d(F.pad(terms, sides), integer.terms(weight), None, *steps)
        x = sums.float() * (scale * channel_scale[:, None, None])
        x = x if bias is None else x + bias[:, None, None]
    if shift is not None:
        x = x + shift[:, :, None, None]
    y = x.permute(0, 2, 3, 1)
    if residual is not None:
        y = y + residual
    return y.to(stored).clone(memory_format=torch.contiguous_format)
