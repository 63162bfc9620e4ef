"""Small seeded models of every class zoomc must compile, each with example inputs; no network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

Inputs = tuple[torch.Tensor, ...]


class UNet(nn.Module):
    """A UNet that takes and returns plain tensors; extra inputs are SDXL's added conditions."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        added = None
        if text_embeds is not None:
            added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(sample, timestep, context, added_cond_kwargs=added, return_dict=False)[0]


class TextEncoder(nn.Module):
    """Token ids ``(N, S)`` to ``(last hidden state, pooled)``."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.encoder(ids)
        return out.last_hidden_state, out.pooler_output


class Encoder(nn.Module):
    """Image ``(N, 3, H, W)`` to the moments of its latent."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(image).latent_dist.parameters


class Decoder(nn.Module):
    """Latent ``(N, 4, H, W)`` to image."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent, return_dict=False)[0]


def _frozen(module: nn.Module) -> nn.Module:
    # Norm gains start at 1 and biases at 0: perturb them, or a pass that loses one goes unseen.
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval().requires_grad_(False)


def _seeded(seed: int = 0) -> None:
    torch.manual_seed(seed)


_UNET: dict[str, Any] = {
    "sample_size": 16,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 64,
    "norm_num_groups": 8,
}


def _unet_inputs(channels: int, batch: int, cross: int, size: int = 16) -> Inputs:
    return (
        torch.randn(batch, channels, size, size),
        torch.tensor(501),
        torch.randn(batch, 7, cross),
    )


def sd2_unet(batch: int = 1) -> tuple[nn.Module, Inputs]:
    """SD2 inpainting: nine input channels, linear projections, two head counts."""
    _seeded()
    config = {**_UNET, "in_channels": 9, "attention_head_dim": [2, 4]}
    unet = UNet2DConditionModel(**config, use_linear_projection=True)
    return _frozen(UNet(unet)), _unet_inputs(9, batch, 64)


def sd15_unet(batch: int = 1) -> tuple[nn.Module, Inputs]:
    """SD 1.5: convolutional projections around the transformers, one head count."""
    _seeded()
    config = {**_UNET, "in_channels": 4, "attention_head_dim": 4, "cross_attention_dim": 48}
    return _frozen(UNet(UNet2DConditionModel(**config))), _unet_inputs(4, batch, 48)


def sdxl_unet(batch: int = 1) -> tuple[nn.Module, Inputs]:
    """SDXL: several layers a transformer, added text and size conditions."""
    _seeded()
    config = {
        **_UNET,
        "in_channels": 4,
        "attention_head_dim": [2, 4],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
    }
    unet = UNet2DConditionModel(**config)
    added = (torch.randn(batch, 32), torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(batch, 1))
    return _frozen(UNet(unet)), (*_unet_inputs(4, batch, 64), *added)


def clip_text(batch: int = 1, activation: str = "gelu") -> tuple[nn.Module, Inputs]:
    """The text encoder: causal attention, ``gelu`` (SD2) or ``quick_gelu`` (SD 1.5)."""
    _seeded()
    config = CLIPTextConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=11,
        hidden_act=activation,
        bos_token_id=97,
        eos_token_id=98,
    )
    ids = torch.randint(0, 97, (batch, 11))
    ids[:, 6] = 98
    return _frozen(TextEncoder(CLIPTextModel(config))), (ids,)


def _vae() -> AutoencoderKL:
    _seeded()
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[16, 32],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )


def vae_encoder(batch: int = 1) -> tuple[nn.Module, Inputs]:
    """The autoencoder's first half: asymmetric padding before strided convolutions."""
    return _frozen(Encoder(_vae())), (torch.randn(batch, 3, 32, 32),)


def vae_decoder(batch: int = 1) -> tuple[nn.Module, Inputs]:
    """The autoencoder's second half: nearest upsampling."""
    return _frozen(Decoder(_vae())), (torch.randn(batch, 4, 16, 16),)


#: Every builder by name: ``MODELS[name](batch)`` gives ``(module, example inputs)``.
MODELS: dict[str, Callable[..., tuple[nn.Module, Inputs]]] = {
    "sd2_unet": sd2_unet,
    "sd15_unet": sd15_unet,
    "sdxl_unet": sdxl_unet,
    "clip_text": clip_text,
    "vae_encoder": vae_encoder,
    "vae_decoder": vae_decoder,
}
