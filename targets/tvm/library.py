"""Compiled kernels, generated once per process and shared by every graph that needs them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import tvm

from ...kernels.tir.isa import Isa
from ...kernels.tir.kernel import Kernel


@dataclass(frozen=True)
class Compiled:
    """A kernel's symbol, the library that holds it, and the function itself."""

    symbol: str
    library: Any
    function: Callable[..., None]


_CACHE: dict[Hashable, Compiled] = {}
_LOCK = threading.Lock()


def compile_kernels(kernels: Iterable[Kernel], isa: Isa) -> dict[Hashable, Compiled]:
    """Compile what is not compiled yet, on all threads; return one entry per key."""
    wanted = {(isa, kernel.key): kernel for kernel in kernels}
    with _LOCK:
        missing = [(key, kernel) for key, kernel in wanted.items() if key not in _CACHE]
        if missing:
            # TVM and LLVM run outside the interpreter lock. The heaviest go first, so that no
            # thread is left alone with one of them at the end.
            missing.sort(key=lambda item: -item[1].flops)
            with ThreadPoolExecutor(min(isa.threads, len(missing))) as pool:
                compiled = pool.map(lambda item: _compile(item[0], item[1], isa), missing)
                _CACHE.update(zip((key for key, _ in missing), compiled, strict=True))
        return {kernel.key: _CACHE[key] for key, kernel in wanted.items()}


def _compile(key: Hashable, kernel: Kernel, isa: Isa) -> Compiled:
    """Generate one kernel down to machine code."""
    symbol = f"{kernel.name}_{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"
    function = kernel.build().with_attr("global_symbol", symbol)
    module = tvm.IRModule({symbol: function})
    library = tvm.compile(module, target=tvm.target.Target(isa.target))
    return Compiled(symbol, library, library[symbol])  # the look-up makes the machine code
