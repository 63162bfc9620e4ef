"""Run tests where Triton's interpreter is.

Triton decides at import whether functions are compiled or interpreted, once for a process; so
folders called ``interpreted`` are run in a process of their own, by the ``test_interpreted.py``
beside each, or by who names nothing else on pytest's command line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(path: Path) -> None:
    """Run a file of tests in the interpreter and expect all to pass."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def interprets() -> bool:
    """Whether Triton interprets in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def pytest_configure(config: pytest.Config) -> None:
    """Choose the interpreter where all that is to run needs it, before Triton is imported."""
    named = [Path(arg.split("::")[0]).resolve() for arg in config.args]
    if all("interpreted" in path.parts for path in named) and "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    if interprets():
        widen_bf16()
        look_dtypes_up_once()


def pytest_ignore_collect() -> bool | None:
    """Leave these folders to ``test_interpreted.py`` where others run in the same process."""
    return None if interprets() else True


@pytest.fixture(autouse=True)
def in_the_interpreter() -> None:
    """Files that are named beside others are collected all the same."""
    if not interprets():
        pytest.skip("needs a process of its own: name files of such folders alone, or set"
                    " TRITON_INTERPRET=1")  # fmt: skip


def widen_bf16() -> None:
    """Teach the interpreter bf16, which it multiplies, and makes of int8, as bit patterns."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(x):
        if x.dtype.scalar is not tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot_of_bf16(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    def bf16_of_integer(self, x, to):
        if to.scalar is tl.bfloat16:
            x = self.cast_impl(x, tl.float32)
        return self.cast_impl(x, to)

    InterpreterBuilder.create_dot = dot_of_bf16
    InterpreterBuilder.create_si_to_fp = bf16_of_integer


def look_dtypes_up_once() -> None:
    """Save the interpreter a table of all dtypes that it makes at every operation."""
    from triton.runtime import interpreter

    find, known = interpreter._get_np_dtype, {}

    def found(dtype):
        name = str(dtype)
        if name not in known:
            known[name] = find(dtype)
        return known[name]

    interpreter._get_np_dtype = found
