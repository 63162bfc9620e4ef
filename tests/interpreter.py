"""Run tests where Triton's interpreter is.

Triton decides at import whether functions are compiled or interpreted, once for a process; so
folders called ``interpreted`` are run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(path: Path) -> None:
    """Run a file of tests in the interpreter and expect all to pass."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


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
