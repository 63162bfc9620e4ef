"""The built-in pipeline and picture, so that the zoom runs with nothing but zoomc installed.

The pipeline is of the same classes as Stable Diffusion 2 inpainting, some two hundred times
smaller: 64x64 pixels, 4-pixel latent cells. A trained checkpoint lies in ``zoomc/assets/demo``
(``python -m zoomc.training`` makes it); where it is missing, weights are random numbers from a
fixed seed: good for trying the machinery, not for looking at.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..zoom.settings import ZoomSettings

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionInpaintPipeline
    from transformers import CLIPTokenizer

#: The trained checkpoint, a folder that ``StableDiffusionInpaintPipeline.from_pretrained`` loads.
CHECKPOINT = Path(__file__).parents[1] / "assets" / "demo"

#: What the built-in picture shows, in words the built-in model knows.
PROMPT = "three orange fish in blue water over sand with green weed and bubbles"

RANDOM_NOTE = (
    "The built-in model has random weights here: the zoom works, but what it paints is noise. "
    "Give --model (pipeline=) a trained inpainting pipeline for pictures."
)

#: The guidance that suits the built-in model: stronger makes it oversaturate.
GUIDANCE = 3.0

#: The zoom that suits it. A border of a quarter of the side has room for whole fish, which a narrow
#: one paints in halves; more frames a keyframe keep the speed of the default zoom.
SETTINGS = ZoomSettings(guidance=GUIDANCE, shrink=0.5, frames_per_keyframe=12)

_TOKENS = 77


def is_trained() -> bool:
    """Whether :func:`demo_pipeline` gives trained weights."""
    return (CHECKPOINT / "model_index.json").is_file()


def demo_pipeline(dtype: torch.dtype | None = None) -> StableDiffusionInpaintPipeline:
    """The built-in pipeline: trained where the checkpoint is there, else seeded random.

    Args:
        dtype: of all weights; float32 by default.
    """
    import torch

    dtype = dtype or torch.float32
    if is_trained():
        from ..zoom.pipeline import load_pipeline

        return load_pipeline(CHECKPOINT, dtype)
    return random_pipeline(dtype=dtype)


def random_pipeline(
    *,
    channels: tuple[int, ...] = (64, 96, 128),
    vae_channels: tuple[int, ...] = (24, 48, 64),
    size: int = 64,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> StableDiffusionInpaintPipeline:
    """An untrained inpainting pipeline; torch's own random state is left as it was.

    Args:
        channels: of the UNet, one a level, multiples of 32; attention in all levels but the last.
        vae_channels: one a level, multiples of 8; each level but the first halves the sides.
        size: native side in pixels.
        seed: of the weights.
        dtype: of all weights; float32 by default.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionInpaintPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    dtype = dtype or torch.float32
    tokenizer = _byte_tokenizer()
    levels, text_width = len(channels), 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=text_width,
                intermediate_size=4 * text_width,
                projection_dim=text_width,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=_TOKENS,
                hidden_act="gelu",
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=size // 2 ** (len(vae_channels) - 1),
            in_channels=9,
            out_channels=4,
            block_out_channels=channels,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            cross_attention_dim=text_width,
            attention_head_dim=tuple(width // 32 for width in channels),  # counts of heads
            use_linear_projection=True,
            norm_num_groups=32,
        )
        vae = AutoencoderKL(
            block_out_channels=vae_channels,
            down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=size,
            scaling_factor=0.18215,
        )
    models: Any = (unet, vae, text_encoder)
    for model in models:
        model.eval()
        torch.nn.Module.to(model, dtype)  # diffusers' own .to warns about nothing here
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    return pipeline


def _byte_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with no merges: every letter is a token, so it needs no vocabulary file."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: index for index, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=_TOKENS)


def _byte_letters() -> list[str]:
    """The printable stand-in for each byte in byte-level BPE (GPT-2's convention)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return [chr(byte if byte in printable else next(rest)) for byte in range(256)]
