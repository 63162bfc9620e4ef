"""Every mode and file that people have, and a clear error for the rest."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from zoomc.zoom.errors import PictureError
from zoomc.zoom.picture import fit_picture, load_picture

W, H = 24, 16


@pytest.fixture
def rgb():
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([x * 10, y * 15, 255 - x * 10], axis=2).astype(np.uint8)


def load_saved(image, tmp_path, name, **options):
    image.save(tmp_path / name, **options)
    return load_picture(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.webp", "a.ppm"])
def test_rgb_files(rgb, tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {}
    assert np.array_equal(load_saved(Image.fromarray(rgb), tmp_path, name, **options), rgb)


def test_paths_may_be_strings(rgb, tmp_path):
    Image.fromarray(rgb).save(tmp_path / "ä b.png")
    assert np.array_equal(load_picture(str(tmp_path / "ä b.png")), rgb)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey(rgb, tmp_path, mode):
    image = Image.fromarray(rgb).convert("L").convert(mode)
    got = load_saved(image, tmp_path, "a.png")
    assert np.array_equal(got, np.asarray(image.convert("L").convert("RGB")))


def test_transparency_is_laid_over_white(rgb, tmp_path):
    alpha = np.zeros((H, W), np.uint8)
    alpha[:, 8:16] = 255
    alpha[:, 16:] = 128
    got = load_saved(Image.fromarray(np.dstack([rgb, alpha])), tmp_path, "a.png")
    assert (got[:, :8] == 255).all()
    assert np.array_equal(got[:, 8:16], rgb[:, 8:16])
    middle = (rgb[:, 16:].astype(float) * 128 + 255.0 * 127) / 255
    assert np.abs(got[:, 16:] - middle).max() <= 1


def test_palette(rgb, tmp_path):
    image = Image.fromarray(rgb).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(load_saved(image, tmp_path, "a.png"), expected)
    got = load_saved(image, tmp_path, "b.png", transparency=int(np.asarray(image)[0, 0]))
    hole = np.asarray(image) == np.asarray(image)[0, 0]
    assert (got[hole] == 255).all() and np.array_equal(got[~hole], expected[~hole])


def test_sixteen_bit_grey(tmp_path):
    values = np.linspace(0, 65535, W * H).reshape(H, W).astype(np.uint16)
    expected = np.rint(values / 257)
    for name in ("a.png", "a.tiff"):
        got = load_saved(Image.fromarray(values), tmp_path, name)
        assert np.abs(got[..., 0] - expected).max() <= 1
        assert (got[..., 0] == got[..., 2]).all()


def test_wide_integers_and_floats():
    values = np.linspace(0, 1, W * H).reshape(H, W)
    expected = np.rint(values * 255)
    for scaled in (
        (values * 65535).astype(np.int32),
        (values * 255).astype(np.int32),
        values.astype(np.float32),
        (values * 255).astype(np.float32),
    ):
        got = load_picture(Image.fromarray(scaled))
        assert np.abs(got[..., 1].astype(int) - expected).max() <= 1


def test_cmyk(rgb, tmp_path):
    image = Image.fromarray(rgb).convert("CMYK")
    assert np.array_equal(load_saved(image, tmp_path, "a.tiff"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(rgb, tmp_path, orientation):
    turns = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud}
    turns |= {5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1)}
    turns |= {7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = load_saved(Image.fromarray(rgb), tmp_path, "a.png", exif=exif)
    assert np.array_equal(got, turns[orientation](rgb))


def test_colour_profiles_are_converted(rgb, tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = load_saved(Image.fromarray(rgb), tmp_path, "a.png", icc_profile=lab)
    assert np.abs(same.astype(int) - rgb).max() <= 1
    broken = load_saved(Image.fromarray(rgb), tmp_path, "b.png", icc_profile=b"no profile")
    assert np.array_equal(broken, rgb)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (W, H), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (load_picture(tmp_path / "a.gif") == (250, 0, 0)).all()


def test_arrays(rgb):
    assert np.array_equal(load_picture(rgb), rgb)
    assert np.array_equal(load_picture(rgb / 255), rgb)
    assert np.array_equal(load_picture(rgb[..., 0])[..., 2], rgb[..., 0])
    assert np.array_equal(load_picture(rgb[..., :1])[..., 2], rgb[..., 0])
    assert np.array_equal(load_picture(rgb[..., 0].astype(np.uint16) * 257)[..., 1], rgb[..., 0])
    for wrong in (
        np.zeros((2, 2, 2, 2)),
        np.zeros((4, 4, 7)),
        np.full((4, 4), 3.0),
        np.full((4, 4), np.nan),
        np.zeros((4, 4), np.int64),
    ):
        with pytest.raises(PictureError):
            load_picture(wrong)


def test_what_is_no_picture_says_so(rgb, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    buffer = io.BytesIO()
    Image.fromarray(rgb).resize((300, 300)).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    for name, words in (
        ("text.jpg", "no picture"),
        ("empty.png", "no picture"),
        ("cut.png", "damaged or cut off"),
        ("missing.png", "no file"),
        ("", "is a folder"),
    ):
        with pytest.raises(PictureError, match=words):
            load_picture(tmp_path / name)


def test_decompression_bombs_are_refused(rgb, tmp_path, monkeypatch):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PictureError, match="too large"):
        load_picture(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (64, 64), (641, 479)])
def test_any_size_covers_the_frame(size):
    picture = np.full((size[1], size[0], 3), 77, np.uint8)
    fitted = fit_picture(picture, 64, 32)
    assert fitted.shape == (32, 64, 3) and (fitted == 77).all()


def test_fitting_keeps_the_middle_and_the_shape():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 255  # a white square in the middle
    assert (fit_picture(picture, 64, 64)[:, 4:-4] > 250).all()  # but for ringing at the rim
    square = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(fit_picture(square, 64, 64), square)
