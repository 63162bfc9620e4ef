"""Getting a diffusers inpainting pipeline, and putting zoomc under its four models."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionInpaintPipeline
from diffusers.utils import is_accelerate_available
from packaging.version import Version
from safetensors import SafetensorError

from ..errors import nearest
from .errors import ModelKindError, ModelNotFoundError, SettingsError
from .geometry import Grid

#: A ``StableDiffusionInpaintPipeline``. Type checkers cannot see what diffusers gives it.
Pipeline = Any

#: Where the weights of Stable Diffusion 2 inpainting are since their first home was removed.
SOURCE = "sd2-community/stable-diffusion-2-inpainting"

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "dpm++-sde": "DPMSolverSinglestepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# The keyword has a new name; old versions of diffusers know only the old one.
_DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"

#: The models zoomc compiles, as people name them.
PARTS = ("unet", "text_encoder", "vae_encoder", "vae_decoder")


def load_pipeline(source: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Pipeline:
    """Load a pipeline from a folder or the local Hugging Face cache; nothing is downloaded.

    Args:
        source: a folder that ``save_pretrained`` wrote, or a name on the hub.
        dtype: of all weights.

    Raises:
        ModelNotFoundError: where there is none, saying how to get it.
        ModelKindError: where it is something else.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.is_file():
        raise ModelNotFoundError(
            f"{name!r} is one file; a pipeline is a folder with a model_index.json "
            "(diffusers' from_single_file and save_pretrained turn one into the other)"
        )
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ModelNotFoundError(
                f"the folder {name!r} holds no model_index.json, so it is no diffusers pipeline"
            )
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelNotFoundError(
            f"there is no folder {name!r}; give the folder of a diffusers pipeline, or a name on "
            f"the Hugging Face hub such as {SOURCE}"
        )
    target = str(path) if path.is_dir() else name
    index = _model_index(target)
    kind = index.get("_class_name")
    if kind != StableDiffusionInpaintPipeline.__name__:
        raise ModelKindError(
            f"{name!r} is a {kind}; the zoom needs a {StableDiffusionInpaintPipeline.__name__}"
        )
    error: Exception | None = None
    for variant in (None, "fp16"):  # some people keep only the half-size files
        try:
            return StableDiffusionInpaintPipeline.from_pretrained(
                target,
                variant=variant,
                local_files_only=True,
                low_cpu_mem_usage=is_accelerate_available(),  # diffusers warns without
                **{_DTYPE: dtype},
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as failure:
            error = error or failure
    raise ModelNotFoundError(
        f"{name!r} is incomplete or damaged: {_first_line(error)}"
        + ("" if path.is_dir() else f". {_how_to_get(name)}")
    ) from error


def _model_index(target: str) -> dict[str, Any]:
    if os.path.isdir(target):
        file: Any = os.path.join(target, "model_index.json")
    else:
        from huggingface_hub import try_to_load_from_cache

        try:
            file = try_to_load_from_cache(target, "model_index.json")
        except ValueError as error:
            raise ModelNotFoundError(f"{target!r} cannot be a name on the hub: {error}") from None
        if not isinstance(file, str):
            raise ModelNotFoundError(
                f"{target!r} is not in the local Hugging Face cache, and zoomc downloads nothing "
                f"by itself. {_how_to_get(target)}"
            )
    try:
        return json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise ModelKindError(f"{file!r} cannot be read: {error}") from None


def _how_to_get(name: str) -> str:
    if name.startswith("stabilityai/stable-diffusion-2"):
        return (
            f"That repository was removed from the hub; its weights are at {SOURCE}. "
            f"Get them once with: hf download {SOURCE}"
        )
    return f"Get it once with: hf download {name}"


def _first_line(error: BaseException | None) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def set_scheduler(pipeline: Pipeline, name: str) -> None:
    """Replace the scheduler, keeping the noise schedule and what the model predicts.

    Args:
        pipeline: changed in place.
        name: one of :data:`SCHEDULERS`, or the name of a diffusers class.

    Raises:
        SettingsError: for a scheduler that does not exist or does not fit.
    """
    compatible = {cls.__name__: cls for cls in pipeline.scheduler.compatibles}
    scheduler = compatible.get(SCHEDULERS.get(name.lower(), name))
    if scheduler is None:
        if hasattr(diffusers, name) and name.endswith("Scheduler"):
            raise SettingsError(f"the scheduler {name} does not fit this pipeline")
        raise SettingsError(f"there is no scheduler {name!r}{nearest(name, SCHEDULERS)}")
    changes = {}
    if "skip_prk_steps" in inspect.signature(scheduler.__init__).parameters:
        changes["skip_prk_steps"] = True  # Stable Diffusion's way; the other needs more steps
    try:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **changes)
    except (ImportError, ValueError, NotImplementedError) as error:
        raise SettingsError(
            f"the scheduler {name!r} cannot be used: {_first_line(error)}"
        ) from error


