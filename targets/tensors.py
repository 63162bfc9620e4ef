"""What executables do to tensors at their boundary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from .constants import aligned


def dense(tensor: Any) -> Any:
    """A tensor without history, row-major and aligned, as kernels may assume; else unchanged."""
    if not isinstance(tensor, torch.Tensor) or tensor.numel() == 0:
        return tensor
    return aligned(tensor.detach().resolve_conj().resolve_neg().contiguous())


def on_device(tensors: Iterable[Any]) -> contextlib.AbstractContextManager[Any]:
    """Make the GPU that tensors lie on the current one, where Triton launches; no GPU, nothing."""
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
            return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def recording() -> bool:
    """Whether a caller is recording a CUDA graph of its own: then nothing may wait for the GPU."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def unaliased(results: list[Any], inputs: Sequence[torch.Tensor]) -> list[Any]:
    """Copy results that share memory with an input or an earlier result.

    Copies inside the graph are compiled to views, which nobody can tell apart until a caller
    writes into a result.
    """
    taken = {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, torch.Tensor)}
    fresh = []
    for result in results:
        if isinstance(result, torch.Tensor) and result.numel():
            storage = result.untyped_storage().data_ptr()
            result = result.clone() if storage in taken else result
            taken.add(storage)
        fresh.append(result)
    return fresh
