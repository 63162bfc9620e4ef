"""What tests of product kernels share: fp64 references, tolerances from the arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.tir.isa import isa, supported
from zoomc.kernels.tir.run import run

PATHS = supported()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def wide(x: Any) -> Any:
    """The same arguments in fp64."""
    if isinstance(x, torch.Tensor):
        return x.double()
    if isinstance(x, (list, tuple)) and x and isinstance(x[0], torch.Tensor):
        return [wide(t) for t in x]
    return x


def check(path: str, op: str, *args: Any, prepared: bool = False, **kwargs: Any) -> torch.Tensor:
    """Run a call on a path and compare with its reference in fp64.

    A result is rounded once to its dtype: at most half a unit in the last place of each element.
    Where the input is transformed first (``prepared``), its rounded copy adds another such error
    to every term. fp32 sums add their own, growing at worst with K; these K give far less than
    2e-6 of the sum of magnitudes.
    """
    result = run(isa(path, 2), op, *args, **kwargs)
    expected = OPERATORS[op].reference(*map(wide, args), **{k: wide(v) for k, v in kwargs.items()})
    unit = torch.finfo(result.dtype).eps / 2
    error = (result.double() - expected).norm() / expected.norm()
    limit = max(2e-6, unit * (2.0 if prepared else 1.0))
    assert result.shape == expected.shape
    assert error <= limit, f"{path}: relative error {error:.2e} > {limit:.2e}"
    # No element may be off as a misplaced row or column would be.
    worst = (result.double() - expected).abs().max() / expected.abs().max()
    assert worst <= 8 * limit, f"{path}: an element is off by {worst:.2e}"
    return result
