"""Group norm that trains several times faster on a CPU.

torch's own backward pass of a channels-last group norm took 37 % of a training step here. This one
reads the tensors as matrices of pixels by channels, so that its sums are matrix products.
"""

from __future__ import annotations

from typing import Any

import torch

_SMALL = 32 * 32
"""Pixels below which the forward pass is faster as matrix products too."""


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor:
        batch, channels, height, width = x.shape
        pixels, share = height * width, channels // groups
        rows = x.permute(0, 2, 3, 1).reshape(batch, pixels, channels)
        if pixels < _SMALL:
            count = pixels * share
            mean = _sum_pixels(rows).view(batch, groups, share).sum(2) / count
            # Norms accumulate in fp32, so bf16 squares lose nothing.
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
            square = norms.square().view(batch, groups, share).sum(2) / count
            rstd = (square - mean.square()).clamp_min(0).add(eps).rsqrt()
            scale = rstd.repeat_interleave(share, 1) * weight
            shift = bias - mean.repeat_interleave(share, 1) * scale
            y = torch.addcmul(shift.to(x.dtype)[:, None], rows, scale.to(x.dtype)[:, None])
            y = y.view(batch, height, width, channels).permute(0, 3, 1, 2)
        else:
            y, mean, rstd = torch.native_group_norm(
                x, weight, bias, batch, channels, pixels, groups, eps
            )
        ctx.save_for_backward(rows, weight, mean.float(), rstd.float())
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows, weight, mean, rstd = ctx.saved_tensors
        batch, channels, height, width = grad.shape
        groups = mean.shape[1]
        share = channels // groups
        g = grad.permute(0, 2, 3, 1).reshape(batch, -1, channels)
        mean, rstd = (t.view(batch, groups).repeat_interleave(share, 1) for t in (mean, rstd))
        sums, products = _sum_pixels(g), _sum_pixels(g * rows)
        normed = (products - mean * sums) * rstd

        def average(t: torch.Tensor) -> torch.Tensor:
            total = (t * weight).view(batch, groups, share).sum(2) / (g.shape[1] * share)
            return total.repeat_interleave(share, 1)

        # dx = rstd * (weight * g - average(g) - xhat * average(g * xhat)), as two fused passes.
        of_rows = -rstd.square() * average(normed)
        constant = -rstd * average(sums) - of_rows * mean
        dx = torch.addcmul(constant.to(g.dtype)[:, None], rows, of_rows.to(g.dtype)[:, None])
        dx.addcmul_(g, (rstd * weight).to(g.dtype)[:, None])
        dx = dx.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return dx, normed.sum(0), sums.sum(0), None, None


def _sum_pixels(rows: torch.Tensor) -> torch.Tensor:
    """(B, C) float32 sums of (B, P, C) over the pixels."""
    ones = torch.ones(rows.shape[0], 1, rows.shape[1], dtype=rows.dtype)
    return torch.bmm(ones, rows)[:, 0].float()


class TrainingGroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` of (B, C, H, W) with the faster gradients."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalised ``input``, of its shape and dtype."""
        if input.ndim != 4 or not torch.is_grad_enabled():
            return super().forward(input)
        return _GroupNorm.apply(input, self.weight, self.bias, self.num_groups, self.eps)


def train_faster(model: torch.nn.Module) -> torch.nn.Module:
    """Swap the group norms of ``model``, in place; weights and their names stay as they are."""
    for module in model.modules():
        if type(module) is torch.nn.GroupNorm:
            module.__class__ = TrainingGroupNorm
    return model
