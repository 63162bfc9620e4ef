"""The picture set on disk, and the masks the model learns to fill."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from .scenes import KEEPS, Picture, draw

VALIDATION_SEED_OFFSET = 10_000
"""Unseen pictures come from the set of seed + this."""


@dataclass(frozen=True)
class Pictures:
    """A drawn set.

    Attributes:
        images: (N, size, size, 3) uint8, memory-mapped.
        captions: N sentences.
        keeps: (N,) float32, share of the nested window's side, 0 without one.
    """

    images: np.ndarray
    captions: list[str]
    keeps: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, index: np.ndarray, flip: bool = False) -> torch.Tensor:
        """Chosen pictures as (B, 3, size, size) float32 in [-1, 1], channels last."""
        return to_tensor(self.images[np.asarray(index)], flip)


def to_tensor(images: np.ndarray, flip: bool = False) -> torch.Tensor:
    """Pictures (B, H, W, 3) uint8 as (B, 3, H, W) float32 in [-1, 1], channels last in memory."""
    x = torch.from_numpy(np.array(images[:, :, ::-1] if flip else images, order="C"))
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_many(seed: int, count: int, size: int, processes: int) -> list[Picture]:
    """``count`` pictures of the set ``seed``, drawn by ``processes`` workers."""
    one = partial(draw, seed, size=size)
    if processes <= 1:
        return [one(i) for i in range(count)]
    # fork, not spawn: a worker needs nothing but this module, and starts in milliseconds.
    with get_context("fork").Pool(processes) as pool:
        return pool.map(one, range(count), chunksize=64)


def load_pictures(folder: Path, seed: int, count: int, size: int) -> Pictures:
    """Picture set kept in ``folder``, drawn first if it is not there."""
    stem = folder / f"pictures-{seed}-{count}-{size}"
    images, notes = stem.with_suffix(".npy"), stem.with_suffix(".json")
    if not notes.exists():
        folder.mkdir(parents=True, exist_ok=True)
        drawn = draw_many(seed, count, size, os.cpu_count() or 1)
        np.save(images, np.stack([p.image for p in drawn]))
        # Written last: its presence says that the set is whole.
        text = {"captions": [p.caption for p in drawn], "keeps": [p.keep for p in drawn]}
        notes.write_text(json.dumps(text))
    text = json.loads(notes.read_text())
    keeps = np.array(text["keeps"], np.float32)
    return Pictures(np.load(images, mmap_mode="r"), text["captions"], keeps)


def random_masks(keeps: np.ndarray, cells: int, rng: np.random.Generator) -> torch.Tensor:
    """One mask a picture, (B, 1, cells, cells) float32 on the latent grid; 1 is to be painted.

    60 % keep the centre as a zoom-out does (for a nested picture mostly its own window), 8 % keep
    a window elsewhere, 24 % paint one or two boxes, 8 % paint everything.

    Args:
        keeps: (B,) share of each picture's nested window, 0 without one.
        cells: side of the latent grid.
        rng: where the choices come from.
    """
    masks = np.zeros((len(keeps), 1, cells, cells), np.float32)
    for mask, own in zip(masks[:, 0], keeps, strict=True):
        kind = rng.random()
        if kind < 0.68:
            keep = own if own and rng.random() < 0.85 else rng.choice(KEEPS)
            side = max(1, round(cells * float(keep)))
            y = x = (cells - side) // 2
            if kind >= 0.6:
                y, x = rng.integers(0, cells - side + 1, 2)
            mask[:] = 1
            mask[y : y + side, x : x + side] = 0
        elif kind < 0.92:
            for _ in range(int(rng.integers(1, 3))):
                h, w = rng.integers(max(1, cells // 5), cells * 13 // 16 + 1, 2)
                y, x = rng.integers(0, cells - h + 1), rng.integers(0, cells - w + 1)
                mask[y : y + h, x : x + w] = 1
        else:
            mask[:] = 1
    return torch.from_numpy(masks)


def hide(pixels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Pictures with the part to be painted set to mid grey, as the pipeline hands them over."""
    factor = pixels.shape[-1] // masks.shape[-1]
    return pixels * (1 - masks.repeat_interleave(factor, 2).repeat_interleave(factor, 3))
