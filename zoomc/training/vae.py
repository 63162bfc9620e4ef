"""The autoencoder: pixels to latents a quarter of the side, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL

from .data import Pictures, hide, random_masks, to_tensor
from .loop import Draw

SCALING_FACTOR = 0.18215
"""Latents times this have unit variance: Stable Diffusion's own convention."""


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of the autoencoder; the side shrinks by 2 between levels."""

    channels: tuple[int, ...] = (32, 48, 64)
    layers: int = 1
    groups: int = 8


def build_vae(config: VaeConfig, size: int) -> AutoencoderKL:
    """Untrained autoencoder for pictures of side ``size``."""
    levels = len(config.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        latent_channels=4,
        norm_num_groups=config.groups,
        sample_size=size,
        scaling_factor=SCALING_FACTOR,
    ).to(memory_format=torch.channels_last)


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to bf16 on ``device``."""
    return torch.autocast(device.type, torch.bfloat16)


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """How far ``y`` is from ``x``: absolute, squared, and between neighbours (edges)."""
    edges = sum((a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True))
    return (y - x).abs().mean() + 3 * (y - x).square().mean() + 0.3 * edges


def vae_loss(
    vae: AutoencoderKL, pictures: Pictures, batch: int, device: torch.device, step: Draw
) -> torch.Tensor:
    """Loss of one step: reconstruction plus 1e-4 of the divergence from a unit normal."""
    index = np.sort(step.numpy.choice(len(pictures), batch, replace=len(pictures) < batch))
    x = pictures.batch(index, flip=step.numpy.random() < 0.5)
    # The pipeline encodes pictures with a grey hole too, so an eighth of them get one.
    some = batch // 8
    if some:
        masks = random_masks(pictures.keeps[index[:some]], max(2, x.shape[-1] // 4), step.numpy)
        x = torch.cat([hide(x[:some], masks), x[some:]])
    x = x.to(device, memory_format=torch.channels_last)
    with autocast(device):
        posterior = vae.encode(x).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        z = mean + torch.exp(0.5 * logvar) * step.normal(mean)
        y = vae.decode(z).sample.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return reconstruction_loss(y, x) + 1e-4 * divergence


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> float:
    """PSNR in dB of encoding and decoding (N, H, W, 3) uint8 pictures, over all pixels."""
    parameter = next(vae.parameters())
    errors = []
    for i in range(0, len(images), batch):
        x = to_tensor(images[i : i + batch]).to(parameter.device, parameter.dtype)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        errors.append(((y.clamp(-1, 1) - x) / 2).float().square().mean((1, 2, 3)))
    return -10 * math.log10(float(torch.cat(errors).mean()))


@torch.no_grad()
def encode(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """Latents (mean of the posterior, unit variance) of pixels in [-1, 1]."""
    with autocast(x.device):
        mean = vae.encode(x).latent_dist.mean
    return mean.float() * SCALING_FACTOR


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: Pictures, batch: int = 128) -> torch.Tensor:
    """Latents of a whole set, (N, 4, size / f, size / f) float16 on the CPU."""
    device = next(vae.parameters()).device
    index = np.arange(len(pictures))
    parts = [
        encode(vae, pictures.batch(index[i : i + batch]).to(device)).half().cpu()
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: Pictures, count: int = 4096) -> None:
    """Fold each latent channel's mean and spread into the two 1x1 convolutions at the latents.

    Afterwards latents times `SCALING_FACTOR` have zero mean and unit variance in every channel,
    and reconstructions are what they were.
    """
    device = next(vae.parameters()).device
    parts = []
    for i in range(0, min(count, len(pictures)), 128):
        index = np.arange(i, min(i + 128, len(pictures)))
        parts.append(encode(vae, pictures.batch(index).to(device)) / SCALING_FACTOR)
    z = torch.cat(parts)
    mean, factor = z.mean((0, 2, 3)), z.std((0, 2, 3)) * SCALING_FACTOR
    into, out = vae.quant_conv, vae.post_quant_conv
    n = len(mean)
    into.weight[:n] /= factor[:, None, None, None]
    into.bias[:n] = (into.bias[:n] - mean) / factor
    into.bias[n:] -= 2 * torch.log(factor)
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= factor[None, :, None, None]


def decoder_loss(
    vae: AutoencoderKL,
    pictures: Pictures,
    latents: torch.Tensor,
    batch: int,
    device: torch.device,
    step: Draw,
) -> torch.Tensor:
    """Loss of one step of the decoder alone, on latents slightly off, as a UNet leaves them."""
    index = np.sort(step.numpy.choice(len(pictures), batch, replace=len(pictures) < batch))
    x = pictures.batch(index).to(device)
    z = latents[index].float().to(device)
    z = z + 0.03 * step.normal(z)
    with autocast(device):
        y = vae.decode(z / SCALING_FACTOR).sample.float()
    return reconstruction_loss(y, x)
