"""From nothing to a pipeline: pictures, autoencoder, latents, denoiser, decoder again, assembly.

Every stage keeps its state in the output folder, so the same command continues a run that was
cut, and a finished stage is not repeated.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from rich.console import Console
from safetensors.torch import load_file
from transformers import CLIPTextModel

from .assemble import assemble
from .data import VALIDATION_SEED_OFFSET, Pictures, load_pictures
from .loop import Budget, Recipe, Stage
from .norm import train_faster
from .tokenizer import build_tokenizer
from .unet import Denoiser, LatentSet, UnetConfig, build_scheduler, caption_ids, denoiser_loss
from .vae import (
    VaeConfig,
    build_vae,
    decoder_loss,
    encode_all,
    normalise_latents,
    reconstruction_psnr,
    vae_loss,
)

VALIDATION_PICTURES = 256

TUNED = ("unet", "decoder")
"""Parts of a finished pipeline that can be trained further."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run is made of; ``seed`` and step budgets repeat it exactly on one machine."""

    size: int = 64
    pictures: int = 30_000
    seed: int = 0
    vae: VaeConfig = field(default_factory=VaeConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    vae_budget: Budget = field(default_factory=lambda: Budget(steps=8000))
    unet_budget: Budget = field(default_factory=lambda: Budget(steps=8000))
    decoder_budget: Budget = field(default_factory=lambda: Budget(steps=1500))
    vae_batch: int = 16
    unet_batch: int = 32
    device: str = "cpu"
    shards: int = 1


class Run:
    """One training run in one folder.

    Args:
        config: what to train.
        out: folder for pictures, checkpoints and the finished ``pipeline/``.
    """

    def __init__(self, config: TrainConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.device = torch.device(config.device)
        self.console = Console()
        torch.manual_seed(config.seed)
        self.tokenizer = build_tokenizer()
        self.model = build_vae(config.vae, config.size).to(self.device)
        self.cells = config.size // 2 ** (len(config.vae.channels) - 1)
        self.denoiser = Denoiser(config.unet, self.cells, self.tokenizer).to(self.device)
        if self.device.type == "cpu":
            train_faster(self.model)
            train_faster(self.denoiser)

    def pictures(self, unseen: bool = False) -> Pictures:
        """The training set, or the unseen one."""
        seed = self.config.seed + (VALIDATION_SEED_OFFSET if unseen else 0)
        count = VALIDATION_PICTURES if unseen else self.config.pictures
        return load_pictures(self.out, seed, count, self.config.size)

    def _stage(self, name: str, model: torch.nn.Module, recipe: Recipe, budget: Budget) -> Stage:
        c = self.config
        return Stage(name, self.out, model, recipe, budget, c.seed, c.shards)

    def train_vae(self) -> AutoencoderKL:
        """Autoencoder, trained."""
        c, vae, data, unseen = self.config, self.model, self.pictures(), self.pictures(unseen=True)
        stage = self._stage("vae", vae, Recipe(lr=1.5e-3, average=0.997), c.vae_budget)
        stage.run(
            lambda step: vae_loss(vae, data, c.vae_batch // c.shards, self.device, step),
            lambda: f"{reconstruction_psnr(vae, unseen.images[:64]):.2f} dB on unseen pictures",
        )
        stage.adopt_average()
        normalise_latents(vae, data)
        return vae.requires_grad_(False)

    def latents(self, vae: AutoencoderKL) -> LatentSet:
        """Latents of the training set, kept in the folder."""
        data, file = self.pictures(), self.out / "latents.pt"
        if not file.exists():
            torch.save(encode_all(vae, data), file)
        return LatentSet(
            data,
            torch.load(file, weights_only=True),
            caption_ids(self.tokenizer, data.captions),
            caption_ids(self.tokenizer, [""])[0],
            build_scheduler().alphas_cumprod,
        )

    def train_unet(
        self, vae: AutoencoderKL, data: LatentSet, name: str = "unet", lr: float = 8e-4
    ) -> None:
        """UNet and text encoder, trained on the latents.

        Args:
            vae: made the latents; it encodes what masks leave.
            data: latents and captions.
            name: of the stage.
            lr: highest learning rate.
        """
        c, model = self.config, self.denoiser
        if self.device.type == "cpu":
            # The fused attention's backward pass on a CPU is slower than plain matrix products.
            model.unet.set_attn_processor(AttnProcessor())
        recipe = Recipe(lr=lr, betas=(0.9, 0.98), weight_decay=0.01, average=0.998, warmup=150)
        stage = self._stage(name, model, recipe, c.unet_budget)
        stage.run(
            lambda step: denoiser_loss(
                model, vae, data, c.unet_batch // c.shards, self.device, step
            )
        )
        stage.adopt_average()

    def tune_decoder(
        self, vae: AutoencoderKL, latents: torch.Tensor, name: str = "decoder", lr: float = 8e-4
    ) -> None:
        """Decoder alone, for the latent space that the UNet has learnt.

        Args:
            vae: its encoder made the latents and stays as it is.
            latents: of the training set.
            name: of the stage.
            lr: highest learning rate.
        """
        c, data, unseen = self.config, self.pictures(), self.pictures(unseen=True)
        vae.decoder.requires_grad_(True)
        vae.post_quant_conv.requires_grad_(True)
        recipe = Recipe(lr=lr, average=0.99, warmup=50, hold=0.0)
        stage = self._stage(name, vae, recipe, c.decoder_budget)
        stage.run(
            lambda step: decoder_loss(
                vae, data, latents, c.vae_batch // c.shards, self.device, step
            ),
            lambda: f"{reconstruction_psnr(vae, unseen.images[:64]):.2f} dB on unseen pictures",
        )
        stage.adopt_average()
        vae.requires_grad_(False)

    def finish(self) -> Path:
        """Run every stage that is not done and write ``pipeline/``."""
        vae = self.train_vae()
        data = self.latents(vae)
        self.train_unet(vae, data)
        self.tune_decoder(vae, data.latents)
        self._tell(vae)
        target = self.out / "pipeline"
        size = assemble(self.denoiser, vae, self.tokenizer, target)
        self.console.print(f"{target}: {size / 1e6:.2f} MB")
        return target

    def tune(self, pipeline: Path, parts: Sequence[str] = TUNED) -> Path:
        """Train parts of a finished pipeline further, and write ``pipeline/`` with them.

        The encoder stays, so the latents stay what the pipeline's UNet has learnt.

        Args:
            pipeline: its folder.
            parts: of :data:`TUNED`. ``unet`` includes the text encoder.
        """
        vae = AutoencoderKL.from_pretrained(pipeline / "vae")
        vae = vae.to(self.device, torch.float32, memory_format=torch.channels_last)
        vae.requires_grad_(False)
        self.denoiser.unet.load_state_dict(load_file(pipeline / "unet" / WEIGHTS))
        text = CLIPTextModel.from_pretrained(pipeline / "text_encoder")
        self.denoiser.text_encoder.load_state_dict(text.state_dict())
        if self.device.type == "cpu":
            train_faster(vae)
        self._tell(vae)
        data = self.latents(vae)
        # Half the rates: these weights have been through the end of a schedule before.
        if "unet" in parts:
            self.train_unet(vae, data, "tuned-unet", lr=4e-4)
        if "decoder" in parts:
            self.tune_decoder(vae, data.latents, "tuned-decoder", lr=4e-4)
            self._tell(vae)
        target = self.out / "pipeline"
        assemble(self.denoiser, vae, self.tokenizer, target)
        # What is saved of the VAE names the folder it came from.
        shutil.copy(pipeline / "vae" / "config.json", target / "vae")
        return target

    def _tell(self, vae: AutoencoderKL) -> None:
        figure = reconstruction_psnr(vae, self.pictures(unseen=True).images)
        self.console.print(f"autoencoder: {figure:.2f} dB on {VALIDATION_PICTURES} unseen pictures")


STAGES = {"vae": 0.35, "unet": 0.57, "decoder": 0.08}
"""Trained stages and the share of ``--minutes`` each gets."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line of ``python -m zoomc.training``."""
    default = TrainConfig()
    parser = argparse.ArgumentParser(
        prog="python -m zoomc.training",
        description="Train the demo inpainting model; the same command continues a cut run.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for pictures, checkpoints, pipeline/")
    add("--minutes", type=float, help="train for this long in all, not by steps")
    for name in STAGES:
        steps = getattr(default, f"{name}_budget").steps
        add(f"--{name}-minutes", type=float, help=f"train the {name} for this long")
        add(f"--{name}-steps", type=int, help=f"or for so many steps (default: {steps})")
    add("--pictures", type=int, default=default.pictures, help="to draw (default: %(default)s)")
    add("--size", type=int, default=default.size, help="side in pixels, a multiple of 64")
    add("--seed", type=int, default=default.seed)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--shards", type=int, help="workers on a CPU (default: one a core)")
    add(
        "--tune",
        type=Path,
        metavar="PIPELINE",
        help="train a finished one's unet and decoder further, or the one whose budget is given",
    )
    add("--only", choices=list(STAGES)[:2], help="stop after this stage")
    a = parser.parse_args(arguments)
    others = [f"{n}_{k}" for n in STAGES if n not in TUNED for k in ("steps", "minutes")]
    ignored = [f"--{n.replace('_', '-')}" for n in ("only", *others) if getattr(a, n) is not None]
    if a.tune is not None and ignored:
        budgets = " or ".join(f"--{name}-minutes" for name in TUNED)
        parser.error(f"--tune trains {' and '.join(TUNED)}: {ignored[0]} says nothing there;"
                     f" choose between them by {budgets}")  # fmt: skip
    return a


def config_of(a: argparse.Namespace) -> TrainConfig:
    """What the command line asks for."""
    budgets: dict[str, Any] = {}
    for name, share in STAGES.items():
        steps, minutes = getattr(a, f"{name}_steps"), getattr(a, f"{name}_minutes")
        if minutes is None and a.minutes is not None:
            minutes = a.minutes * share
        if steps is not None or minutes is not None:
            budgets[f"{name}_budget"] = Budget(steps, minutes)
    shards = (os.cpu_count() or 1) if a.device == "cpu" else 1
    return TrainConfig(
        size=a.size,
        pictures=a.pictures,
        seed=a.seed,
        device=a.device,
        shards=a.shards or shards,
        **budgets,
    )


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    a = parse(arguments)
    if a.device == "cpu":
        # Shards are the parallelism: operators of several threads would only get in their way.
        torch.set_num_threads(1)
    run = Run(config_of(a), a.out)
    if a.tune is not None:
        asked = [p for p in TUNED if getattr(a, f"{p}_steps") or getattr(a, f"{p}_minutes")]
        run.tune(a.tune, asked or TUNED)
        return
    if a.only is None:
        run.finish()
        return
    vae = run.train_vae()
    if a.only == "unet":
        run.train_unet(vae, run.latents(vae))
