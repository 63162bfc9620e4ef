"""Where packed constants live."""

from __future__ import annotations

import pytest
import torch
from zoomc.targets.constants import settled


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