def check_pipeline(pipeline: Any) -> None:
    """Check that a pipeline can inpaint.

    Raises:
        ModelKindError: where it cannot.
    """
    if not isinstance(pipeline, StableDiffusionInpaintPipeline):
        raise ModelKindError(
            f"the zoom needs a {StableDiffusionInpaintPipeline.__name__}, "
            f"not a {type(pipeline).__name__}"
        )


def grid_of(pipeline: Pipeline) -> Grid:
    """The sizes the pipeline's models work in."""
    cell = pipeline.vae_scale_factor
    halvings = len(pipeline.unet.config.block_out_channels) - 1
    sample = pipeline.unet.config.sample_size
    native = sample if isinstance(sample, int) else min(sample)
    return Grid(cell=cell, unit=cell * 2**halvings, native=native * cell)


def compile_pipeline(
    pipeline: Pipeline,
    options: Mapping[str, Any] | None = None,
    backend: str = "zoomc",
) -> None:
    """Compile the pipeline's models in place; each is built when it first runs.

    The module objects stay what they are, so ``state_dict`` keys and adapters keep working. The
    VAE's 1x1 quantisation convolutions join the encoder and the decoder in one graph each.

    The option ``weights`` has its default for the UNet alone, whose steps take the time: the text
    encoder and the VAE, which run once a picture, keep their weights unless it is given.

    Args:
        pipeline: changed in place.
        options: of the backend, see ``zoomc options``.
        backend: a ``torch.compile`` backend.
    """
    given = dict(options or {})
    pipeline.unet.compile(backend=backend, options=given)
    arguments: dict[str, Any] = {"backend": backend, "options": {"weights": "keep"} | given}
    pipeline.text_encoder.compile(**arguments)
    vae = pipeline.vae
    vae._encode = torch.compile(vae._encode, **arguments)
    vae._decode = torch.compile(vae._decode, **arguments)


def example_inputs(
    pipeline: Pipeline, part: str
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """One of :data:`PARTS` as a module, with inputs of the shapes a zoom gives it.

    Guidance is on, so the UNet sees two samples: without and with the prompt.
    """
    unet, vae, text = pipeline.unet, pipeline.vae, pipeline.text_encoder
    grid = grid_of(pipeline)
    cells = grid.native // grid.cell
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(unet.device, unet.dtype)

    tokens = min(pipeline.tokenizer.model_max_length, text.config.max_position_embeddings)
    if part == "unet":
        width = unet.config.cross_attention_dim
        sample = noise(2, unet.config.in_channels, cells, cells)
        return unet, (sample, torch.tensor(500, device=unet.device), noise(2, tokens, width))
    if part == "text_encoder":
        return text, (torch.zeros(1, tokens, dtype=torch.long, device=unet.device),)
    if part == "vae_encoder":
        return vae.encoder, (noise(1, vae.config.in_channels, grid.native, grid.native),)
    return vae.decoder, (noise(1, vae.config.latent_channels, cells, cells),)


def config_unet(
    folder: str | os.PathLike[str], dtype: torch.dtype
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]] | None:
    """A UNet with seeded weights from a folder with its ``config.json``, and inputs for it.

    Returns:
        None for a folder without one: it may be a pipeline.

    Raises:
        ModelKindError: another model's configuration, or a UNet with inputs no zoom has.
    """
    file = Path(folder).expanduser() / "config.json"
    if not file.is_file():
        return None
    default = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(dtype)
        config = json.loads(file.read_text())
        if config.get("_class_name") != "UNet2DConditionModel":
            raise ValueError(f"it is of a {config.get('_class_name')}")
        if config.get("addition_embed_type") or config.get("class_embed_type"):
            raise ValueError("it takes more than a picture, a time and a text")
        unet: Any = diffusers.UNet2DConditionModel.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelKindError(f"{str(file)!r} is no UNet's: {_first_line(error)}") from error
    finally:
        torch.set_default_dtype(default)
    side = unet.config.sample_size
    high, wide = (side, side) if isinstance(side, int) else side
    sample = torch.randn(2, unet.config.in_channels, high, wide, dtype=dtype)
    text = torch.randn(2, 77, unet.config.cross_attention_dim, dtype=dtype)
    return unet.eval().requires_grad_(False), (sample, torch.tensor(500), text)


def fingerprint(pipeline: Pipeline) -> str:
    """Short hash of configurations and of a sample of the weights, to recognise a model again."""
    digest = hashlib.sha256()
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        digest.update(type(model).__name__.encode())
        for name, weight in model.state_dict().items():
            digest.update(f"{name}{tuple(weight.shape)}".encode())
            flat = weight.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 16)][:16]
            digest.update(sample.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]
