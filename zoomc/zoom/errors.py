"""What can go wrong with a zoom; every message says what to do."""

from __future__ import annotations

from ..errors import ZoomcError


class SettingsError(ZoomcError):
    """A setting of the zoom that cannot be met."""


class PictureError(ZoomcError):
    """The input is missing, damaged, or no picture."""


class ModelNotFoundError(ZoomcError):
    """No pipeline at that path, nor under that name in the local cache."""


class ModelKindError(ZoomcError):
    """Something was loaded, but it is no Stable Diffusion inpainting pipeline."""


class ResumeError(ZoomcError):
    """The kept keyframes were made with other settings."""


class OutputError(ZoomcError):
    """The video cannot be written there, or not in that format."""


class ModelOutputError(ZoomcError):
    """The model returned not-a-number, or its safety checker blanked the picture."""
