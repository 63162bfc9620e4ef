"""What a zoom looks like: every setting, its default and its limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import SettingsError

#: One prompt for all keyframes; or one for each, the last of them for the rest; or
#: ``{keyframe: prompt}``, each from that keyframe on.
Prompts = str | Sequence[str] | Mapping[int, str]

DIRECTIONS = ("out", "in")

DEFAULT_GUIDANCE = 7.5

#: Shorter side in pixels below which a video is too small to look at.
_VISIBLE = 256


@dataclass(frozen=True)
class ZoomSettings:
    """Settings of one zoom.

    Attributes:
        keyframes: how often the picture is outpainted. Keyframe 0 is the picture itself.
        frames_per_keyframe: frames from one keyframe to the next, in-between ones included. The
            video has ``keyframes * frames_per_keyframe + 1`` frames.
        size: ``(width, height)`` in pixels, or the length of the shorter side, or None for the
            model's own resolution; where a side is free it follows the picture's shape.
        shrink: what one keyframe shrinks to inside the next, as a share of the frame's side,
            between 0 and 1. Rounded to what keeps the window centred on the latent grid.
        feather: width in pixels of the blend along the seam, inside the known pixels. 0 keeps
            every known pixel exactly.
        steps: denoising steps a keyframe.
        guidance: classifier-free guidance scale; 1 or less turns it off. None is 7.5, or what
            suits the built-in model.
        negative_prompt: what the picture should not show.
        seed: equal seeds and settings give equal keyframes. Keyframe ``i`` draws its noise from
            ``(seed, i)``, so it does not matter where a run was interrupted.
        direction: ``"out"`` starts at the picture and flies backwards, ``"in"`` ends at it.
        fps: frames a second.
        upscale: whole factor by which the video's frames are enlarged; None enlarges those whose
            shorter side is below 256 pixels to that. Keyframes are kept as they are.

    Raises:
        SettingsError: for a value outside its range.
    """

    keyframes: int = 8
    frames_per_keyframe: int = 5
    size: int | tuple[int, int] | None = None
    shrink: float = 0.75
    feather: int = 3
    steps: int = 20
    guidance: float | None = None
    negative_prompt: str = ""
    seed: int = 0
    direction: str = "out"
    fps: float = 15
    upscale: int | None = None

    def __post_init__(self) -> None:
        for name, low in (("keyframes", 1), ("frames_per_keyframe", 1), ("steps", 1)):
            _require(getattr(self, name) >= low, name, getattr(self, name), f"{low} or more")
        _require(self.feather >= 0, "feather", self.feather, "0 or more pixels")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require(0 < self.shrink < 1, "shrink", self.shrink, "between 0 and 1, such as 0.75")
        finite = self.guidance is None or math.isfinite(self.guidance)
        _require(finite, "guidance", self.guidance, "a finite number")
        _require(
            self.upscale is None or 1 <= self.upscale <= 64, "upscale", self.upscale, "from 1 to 64"
        )
        _require(0 < self.fps <= 240, "fps", self.fps, "above 0 and at most 240")
        _require(self.direction in DIRECTIONS, "direction", self.direction, "'out' or 'in'")

    def enlargement(self, width: int, height: int) -> int:
        """The factor that a frame of this size is enlarged by."""
        return self.upscale or max(1, -(-_VISIBLE // min(width, height)))

    @property
    def frame_count(self) -> int:
        """Frames in the video."""
        return self.keyframes * self.frames_per_keyframe + 1


def _require(met: bool, name: str, value: object, expected: str) -> None:
    if not met:
        raise SettingsError(f"{name.replace('_', '-')} is {value!r}; it must be {expected}")


def prompt_per_keyframe(prompts: Prompts, keyframes: int) -> list[str]:
    """The prompt of each generated keyframe, 1 to ``keyframes``.

    Raises:
        SettingsError: for an empty sequence, more prompts than keyframes, or a keyframe that the
            zoom does not have.
    """
    if isinstance(prompts, str):
        return [prompts] * keyframes
    if isinstance(prompts, Mapping):
        for keyframe in prompts:
            if not 1 <= keyframe <= keyframes:
                raise SettingsError(
                    f"there is a prompt for keyframe {keyframe}, but the generated keyframes are "
                    f"1 to {keyframes} (0 is the picture itself)"
                )
        chosen: list[str] = []
        current = ""
        for keyframe in range(1, keyframes + 1):
            current = prompts.get(keyframe, current)
            chosen.append(current)
        return chosen
    if not prompts:
        raise SettingsError('the list of prompts is empty; give at least one, or ""')
    if len(prompts) > keyframes:
        raise SettingsError(
            f"{len(prompts)} prompts for {keyframes} keyframes; drop some or ask for more keyframes"
        )
    return list(prompts) + [prompts[-1]] * (keyframes - len(prompts))
