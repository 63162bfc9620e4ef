"""The figures of benchmarks/quality.py: only what was painted counts."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.masked import psnr, side_by_side, ssim


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 24, 20, 3, generator=generator)
    mask = torch.ones(2, 24, 20)
    mask[0, 6:18, 5:15] = 0
    mask[1, :, 10:] = 0
    return a, mask


def test_what_was_kept_does_not_count(pictures):
    a, mask = pictures
    b = torch.where(mask[..., None] > 0, a, 1 - a)
    assert (psnr(a, b, mask) == 120).all()
    assert torch.allclose(ssim(a, b, mask), torch.ones(2, dtype=torch.float64))
    everywhere = torch.ones_like(mask)
    assert (psnr(a, b, everywhere) < 20).all() and (ssim(a, b, everywhere) < 0.9).all()


def test_psnr_is_that_of_its_definition(pictures):
    a, mask = pictures
    b = a + 0.1 * mask[..., None]
    assert torch.allclose(psnr(a, b, mask), torch.full((2,), 20.0, dtype=torch.float64), atol=1e-5)
    b = a + 0.1
    b[mask == 0] = 7.0
    assert torch.allclose(psnr(a, b, mask), torch.full((2,), 20.0, dtype=torch.float64), atol=1e-5)


def test_ssim_of_flat_pictures_is_that_of_their_means(pictures):
    _, mask = pictures
    a, b = torch.full((2, 24, 20, 3), 0.5), torch.full((2, 24, 20, 3), 0.3)
    want = (2 * 0.5 * 0.3 + 1e-4) / (0.25 + 0.09 + 1e-4)
    assert all(math.isclose(v, want, rel_tol=1e-6) for v in ssim(a, b, mask).tolist())


def test_ssim_falls_with_structure_lost(pictures):
    a, mask = pictures
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    some, more = (ssim(a, a + s * noise, mask) for s in (0.05, 0.3))
    assert (more < some).all() and (some < 1).all()


def test_pictures_stand_side_by_side(pictures):
    a, _ = pictures
    sheet = side_by_side([("one", a), ("two, three", 1 - a)], factor=2)
    assert sheet.size[0] > 2 * 2 * 20 and sheet.size[1] > 2 * 2 * 24
    left = sheet.getpixel((4 + 2, 30 + 2))
    right = sheet.getpixel((4 + 44 + 2, 30 + 2))
    assert all(abs(x + y - 255) <= 1 for x, y in zip(left, right, strict=True))


def test_the_benchmark_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import quality

    figures, picture = tmp_path / "figures.json", tmp_path / "pictures.png"
    short = ["--images", "2", "--seeds", "1", "--steps", "2", "--ways", "other-noise"]
    with torch.no_grad():
        quality.main([*short, "--json", str(figures), "--picture", str(picture)])
        ways = json.loads(figures.read_text())["ways"]
        assert ways["fp32"]["psnr"] == [120, 120]
        assert all(5 < v < 40 for v in ways["other-noise"]["psnr"])
        assert len(capsys.readouterr().out.splitlines()) == 4
        assert picture.stat().st_size > 1000
        with pytest.raises(SystemExit):
            quality.main(["--ways", "int5"])
