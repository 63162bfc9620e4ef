"""Coded weights are packed and summed a part at a time: the parts join to what the whole gives."""

from __future__ import annotations

import pytest
import torch
from zoomc.kernels import integer
from zoomc.kernels.tir import codes as module
from zoomc.kernels.tir.codes import Codes
from zoomc.kernels.tir.isa import isa, supported
from zoomc.kernels.tir.kernel import TensorSpec, Value
from zoomc.kernels.tir.micro_int8 import STEP
from zoomc.kernels.tir.micro_int8 import micro as micro_of
from zoomc.kernels.tir.pack import panel_count
from zoomc.kernels.weights import Encoding, encode


def given(weights: str, shape: tuple[int, ...]) -> list[torch.Tensor | None]:
    """Codes, table and group scales of a random weight."""
    torch.manual_seed(0)
    coded = encode(torch.randn(shape), Encoding.parse(weights))
    return [coded.codes, coded.table, coded.group_scale]


@pytest.mark.parametrize("shape", [(2, 1), (90, 70), (200, 130), (76, 65, 3, 3)])
@pytest.mark.parametrize(
    ("weights", "bits"), [("int8", 8), ("int4", 4), ("shared:256", 8), ("shared:4", 2)]
)
@pytest.mark.parametrize("gated", [False, True])
def test_panels_in_parts(shape, weights, bits, gated, monkeypatch):
    tensors = [x for x in given(weights, shape) if x is not None]
    micro = micro_of(isa(supported()[0], 1))
    depth = -(-shape[1] // STEP) * torch.Size(shape[2:]).numel()
    codes = Codes(micro, depth, depth, panel_count(shape[0], micro, gated), bits, gated)
    values = [Value(TensorSpec(tuple(x.shape), x.dtype), True, None) for x in tensors]
    operand = codes.operand(*[*values, None, None][:3])

    def packed(part: int) -> torch.Tensor:
        monkeypatch.setattr(module, "_PART", part)
        return operand.tensor(tensors, lambda *size, **kw: torch.full(*size, -1, **kw))

    whole = packed(1 << 30)
    assert whole.count_nonzero()
    for part in (1, 2 * micro.columns * codes.depth * STEP):
        assert torch.equal(packed(part), whole)


@pytest.mark.parametrize("shape", [(1, 1), (33, 70), (20, 130, 3, 3)])
@pytest.mark.parametrize("weights", ["int4", "shared:4"])
def test_sums_in_parts(shape, weights, monkeypatch):
    codes, table, scale = given(weights, shape)
    # What padding is decoded to counts as well.
    filled = torch.nn.functional.pad(codes, (0, 0) * (len(shape) - 2) + (0, -shape[1] % 64))
    want = integer.integer_weight(filled, table, scale).flatten(1).sum(1, dtype=torch.int32)
    for together in (1, 3000, 1 << 20):
        monkeypatch.setattr(integer, "_TOGETHER", together)
        assert torch.equal(integer.column_sums(codes, table, scale), want)
