"""The whole inpainting pipeline on a GPU: the first image, images a second, joules an image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from gpu_contenders import settings
from gpu_machine import Gpu
from gpu_steps import SMALL
from models import SD2_TEXT, SD2_UNET, SD2_VAE, seeded

STEPS = 20


class Pipeline:
    """Stable Diffusion 2 inpainting with seeded random weights: tokens in, a picture out.

    The parts are diffusers' own; the prompt is given as tokens, since a tokenizer would have to be
    downloaded, and encoded anew for every image.
    """

    def __init__(self, machine: Gpu) -> None:
        from diffusers import (
            AutoencoderKL,
            DDIMScheduler,
            StableDiffusionInpaintPipeline,
            UNet2DConditionModel,
        )
        from transformers import CLIPTextConfig, CLIPTextModel

        unet, text, vae = SD2_UNET, SD2_TEXT, SD2_VAE
        if machine.dry:
            unet = SMALL
            text = text | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                           "num_attention_heads": 1, "vocab_size": 100}  # fmt: skip
            vae = vae | {"down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 1,
                         "up_block_types": ["UpDecoderBlock2D"] * 2,
                         "block_out_channels": [32, 32]}  # fmt: skip
        self.machine, self.steps = machine, 2 if machine.dry else STEPS
        side = 16 if machine.dry else 512
        self.pipe = StableDiffusionInpaintPipeline(
            vae=seeded(AutoencoderKL, vae),
            text_encoder=seeded(CLIPTextModel, CLIPTextConfig(**text)),
            tokenizer=None,
            unet=seeded(UNet2DConditionModel, unet),
            scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012,
                                    beta_schedule="scaled_linear", clip_sample=False,
                                    steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).to(machine.device, torch.float16)  # fmt: skip
        self.pipe.set_progress_bar_config(disable=True)
        for part in (self.pipe.unet, self.pipe.vae):
            part.to(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, text["vocab_size"], (2, 77), generator=generator)
        self.picture = torch.rand(1, 3, side, side, generator=generator)
        self.mask = torch.zeros(1, 1, side, side)
        self.mask[..., side // 4 : -side // 4, side // 4 : -side // 4] = 1

    def compile(self, name: str) -> None:
        """Hand every network to a contender."""
        torch._dynamo.reset()
        pipe, chosen = self.pipe, settings(name, self.machine)
        for part in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder, pipe.text_encoder):
            part._compiled_call_impl = None
            if chosen is not None:
                part.compile(**chosen)

    def __call__(self) -> torch.Tensor:
        """One picture ``(1, 3, H, W)`` in 0 … 1."""
        with torch.no_grad():
            encoded = self.pipe.text_encoder(self.tokens.to(self.machine.device))[0]
        image: torch.Tensor = self.pipe(
            prompt_embeds=encoded[:1].clone(),
            negative_prompt_embeds=encoded[1:].clone(),
            image=self.picture,
            mask_image=self.mask,
            height=self.picture.shape[2],
            width=self.picture.shape[3],
            num_inference_steps=self.steps,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        self.machine.wait()
        return image


def run(machine: Gpu, names: Sequence[str], rounds: int = 5) -> list[dict[str, Any]]:
    """Every contender's figures, one after the other: each compiles the parts anew."""
    from zoomc.targets.counters import counter, measure
    from zoomc.targets.errors import CounterError

    pipeline, rows = Pipeline(machine), []
    for name in names:
        pipeline.compile(name)
        start = time.perf_counter()
        image = pipeline()
        row: dict[str, Any] = {
            "contender": name,
            "steps": pipeline.steps,
            "first_image_seconds": time.perf_counter() - start,
            "finite": bool(image.isfinite().all()),
            "black": bool(image.max() == 0),
        }
        pipeline()
        row["seconds"] = []
        for _ in range(rounds):
            start = time.perf_counter()
            pipeline()
            row["seconds"].append(time.perf_counter() - start)
        try:
            row["joules"] = measure(pipeline, counter(machine.device)).joules
        except CounterError as error:
            row["joules"] = str(error)
        rows.append(row)
        median = statistics.median(row["seconds"])
        energy = row["joules"]
        spent = f"{energy:7.1f} J an image" if isinstance(energy, float) else energy
        print(f"{name:12} {1 / median:6.2f} images/s of {pipeline.steps} steps"
              f"  first {row['first_image_seconds']:6.1f} s  {spent}", flush=True)  # fmt: skip
    return rows
