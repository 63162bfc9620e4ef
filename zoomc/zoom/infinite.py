"""The zoom itself: outpaint, keep, interpolate, write."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import nearest
from . import compose
from .errors import ModelOutputError, SettingsError
from .geometry import Geometry, plan
from .picture import fit_picture, load_picture
from .pipeline import (
    Pipeline,
    check_pipeline,
    compile_pipeline,
    fingerprint,
    grid_of,
    load_pipeline,
    set_scheduler,
)
from .progress import Reporter
from .settings import DEFAULT_GUIDANCE, Prompts, ZoomSettings, prompt_per_keyframe
from .sheet import sheet_path, write_sheet
from .store import KeyframeStore, beside
from .video import check_output, write_video

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


class InfiniteZoom:
    """An endless flight out of a picture (or into it), painted by an inpainting pipeline.

    Example::

        zoom = zoomc.InfiniteZoom("path/to/stable-diffusion-2-inpainting")
        zoom("photo.jpg", "a hillside village, oil painting", "zoom.mp4", keyframes=12)

    Args:
        pipeline: a pipeline, its folder, its name on the hub (local cache only), or None for the
            small one that comes with zoomc.
        compile: run the pipeline's models through ``torch.compile(backend="zoomc")``. They are
            compiled in place.
        options: of the backend, as ``zoomc options`` lists them.
        scheduler: to use instead of the pipeline's own, such as ``"ddim"`` or ``"dpm++"``.
        device: to run on; None leaves a given pipeline where it is and loads onto the CPU.
        dtype: of the weights of a pipeline that is loaded here; float32 by default.
        reporter: is told how far things are; silent by default.

    Attributes:
        settings: of a zoom that is asked for without; those that suit the pipeline.

    Raises:
        ZoomcError: of the kinds in ``zoomc.zoom.errors``.
    """

    def __init__(
        self,
        pipeline: Pipeline | str | os.PathLike[str] | None = None,
        *,
        compile: bool = True,
        options: Mapping[str, Any] | None = None,
        scheduler: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.reporter = reporter or Reporter()
        dtype = dtype or torch.float32
        self.settings = ZoomSettings()
        self.pipeline: Pipeline
        if pipeline is None:
            from .. import demo

            self.pipeline = demo.demo_pipeline(dtype)
            self.settings = demo.SETTINGS
            if not demo.is_trained():
                self.reporter.note(demo.RANDOM_NOTE)
        elif isinstance(pipeline, (str, os.PathLike)):
            self.pipeline = load_pipeline(pipeline, dtype)
        else:
            self.pipeline = pipeline
        check_pipeline(self.pipeline)
        if scheduler is not None:
            set_scheduler(self.pipeline, scheduler)
        if device is not None:
            self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self._compiled = compile
        self._options = dict(options or {})
        self._model = fingerprint(self.pipeline)
        if compile:
            compile_pipeline(self.pipeline, self._options)

    def __call__(
        self,
        picture: Picture,
        prompt: Prompts = "",
        output: str | os.PathLike[str] = "zoom.mp4",
        settings: ZoomSettings | None = None,
        *,
        sheet: str | os.PathLike[str] | bool = True,
        fresh: bool = False,
        **changes: Any,
    ) -> Path:
        """Make the video, and a contact sheet of its keyframes.

        Keyframes are kept in ``<output without ending>.keyframes``. Where that folder holds some
        of the same zoom, only the missing ones are painted: after an interrupt, with more
        keyframes asked for, or with another direction, speed or file format.

        Args:
            picture: path, Pillow image or array, see :func:`zoomc.zoom.picture.load_picture`.
            prompt: one, one per keyframe, or ``{keyframe: prompt}``.
            output: file (.mp4, .mov, .mkv, .gif, .webp) or, without an ending, folder.
            settings: of the zoom; by default ``self.settings``, which suit the pipeline.
            sheet: PNG file for the contact sheet; True is
                ``<output without ending>.keyframes.png``, False none.
            fresh: paint all keyframes again.
            **changes: single settings by name, instead of ``settings`` or on top of them.

        Returns:
            The path of the video.

        Raises:
            ZoomcError: of the kinds in ``zoomc.zoom.errors``.
        """
        known = [field.name for field in dataclasses.fields(ZoomSettings)]
        for name in changes.keys() - set(known):
            raise SettingsError(f"a zoom has no setting {name!r}{nearest(name, known)}")
        settings = dataclasses.replace(settings or self.settings, **changes)
        if settings.guidance is None:
            settings = dataclasses.replace(settings, guidance=self._guidance)
        prompts = prompt_per_keyframe(prompt, settings.keyframes)
        output = Path(output)
        check_output(output)
        sheet_file = sheet_path(output, sheet)
        source = load_picture(picture)
        geometry = self.geometry((source.shape[1], source.shape[0]), settings)
        first = fit_picture(source, geometry.width, geometry.height)
        store = KeyframeStore(
            beside(output, ".keyframes"),
            self._identity(first, geometry, settings),
            prompts,
            fresh,
        )
        with self.reporter:
            self._paint_missing(store, first, prompts, geometry, settings)
            self._write(store, output, geometry, settings)
            if sheet_file:
                indices = range(settings.keyframes + 1)
                shown = indices if settings.direction == "out" else indices[::-1]
                write_sheet(map(store.load, shown), len(shown), sheet_file)
        return output

    @property
    def _guidance(self) -> float:
        own = self.settings.guidance
        return DEFAULT_GUIDANCE if own is None else own

    def geometry(self, picture: tuple[int, int], settings: ZoomSettings) -> Geometry:
        """Frame and window for a picture of this width and height; says what it rounds."""
        geometry = plan(picture, settings.size, settings.shrink, grid_of(self.pipeline))
        if abs(geometry.ratio - settings.shrink) > 1e-3:
            self.reporter.note(
                f"shrink {settings.shrink:g} becomes {geometry.ratio:.4g}: the window stays on "
                f"the latent grid of a {geometry.width}x{geometry.height} frame"
            )
        if settings.feather * 2 >= min(
            geometry.width - 2 * geometry.border_x, geometry.height - 2 * geometry.border_y
        ):
            self.reporter.note(f"feather {settings.feather} reaches the middle of the window")
        return geometry

    def paint(
        self,
        keyframe: np.ndarray,
        index: int,
        prompt: str,
        geometry: Geometry,
        settings: ZoomSettings,
    ) -> np.ndarray:
        """Keyframe ``index`` from the one before it.

        Args:
            keyframe: number ``index - 1``, (H, W, 3) uint8.
            index: from 1; with the seed it fixes the noise.
            prompt: of this keyframe.
            geometry: of the zoom.
            settings: of the zoom.

        Returns:
            (H, W, 3) uint8.

        Raises:
            ModelOutputError: where the model returns not-a-number or a blanked picture.
        """
        known, mask = compose.canvas(keyframe, geometry)
        result = self.pipeline(
            prompt=prompt,
            negative_prompt=settings.negative_prompt or None,
            image=Image.fromarray(known),
            mask_image=Image.fromarray(mask),
            width=geometry.width,
            height=geometry.height,
            # Below 1 the pipeline would start from the meaningless border instead of noise.
            strength=1.0,
            num_inference_steps=settings.steps,
            guidance_scale=self._guidance if settings.guidance is None else settings.guidance,
            generator=_generator(settings.seed, index),
            output_type="np",
            callback_on_step_end=self._step_callback(index),
        )
        if any(result.nsfw_content_detected or ()):
            raise ModelOutputError(
                f"the pipeline's safety checker blanked keyframe {index}; try another seed or "
                "prompt"
            )
        painted = result.images[0] * 255
        if not np.isfinite(painted).all():
            raise ModelOutputError(
                f"the model returned not-a-number for keyframe {index}; float16 is known for it: "
                "use bfloat16 or float32"
            )
        return compose.composite(known, painted, geometry, settings.feather)

    def _step_callback(self, index: int) -> Callable[..., dict[str, Any]]:
        def step_done(
            pipeline: Pipeline, step: int, _time: Any, values: dict[str, Any]
        ) -> dict[str, Any]:
            # The last step belongs to the keyframe's end, after decoding and saving.
            total = pipeline.num_timesteps
            self.reporter.step(index, min(step + 1, total - 1), total)
            return values

        return step_done

    def _paint_missing(
        self,
        store: KeyframeStore,
        first: np.ndarray,
        prompts: list[str],
        geometry: Geometry,
        settings: ZoomSettings,
    ) -> None:
        done = min(store.count, settings.keyframes)
        if done:
            self.reporter.note(f"{done} of {settings.keyframes} keyframes are kept from before")
        self.reporter.keyframes(settings.keyframes, done)
        if done:
            keyframe = store.load(done)
        else:
            keyframe = first
            store.save(0, first)
        if self._compiled and done < settings.keyframes:
            self.reporter.note("compiling the models while the first keyframe is painted")
        for index in range(done + 1, settings.keyframes + 1):
            keyframe = self.paint(keyframe, index, prompts[index - 1], geometry, settings)
            store.save(index, keyframe)
            self.reporter.step(index, settings.steps, settings.steps)

    def _write(
        self, store: KeyframeStore, output: Path, geometry: Geometry, settings: ZoomSettings
    ) -> None:
        self.reporter.frames(settings.frame_count)
        factor = settings.enlargement(geometry.width, geometry.height)

        def counted() -> Iterator[np.ndarray]:
            for frame in compose.frames(
                store.load,
                settings.keyframes,
                settings.frames_per_keyframe,
                geometry,
                settings.feather,
                direction=settings.direction,
            ):
                yield compose.enlarge(frame, factor)
                self.reporter.frame()

        write_video(counted(), output, settings.fps)

    def _identity(
        self, first: np.ndarray, geometry: Geometry, settings: ZoomSettings
    ) -> dict[str, Any]:
        """Everything that the keyframes depend on, but for the prompts."""
        scheduler = self.pipeline.scheduler
        return {
            "picture": hashlib.sha256(first.tobytes()).hexdigest()[:16],
            "size": f"{geometry.width}x{geometry.height}",
            "window": list(geometry.window),
            "feather": settings.feather,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "negative_prompt": settings.negative_prompt,
            "seed": settings.seed,
            "model": self._model,
            "dtype": str(self.pipeline.unet.dtype).removeprefix("torch."),
            "scheduler": type(scheduler).__name__,
            "compiled": self._compiled,
            "options": {key: str(value) for key, value in sorted(self._options.items())},
        }


def _generator(seed: int, index: int) -> torch.Generator:
    """Noise for one keyframe, on the CPU so that every device starts from the same."""
    (state,) = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(state >> np.uint64(1)))
