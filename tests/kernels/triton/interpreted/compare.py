"""What these tests share: every candidate of a call beside its reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from zoomc.kernels.operator import OPERATORS
from zoomc.kernels.triton.gpu import GPUS
from zoomc.kernels.triton.kernel import Kernel, candidates
from zoomc.kernels.triton.run import bind, evaluate

#: The interpreter has no byte permute; shared memory it has without limit.
GPU = dataclasses.replace(GPUS["sm_90"], permutes=False)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def routes(op: str, *args: Any, **kwargs: Any) -> list[Kernel]:
    """One kernel for every way there is to run a call, tiles aside."""
    found: dict[Any, Kernel] = {}
    for kernel in candidates(bind(op, *args, **kwargs), GPU):
        way = (kernel.notes.get("route"), kernel.notes.get("weights"))
        found.setdefault((*way, kernel.notes.get("split", 1) > 1), kernel)
    return list(found.values())


def wide(x: Any) -> Any:
    """The same arguments in fp64, integers and booleans as they are."""
    if isinstance(x, torch.Tensor):
        return x.double() if x.is_floating_point() else x
    return [wide(t) for t in x] if isinstance(x, list) and isinstance(x[0], torch.Tensor) else x


def check(op: str, *args: Any, loose: float = 1.0, **kwargs: Any) -> list[torch.Tensor]:
    """Run every route of a call and compare with its reference in fp64.

    A result is rounded once to its dtype, and operands that are transformed first another time;
    half a unit in the last place each, and a whole one for bf16, which the interpreter truncates.
    fp32 sums add up to 2e-6.
    """
    expected = OPERATORS[op].reference(*map(wide, args), **{k: wide(v) for k, v in kwargs.items()})
    results = []
    for kernel in routes(op, *args, **kwargs):
        got = evaluate(kernel)
        units = 2 if got.dtype is torch.bfloat16 else 1
        limit = loose * max(2e-6, units * torch.finfo(got.dtype).eps)
        error = (got.double() - expected).norm() / expected.norm()
        assert got.shape == expected.shape
        assert error <= limit, f"{dict(kernel.notes)}: relative error {error:.2e} > {limit:.2e}"
        worst = (got.double() - expected).abs().max() / expected.abs().max()
        assert worst <= 8 * limit, f"{dict(kernel.notes)}: an element is off by {worst:.2e}"
        results.append(got)
    return results


def check_exactly(op: str, *args: Any, **kwargs: Any) -> None:
    """Run every route of a call and expect its reference's bits."""
    expected = OPERATORS[op].reference(*args, **kwargs)
    kernels = routes(op, *args, **kwargs)
    for kernel in kernels:
        got = evaluate(kernel)
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected), dict(kernel.notes)
