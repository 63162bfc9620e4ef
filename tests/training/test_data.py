from pathlib import Path

import numpy as np
import torch

from zoomc.training.data import Pictures, hide, load_pictures, random_masks, to_tensor
from zoomc.training.scenes import KEEPS, draw


def test_a_set_is_drawn_once_and_read_back(tmp_path: Path) -> None:
    first = load_pictures(tmp_path, seed=5, count=3, size=32)
    stamp = (tmp_path / "pictures-5-3-32.npy").stat().st_mtime_ns
    again = load_pictures(tmp_path, seed=5, count=3, size=32)
    assert (tmp_path / "pictures-5-3-32.npy").stat().st_mtime_ns == stamp
    assert len(first) == len(again) == 3
    for i in range(3):
        np.testing.assert_array_equal(again.images[i], draw(5, i, 32).image)
        assert again.captions[i] == draw(5, i, 32).caption


def test_batches_are_in_range_channels_last_and_flipped_on_demand() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    data = Pictures(images, [""] * 4, np.zeros(4, np.float32))
    batch = data.batch(np.array([2, 0]))
    assert batch.shape == (2, 3, 8, 8) and batch.abs().max() <= 1
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_tensor(images[[2, 0]], flip=True), batch.flip(3))
    back = ((batch + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(back, images[[2, 0]])


def test_masks_come_in_the_stated_shares() -> None:
    rng = np.random.default_rng(0)
    keeps = rng.choice([0.0, *KEEPS], 4000).astype(np.float32)
    masks = random_masks(keeps, 16, rng)[:, 0].numpy()
    assert set(np.unique(masks)) == {0.0, 1.0}
    full = masks.min((1, 2)) == 1
    assert 0.06 < full.mean() < 0.11
    symmetric = (masks == masks[:, ::-1]).all((1, 2)) & (masks == masks[:, :, ::-1]).all((1, 2))
    border = symmetric & ~full & (masks[:, 0, 0] == 1)
    assert 0.57 < border.mean() < 0.67
    sides = np.sqrt((1 - masks[border]).sum((1, 2))) / 16
    assert set(sides) == set(KEEPS)
    # A nested picture mostly loses everything but its own window.
    own = keeps[border] > 0
    assert (sides[own] == keeps[border][own]).mean() > 0.85


def test_hidden_pixels_are_grey_and_the_rest_is_kept() -> None:
    x = torch.full((1, 3, 16, 16), 0.5)
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 1, 2] = 1
    y = hide(x, mask)
    assert (y[:, :, 4:8, 8:12] == 0).all()
    assert (y == 0).sum() == 3 * 16
