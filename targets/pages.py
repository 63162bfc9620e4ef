"""What the system keeps of a tensor in memory."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch

#: Types of codes and of their groups' scales: what a compressed model is made of.
CODES = (torch.uint8, torch.int8)

#: ``MADV_PAGEOUT`` of Linux 5.4: write back what was changed, drop the pages, read them again when
#: they are touched. No bit of the memory changes.
_PAGEOUT = 21


def page_out(tensor: torch.Tensor) -> bool:
    """Let a tensor that will not be read soon leave memory, where the system can read it again.

    A tensor mapped from a file goes; one in the process's own memory goes as far as there is swap.

    Args:
        tensor: dense, on the CPU.

    Returns:
        whether the system knows how to.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return False
    page = mmap.PAGESIZE
    # whole pages only: those at the ends may be shared with what is in use
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if start >= end:
        return True
    advise = ctypes.CDLL(None).madvise
    return bool(advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _PAGEOUT) == 0)
