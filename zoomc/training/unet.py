"""The UNet with its text encoder: what is learnt on the latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .data import Pictures, hide, random_masks
from .loop import Draw
from .vae import SCALING_FACTOR, autocast

HEAD_SIZE = 32
CAPTION_DROPOUT = 0.1
"""Share of captions emptied in training, for classifier-free guidance."""


@dataclass(frozen=True)
class UnetConfig:
    """Sizes of the UNet and the text encoder; attention in all levels but the last."""

    channels: tuple[int, ...] = (64, 96, 128)
    layers: int = 1
    text: int = 64
    text_layers: int = 2


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 2's noise schedule, v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def build_text_encoder(config: UnetConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Untrained text encoder for the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text,
            intermediate_size=4 * config.text,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text // HEAD_SIZE,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=config.text,
        )
    )


def build_unet(config: UnetConfig, cells: int) -> UNet2DConditionModel:
    """Untrained UNet for latents of side ``cells``: nine channels in, four out."""
    inner = len(config.channels) - 1
    return UNet2DConditionModel(
        sample_size=cells,
        in_channels=9,
        out_channels=4,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        down_block_types=("CrossAttnDownBlock2D",) * inner + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * inner,
        cross_attention_dim=config.text,
        attention_head_dim=tuple(c // HEAD_SIZE for c in config.channels),
        use_linear_projection=True,
    ).to(memory_format=torch.channels_last)


class Denoiser(torch.nn.Module):
    """UNet and text encoder as the one thing that is trained.

    Args:
        config: sizes.
        cells: side of the latent grid.
        tokenizer: of the captions.
    """

    def __init__(self, config: UnetConfig, cells: int, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = build_unet(config, cells)
        self.text_encoder = build_text_encoder(config, tokenizer)

    def forward(
        self, noisy: torch.Tensor, t: torch.Tensor, rest: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Predicted v of (B, 4, s, s) noisy latents; ``rest`` is mask and masked latents."""
        text = self.text_encoder(ids).last_hidden_state
        x = torch.cat([noisy, rest], 1).contiguous(memory_format=torch.channels_last)
        return self.unet(x, t, text, return_dict=False)[0]


def caption_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """(N, L) int64 token ids, padded to the tokenizer's length."""
    ids = tokenizer(captions, padding="max_length", max_length=tokenizer.model_max_length)
    return torch.tensor(ids["input_ids"])


@dataclass(frozen=True)
class LatentSet:
    """What the denoiser learns from.

    Attributes:
        pictures: the pixels, for the masked ones.
        latents: (N, 4, s, s) float16, unit variance.
        ids: (N, L) caption tokens.
        empty: (L,) tokens of the empty caption.
        signal: (T,) product of alphas of the noise schedule.
    """

    pictures: Pictures
    latents: torch.Tensor
    ids: torch.Tensor
    empty: torch.Tensor
    signal: torch.Tensor


def denoiser_loss(
    denoiser: Denoiser,
    vae: AutoencoderKL,
    data: LatentSet,
    batch: int,
    device: torch.device,
    step: Draw,
) -> torch.Tensor:
    """Squared error of the predicted v; cells to be painted count double."""
    index = np.sort(step.numpy.choice(len(data.ids), batch, replace=len(data.ids) < batch))
    z = data.latents[index].float().to(device)
    masks = random_masks(data.pictures.keeps[index], z.shape[-1], step.numpy).to(device)
    hidden = hide(data.pictures.batch(index).to(device), masks)
    with torch.no_grad(), autocast(device):
        posterior = vae.encode(hidden.contiguous(memory_format=torch.channels_last)).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
    # The pipeline samples here too.
    known = (mean + torch.exp(0.5 * logvar) * step.normal(mean)) * SCALING_FACTOR
    ids = data.ids[index].clone()
    ids[torch.from_numpy(step.numpy.random(batch) < CAPTION_DROPOUT)] = data.empty
    t = torch.from_numpy(step.numpy.integers(0, len(data.signal), batch)).to(device)
    signal = data.signal.to(device)[t].view(-1, 1, 1, 1)
    noise = step.normal(z)
    noisy = signal.sqrt() * z + (1 - signal).sqrt() * noise
    v = signal.sqrt() * noise - (1 - signal).sqrt() * z
    with autocast(device):
        out = denoiser(noisy, t, torch.cat([masks, known], 1), ids.to(device))
    weight = 1 + masks
    return ((out.float() - v).square() * weight / weight.mean()).mean()
