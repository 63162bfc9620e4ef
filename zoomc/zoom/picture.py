"""Any picture in, 8-bit sRGB out, the right way up."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .errors import PictureError

#: What shows through transparent pixels.
BACKGROUND = (255, 255, 255)


def load_picture(source: str | os.PathLike[str] | Image.Image | np.ndarray) -> np.ndarray:
    """Read a picture of any mode.

    EXIF rotation is applied, an embedded colour profile converted to sRGB, transparency laid over
    white, 16-bit and floating-point grey scaled to 8 bits; of an animation the first frame counts.

    Args:
        source: path, Pillow image, or array (H, W), (H, W, 3) or (H, W, 4) of uint8, or of floats
            from 0 to 1.

    Returns:
        (H, W, 3) uint8.

    Raises:
        PictureError: for what is not there, not readable, or no picture.
    """
    if isinstance(source, np.ndarray):
        image = _from_array(source)
    elif isinstance(source, Image.Image):
        image = source
    else:
        image = _open(Path(source))
    if image.width < 1 or image.height < 1:
        raise PictureError("the picture has no pixels")
    image = ImageOps.exif_transpose(image)
    return np.asarray(_to_rgb(image), dtype=np.uint8)


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise PictureError(f"there is no file {str(path)!r}") from None
    except IsADirectoryError:
        raise PictureError(f"{str(path)!r} is a folder, not a picture") from None
    except PermissionError:
        raise PictureError(f"{str(path)!r} may not be read: check its permissions") from None
    except UnidentifiedImageError:
        raise PictureError(
            f"{str(path)!r} is no picture that Pillow can read; PNG, JPEG, WebP, TIFF, GIF and "
            "BMP are safe choices"
        ) from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"{str(path)!r} is too large: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise PictureError(f"{str(path)!r} is damaged or cut off: {error}") from None
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise PictureError(
            f"an array of shape {array.shape} is no picture; give (H, W), (H, W, 3) or (H, W, 4)"
        )
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise PictureError("a picture of floats must lie between 0 and 1")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype == np.uint16:
        array = np.rint(array / 257).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise PictureError(f"an array of {array.dtype} is no picture; give uint8 or floats")
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey(image).convert("RGB")
    profile = image.info.get("icc_profile")
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = _to_srgb(image.convert("RGB") if alpha is not None else image, profile)
    colours = colours.convert("RGB")
    if alpha is None:
        return colours
    ground = Image.new("RGB", image.size, BACKGROUND)
    ground.paste(colours, mask=alpha)
    return ground


def _deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise PictureError("the picture holds values that are no finite numbers")
    # A 16-bit file may open as 32-bit integers, and a float file may hold 0..1 or 0..255: the
    # values say which.
    if image.mode.startswith("I;16"):
        top = 65535.0
    else:
        top = next((limit for limit in (1.0, 255.0, 65535.0) if values.max() <= limit), 2.0**31)
        if image.mode == "I" and top == 1.0:
            top = 255.0
    return Image.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    if not profile:
        return image
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a broken or unfitting profile: the plain conversion is the best guess
    return converted if converted is not None else image


def fit_picture(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Cover a frame with the picture's middle: scaled to fill it, never stretched.

    Args:
        picture: (H, W, 3) uint8.
        width: of the frame in pixels.
        height: of the frame in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    full_height, full_width = picture.shape[:2]
    scale = min(full_width / width, full_height / height)
    left = (full_width - width * scale) / 2
    top = (full_height - height * scale) / 2
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + width * scale, full_width),
        min(top + height * scale, full_height),
    )
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized, dtype=np.uint8)
