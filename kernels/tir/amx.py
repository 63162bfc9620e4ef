"""Leave to use the AMX tile registers, which Linux grants per process on request."""

from __future__ import annotations

import ctypes
from functools import cache

_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18

#: Arguments of the C library's ``syscall``, which returns 0 where the kernel agrees.
REQUEST = (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)


@cache
def enable() -> bool:
    """Ask the kernel for the tile registers; false if it refuses. Inherited by every thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(*REQUEST) == 0
