"""Pruning: exactly as many weights as promised, and the right ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoomc.kernels.weights import Encoding, prune
from zoomc.kernels.weights.pruning import (
    joined,
    kept,
    kept_steps,
    mask_bits,
    split,
    unit_size,
)

SHAPES = [(1, 1), (5, 7), (16, 64), (33, 130), (4, 6, 3, 3), (20, 70, 1, 3)]


def pruning(text: str):
    return Encoding.parse(f"keep+{text}").pruning


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", ["50%", "90%", "0.1%", "2:4"])
def test_exactly_as_many_are_left_as_counted(shape, text):
    torch.manual_seed(0)
    weight = torch.rand(shape) + 0.5
    pruned = prune(weight, pruning(text))
    assert int((pruned != 0).sum()) == kept(shape, pruning(text))
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])


def test_the_smallest_go_and_equal_ones_too():
    weight = torch.tensor([[3.0, -1.0, 2.0, -4.0, 0.5, 2.0]])
    assert prune(weight, pruning("50%")).tolist() == [[3.0, 0.0, 2.0, -4.0, 0.0, 0.0]]
    same = torch.ones(6, 10)
    assert int((prune(same, pruning("25%")) != 0).sum()) == 45


def test_two_of_every_four_input_channels():
    torch.manual_seed(1)
    weight = torch.randn(3, 12, 3, 3)
    pruned = prune(weight, pruning("2:4"))
    fours = pruned.movedim(1, -1).unflatten(-1, (3, 4))
    assert ((fours != 0).sum(-1) == 2).all()
    sizes = weight.abs().movedim(1, -1).unflatten(-1, (3, 4))
    gone = torch.where(fours == 0, sizes, 0.0).amax(-1)
    stay = torch.where(fours != 0, sizes, torch.inf).amin(-1)
    assert (gone < stay).all()


def steps(weight):
    """Whether anything is left of 32 outputs by 64 channels at a tap: ``(blocks, steps)``."""
    taps = weight.flatten(2) if weight.dim() > 2 else weight[..., None]
    padded = nn.functional.pad(taps, (0, 0, 0, -taps.shape[1] % 64, 0, -len(taps) % 32))
    return (padded != 0).unflatten(1, (-1, 64)).unflatten(0, (-1, 32)).any(3).any(1).flatten(1)


def test_whole_blocks_of_the_smallest_norm():
    torch.manual_seed(2)
    weight = torch.randn(40, 130, 3, 1) + 3
    share = pruning("blocks45%")  # 4 of 9: the edges of 2 channels at all taps, and one more
    small = weight.clone()
    for rows, channels, tap in (slice(32), slice(64, 128), 1), (slice(32, 40), slice(64), 0):
        weight[rows, channels, tap] *= 0.01
        small[rows, channels, tap] = 0
    small[:, 128:] = 0
    pruned = prune(weight, share)
    assert torch.equal(pruned, small)
    assert (steps(pruned).sum(1) == 5).all() and kept_steps(weight.shape, share) == 5
    assert kept(tuple(weight.shape), share) == 2 * 5 * 32 * 64
    assert mask_bits(tuple(weight.shape), share) == 18


def test_blocks_of_a_linear_suit_a_geglu():
    torch.manual_seed(3)
    weight, share = torch.randn(192, 640), pruning("blocks50%")
    found = steps(prune(weight, share))
    assert torch.equal(found[:3], found[3:]) and (found.sum(1) == 5).all()
    assert not torch.equal(found[0], found[1])
    assert kept_steps((192, 640), share, gated=True) == 5
    # where halves are no whole blocks, blocks lie in one of them only
    assert kept_steps((96, 640), share, gated=True) == 0 < kept_steps((96, 640), share)
    assert (steps(prune(torch.randn(96, 640), share)).sum(1) == 5).all()
    # nothing to skip: no share, no blocks, or too few
    assert kept_steps((192, 640), None) == kept_steps((192, 640), pruning("50%")) == 0
    assert kept_steps((192, 64), share) == 0


@pytest.mark.parametrize("shape", [*SHAPES, (128, 70)])
@pytest.mark.parametrize("text", ["50%", "2:4", "blocks30%"])
def test_units_come_back(shape, text):
    weight = torch.rand(shape) + 0.5
    units = split(weight, pruning(text))
    assert units.shape == (mask_bits(shape, pruning(text)), unit_size(shape, pruning(text)))
    assert torch.equal(joined(units, shape, pruning(text)), weight)


@pytest.mark.parametrize("text", ["50%", "2:4", "blocks50%"])
def test_types_and_layouts_stay(text):
    weight = torch.randn(32, 64, dtype=torch.bfloat16)
    assert prune(weight, pruning(text)).dtype is torch.bfloat16
    assert torch.equal(prune(weight.t(), pruning(text)), prune(weight.t().clone(), pruning(text)))
