"""How near two pictures are where one of them was painted, and pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

#: Squared errors below this count as this: PSNR ends at 120 dB.
_SMALLEST = 1e-12

_WINDOW, _SIGMA = 11, 1.5


def psnr(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio inside the mask.

    Args:
        a: (N, H, W, 3) in 0 … 1.
        b: the same.
        mask: (N, H, W), 1 where it counts.

    Returns:
        (N,) dB, at most 120.
    """
    squares = (a.double() - b.double()).square().mean(-1) * mask
    mean = squares.sum((1, 2)) / mask.sum((1, 2))
    return -10 * mean.clamp_min(_SMALLEST).log10()


def ssim(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Structural similarity inside the mask (Wang et al., 2004): Gaussian window of 11, σ = 1.5.

    Windows see nothing beyond the mask: their weights are zero there and sum to one.

    Args:
        a: (N, H, W, 3) in 0 … 1.
        b: the same.
        mask: (N, H, W), 1 where it counts.

    Returns:
        (N,), 1 for equal pictures; the mean over colours and the mask.
    """
    x, y = (t.double().permute(0, 3, 1, 2) for t in (a, b))
    inside = mask.double()[:, None]
    axis = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    line = torch.exp(-axis.square() / (2 * _SIGMA**2))
    kernel = torch.outer(line, line)[None, None]

    def smooth(t: torch.Tensor) -> torch.Tensor:
        return F.conv2d(t.flatten(0, 1)[:, None], kernel, padding=_WINDOW // 2).view_as(t)

    weight = smooth(inside).clamp_min(_SMALLEST)

    def mean(t: torch.Tensor) -> torch.Tensor:
        return smooth(t * inside) / weight

    mx, my = mean(x), mean(y)
    vx, vy = mean(x * x) - mx * mx, mean(y * y) - my * my
    covariance = mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mx * my + c1) * (2 * covariance + c2)
    found = found / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return (found.mean(1) * inside[:, 0]).sum((1, 2)) / inside.sum((1, 2, 3))


def side_by_side(columns: Sequence[tuple[str, torch.Tensor]], factor: int = 2) -> Image.Image:
    """Pictures in columns under their names.

    Args:
        columns: name and (N, H, W, 3) in 0 … 1 of each, all of one shape.
        factor: by which pictures are enlarged.
    """
    count, height, width, _ = columns[0][1].shape
    gap, head = 4, 30
    cell_w, cell_h = width * factor + gap, height * factor + gap
    sheet = Image.new("RGB", (len(columns) * cell_w + gap, head + count * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, pictures) in enumerate(columns):
        draw.multiline_text((gap + i * cell_w, 2), name.replace(", ", "\n"), fill="black")
        for j, picture in enumerate(pictures):
            pixels = (picture.clamp(0, 1) * 255).round().byte().numpy()
            shown = Image.fromarray(np.ascontiguousarray(pixels)).resize(
                (width * factor, height * factor), Image.Resampling.NEAREST
            )
            sheet.paste(shown, (gap + i * cell_w, head + j * cell_h))
    return sheet
