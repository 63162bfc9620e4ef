"""Where packed constants live."""

from __future__ import annotations

import pytest
import torch
from zoomc.kernels.tir.kernel import Operand, Pack, TensorSpec, Value
from zoomc.targets.constants import Constants, settled


@pytest.mark.parametrize("shape", [(0,), (3, 5), (1 << 18, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_settled_tensors_are_equal_aligned_and_their_own(shape, dtype):
    source = (torch.randn(shape) * 50).to(dtype)
    kept = settled(source)
    assert kept.data_ptr() % 64 == 0 and kept.is_contiguous()
    assert torch.equal(kept, source) and kept.dtype is dtype
    if source.nbytes > 1 << 20:
        before = kept.clone()
        source.zero_()
        assert torch.equal(kept, before)


@pytest.mark.parametrize("columns", [8, 1 << 19])
def test_packed_weights_lie_where_the_weight_does(columns):
    """On a device that is not the CPU; one without memory stands for a GPU here."""
    weight = torch.nn.Parameter(torch.empty(4, columns, device="meta"), requires_grad=False)
    graph = torch.fx.Graph()
    node = graph.get_attr("weight_0")
    gm = torch.fx.GraphModule({"weight_0": weight}, graph)
    node.meta["val"] = weight
    constants = Constants(lambda _: weight)
    spec = TensorSpec((4, columns), torch.float32)
    value = Value(spec, constant=True, source=node)
    pack = Pack.of("doubled", lambda w: 2 * w, spec)
    for operand in (Operand((value,)), Operand((value,), pack)):
        packed = constants.packed(operand)
        assert packed.device == weight.device and packed.shape == weight.shape
    assert len(list(gm.parameters())) == 1
