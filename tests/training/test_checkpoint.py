"""The shipped checkpoint does what its card says."""

import re

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from zoomc.demo import CHECKPOINT, is_trained
from zoomc.training.data import draw_many
from zoomc.training.vae import reconstruction_psnr

pytestmark = pytest.mark.skipif(not is_trained(), reason="no demo checkpoint in this copy")


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionInpaintPipeline:
    # No dtype given: all parts must come in one.
    loaded = StableDiffusionInpaintPipeline.from_pretrained(CHECKPOINT)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_it_is_small() -> None:
    assert sum(f.stat().st_size for f in CHECKPOINT.rglob("*") if f.is_file()) <= 12_000_000


def test_every_part_carries_its_trained_weights(pipeline: StableDiffusionInpaintPipeline) -> None:
    from safetensors.torch import load_file

    for name in ("unet", "vae", "text_encoder"):
        (file,) = (CHECKPOINT / name).glob("*.safetensors")
        stored = load_file(file)
        state = getattr(pipeline, name).state_dict()
        # transformers has written its text encoder with and without this prefix.
        bare = {key.removeprefix("text_model."): value for key, value in state.items()}
        for key, value in stored.items():
            loaded = bare[key.removeprefix("text_model.")]
            assert value.dtype == torch.float16 and loaded.dtype == torch.float32, (name, key)
            assert torch.equal(loaded, value.float()), (name, key)


def test_unseen_pictures_survive_the_autoencoder(pipeline: StableDiffusionInpaintPipeline) -> None:
    card = (CHECKPOINT / "README.md").read_text()
    stated = float(re.search(r"([\d.]+) dB on unseen pictures", card)[1])
    images = np.stack([p.image for p in draw_many(10_000, 128, 64, 1)])
    assert reconstruction_psnr(pipeline.vae, images) >= stated - 0.5


def test_the_prompt_colours_the_border(pipeline: StableDiffusionInpaintPipeline) -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    everything = Image.new("L", (64, 64), 255)
    prompts = ["a yellow fish in green water", "a yellow fish in purple water"]
    out = pipeline(
        prompt=prompts,
        image=[grey] * 2,
        mask_image=[everything] * 2,
        height=64,
        width=64,
        num_inference_steps=8,
        guidance_scale=3.0,
        strength=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    green, purple = out.mean((1, 2))
    assert green[1] > green[0] and green[1] > green[2]
    assert purple[2] > purple[1] and purple[0] > purple[1]
