"""Pruning: exactly as many weights as promised, and the right ones."""

from __future__ import annotations

import pytest
import torch
from zoomc.kernels.weights import Encoding, prune
from zoomc.kernels.weights.pruning import kept, mask_bits

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


def test_whole_blocks_of_the_smallest_norm():
    torch.manual_seed(2)
    weight = torch.randn(40, 130, 3, 1)
    weight[16:32, 64:128, 1] *= 0.01
    weight[32:, 128:, 2] *= 0.01
    share = pruning("blocks8%")  # 2 of 27
    pruned = prune(weight, share)
    zero = torch.zeros_like(weight, dtype=torch.bool)
    zero[16:32, 64:128, 1] = zero[32:, 128:, 2] = True
    small = weight.clone()
    small[zero] = 0
    # the edge block of 8×2 is the smallest of all; the other is one of the small ones
    assert (pruned[32:, 128:, 2] == 0).all()
    assert kept(tuple(weight.shape), share) == 25 * 16 * 64
    assert mask_bits(tuple(weight.shape), share) == 27
    blocks = (pruned != 0).float()[:32, :128].unflatten(1, (2, 64)).unflatten(0, (2, 16))
    assert set(blocks.mean(dim=(1, 3)).flatten().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("text", ["50%", "2:4", "blocks50%"])
def test_types_and_layouts_stay(text):
    weight = torch.randn(32, 64, dtype=torch.bfloat16)
    assert prune(weight, pruning(text)).dtype is torch.bfloat16
    assert torch.equal(prune(weight.t(), pruning(text)), prune(weight.t().clone(), pruning(text)))
