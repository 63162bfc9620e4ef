"""Tests here need Triton's interpreter; ``test_interpreted.py`` starts a process that has it."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    _dot = InterpreterBuilder.create_dot

    def _dot_of_bf16(self, a, b, *rest):
        """bf16 is bit patterns to the interpreter, which would multiply them as integers."""

        def widened(x):
            if x.dtype.scalar is not tl.bfloat16:
                return x
            return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

        return _dot(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = _dot_of_bf16
