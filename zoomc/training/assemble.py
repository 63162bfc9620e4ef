"""The trained parts as one pipeline folder in diffusers' layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline
from transformers import CLIPTokenizer

from .unet import Denoiser, build_scheduler


def assemble(denoiser: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer, target: Path) -> int:
    """Write the pipeline to ``target`` as fp16 safetensors.

    The models themselves become fp16 too.

    Returns:
        Bytes of all files together.
    """
    for model in (vae, denoiser.unet, denoiser.text_encoder):
        # Not diffusers' own .to, which warns that a CPU cannot run this: it is only to be written.
        torch.nn.Module.to(model, device="cpu", dtype=torch.float16)
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(target)
    # transformers loads a model in the dtype its configuration names, diffusers in fp32: where
    # nobody gives one, all parts shall be of one.
    file = target / "text_encoder" / "config.json"
    config = json.loads(file.read_text()) | {"dtype": "float32"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
