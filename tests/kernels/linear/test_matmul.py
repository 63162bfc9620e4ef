from __future__ import annotations

import pytest
import torch
import zoomc.kernels.linear.op  # noqa: F401
from zoomc.kernels.tir.isa import isa
from zoomc.kernels.tir.kernel import Unsupported, lower
from zoomc.kernels.tir.run import bind

from ..products import DTYPES, PATHS, check

MATMUL = "zoomc::matmul"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("a", "b", "transpose"),
    [
        ((2, 3, 40, 32), (2, 3, 32, 70), False),
        ((3, 40, 33), (3, 20, 33), True),
        ((2, 1, 5, 16), (3, 16, 8), False),
        ((40, 64), (5, 64, 32), False),
        ((7, 17, 64), (64, 32), False),
    ],
)
def test_batches_and_broadcasting(path, dtype, a, b, transpose):
    torch.manual_seed(0)
    x, y = torch.randn(a).to(dtype), torch.randn(b).to(dtype)
    check(path, MATMUL, x, y, transpose_b=transpose)


def test_vectors_are_refused():
    with pytest.raises(Unsupported, match="vector"):
        lower(bind(MATMUL, torch.randn(4), torch.randn(4, 4)), isa())
