"""Compiled kernels, generated once per process and shared by every graph that needs them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
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


Item = tuple[Hashable, Kernel]

#: Most kernels in one library.
_GROUP = 8

_CACHE: dict[Hashable, Compiled] = {}
_LOCK = threading.Lock()


def compile_kernels(kernels: Iterable[Kernel], isa: Isa) -> dict[Hashable, Compiled]:
    """Compile what is not compiled yet, on all threads; return one entry per key."""
    wanted = {(isa, kernel.key): kernel for kernel in kernels}
    with _LOCK:
        missing = [item for item in wanted.items() if item[0] not in _CACHE]
        # TVM and LLVM run outside the interpreter lock. The heaviest go first, so that no thread
        # is left alone with one of them at the end.
        missing.sort(key=lambda item: -item[1].flops)
        with ThreadPoolExecutor(isa.threads) as pool:
            for compiled in pool.map(lambda group: _compile(group, isa), _grouped(missing, isa)):
                _CACHE.update(compiled)
        return {kernel.key: _CACHE[key] for key, kernel in wanted.items()}


def _grouped(items: Sequence[Item], isa: Isa) -> Iterable[Sequence[Item]]:
    """Kernels that share a library: each costs 35 ms and a megabyte of its own."""
    size = max(1, min(_GROUP, len(items) // (4 * isa.threads)))
    return (items[i : i + size] for i in range(0, len(items), size))


def _compile(kernels: Sequence[Item], isa: Isa) -> dict[Hashable, Compiled]:
    """Generate kernels down to machine code, in one library."""
    symbols = {
        key: f"{kernel.name}_{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"
        for key, kernel in kernels
    }
    module = tvm.IRModule(
        {
            symbols[key]: kernel.build().with_attr("global_symbol", symbols[key])
            for key, kernel in kernels
        }
    )
    # Checks of arguments are half of the machine code. The graph passes what was planned, and
    # kernels' own tests keep them.
    with tvm.transform.PassContext(config={"tirx.disable_assert": True}):
        library = tvm.compile(module, target=tvm.target.Target(isa.target))
    # The first look-up makes the machine code.
    return {key: Compiled(name, library, library[name]) for key, name in symbols.items()}
