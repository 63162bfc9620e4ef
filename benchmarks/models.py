"""Full-size models with seeded random weights, built from their published configurations."""

from __future__ import annotations

from typing import Any

import torch

SD2_UNET: dict[str, Any] = {
    "in_channels": 9,
    "out_channels": 4,
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "norm_num_groups": 32,
}
SD21_UNET = SD2_UNET | {"in_channels": 4}
SD15_UNET = SD2_UNET | {
    "in_channels": 4,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "use_linear_projection": False,
}
SDXL_UNET = SD2_UNET | {
    "in_channels": 4,
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD2_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
SD2_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}


def seeded(cls: Any, config: Any) -> Any:
    """A model of that class with seeded weights, ready for inference."""
    torch.manual_seed(0)
    model = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
    return model.eval().requires_grad_(False)


def unet_inputs(
    config: dict[str, Any], batch: int = 1, size: int | None = None, seed: int = 1
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Positional and named inputs of a UNet at a latent size; the step, too, is the seed's."""
    size = size or config["sample_size"]
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    args = (
        randn(batch, config["in_channels"], size, size),
        torch.tensor(500 // seed**2),
        randn(batch, 77, config["cross_attention_dim"]),
    )
    if config.get("addition_embed_type") != "text_time":
        return args, {}
    extra = {"text_embeds": randn(batch, 1280), "time_ids": randn(batch, 6)}
    return args, {"added_cond_kwargs": extra}


UNETS = {"unet": SD2_UNET, "unet_sd21": SD21_UNET, "unet_sd15": SD15_UNET, "unet_sdxl": SDXL_UNET}


def inputs(
    name: str, batch: int = 1, size: int = 0, seed: int = 1
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named inputs of a model.

    Args:
        name: a key of :data:`UNETS`, ``text_encoder``, ``vae_encoder`` or ``vae_decoder``.
        batch: pictures or prompts at once.
        size: side of the latents; 0 takes the model's own.
        seed: of their values.
    """
    if name in UNETS:
        return unet_inputs(UNETS[name], batch, size or None, seed)
    generator = torch.Generator().manual_seed(seed)
    size = size or 64
    shapes = {"vae_encoder": (batch, 3, size * 8, size * 8), "vae_decoder": (batch, 4, size, size)}
    if name == "text_encoder":
        return (torch.randint(0, 49408, (batch, 77), generator=generator),), {}
    if name in shapes:
        return (torch.randn(*shapes[name], generator=generator),), {}
    raise SystemExit(f"no model {name!r}; known: {', '.join(UNETS)}, text_encoder, vae_*")


def build(
    name: str, batch: int = 1, size: int = 0
) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    """A model in fp32 with positional and named inputs; arguments as for :func:`inputs`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    args, kwargs = inputs(name, batch, size)
    if name in UNETS:
        return seeded(UNet2DConditionModel, UNETS[name]), args, kwargs
    if name == "text_encoder":
        return seeded(CLIPTextModel, CLIPTextConfig(**SD2_TEXT)), args, kwargs
    vae = seeded(AutoencoderKL, SD2_VAE)
    return getattr(vae, name.removeprefix("vae_")), args, kwargs
