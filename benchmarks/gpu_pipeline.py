"""The whole inpainting pipeline on a GPU: the first image, images a second, joules an image."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from gpu_apart import Ended, Notes, apart, serve
from gpu_contenders import settings
from gpu_machine import Gpu
from gpu_steps import SMALL
from models import SD2_TEXT, SD2_UNET, SD2_VAE, seeded

STEPS = 20

#: Seconds over which joules are counted: the driver renews them every tenth of one.
LEAST = 10.0


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
                         "up_block_types": ["UpDecoderBlock2D"] * 2, "norm_num_groups": 4,
                         "block_out_channels": [8, 8]}  # fmt: skip
        self.machine, self.steps = machine, 1 if machine.dry else STEPS
        side = 8 if machine.dry else 512
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
        pipe, chosen = self.pipe, settings(name, self.machine)
        for part in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder, pipe.text_encoder):
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


def measured(machine: Gpu, notes: Notes, name: str, rounds: int) -> dict[str, Any]:
    """A contender's figures."""
    from zoomc.targets.counters import counter, measure
    from zoomc.targets.errors import CounterError

    pipeline = Pipeline(machine)
    expected = pipeline().float()  # eager's, which also loads whatever torch loads at first
    pipeline.compile(name)
    start = time.perf_counter()
    image = pipeline()
    first = time.perf_counter() - start
    if not machine.dry:
        pipeline()  # what is recorded, is recorded at the second call
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        pipeline()
        times.append(time.perf_counter() - start)
    row: dict[str, Any] = {
        "contender": name,
        "steps": pipeline.steps,
        "first_image_seconds": first,
        "finite": bool(image.isfinite().all()),
        "black": bool(image.max() == 0),
        "difference": float((image.float() - expected).norm() / expected.norm()),
        "seconds": times,
        "median": statistics.median(times),
        "images_a_second": 1 / statistics.median(times),
    }
    try:
        energy = measure(pipeline, counter(machine.device), least=0 if machine.dry else LEAST)
        row |= {"joules": energy.joules, "watts": energy.watts, "joules_by": energy.source}
    except CounterError as error:
        row["joules_by"] = f"joules are not counted: {error}"
    if not row["finite"] or row["black"]:
        notes.failed[name] = "its picture is black or not finite"
    return row


def line(row: dict[str, Any]) -> str:
    """A row, for people."""
    spent = row["joules_by"]
    if "joules" in row:
        spent = f"{row['joules']:7.1f} J an image ({row['watts']:.0f} W, {spent})"
    return (
        f"{row['contender']:12} {row['images_a_second']:6.2f} images/s of {row['steps']} steps"
        f" ({min(row['seconds']):.3f}–{max(row['seconds']):.3f} s)"
        f"  first {row['first_image_seconds']:6.1f} s"
        f"  differs from eager's by {row['difference']:.1e}  {spent}"
    )


def work(machine: Gpu, notes: Notes, names: list[str], rounds: int) -> None:
    """One contender."""
    # Each process would say again what they have to say of pictures' formats and of fp16.
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    with notes.at(names[0]):
        notes.found["row"] = measured(machine, notes, names[0], rounds)
        print(line(notes.found["row"]), flush=True)


def run(machine: Gpu, names: Sequence[str], rounds: int = 5) -> Ended:
    """Every contender's figures, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for name in names:
        ended = apart(machine, __file__, {"names": [name], "rounds": rounds})
        failed |= ended.failed or ({name: ended.why} if ended.why else {})
        if "row" in ended.found:
            rows.append(ended.found["row"])
    return Ended({"rows": rows}, failed, "")


if __name__ == "__main__":
    serve(work)
