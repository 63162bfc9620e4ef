"""What Triton's interpreter does not do, or not as fast, in the versions that zoomc runs on."""

from __future__ import annotations

from typing import Any


def prepare() -> None:
    """Mend it, for this process; ``TRITON_INTERPRET=1`` is set before."""
    widen_bf16()
    look_dtypes_up_once()
    count_by_tensors()


def widen_bf16() -> None:
    """Teach the interpreter bf16, which it multiplies, and makes of int8, as bit patterns."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(x: Any) -> Any:
        if x.dtype.scalar is not tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot_of_bf16(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    def bf16_of_integer(self: Any, x: Any, to: Any) -> Any:
        if to.scalar is tl.bfloat16:
            x = self.cast_impl(x, tl.float32)
        return self.cast_impl(x, to)

    InterpreterBuilder.create_dot = dot_of_bf16
    InterpreterBuilder.create_si_to_fp = bf16_of_integer


def look_dtypes_up_once() -> None:
    """Save the interpreter a table of all dtypes that it makes at every operation."""
    from triton.runtime import interpreter

    find, known = interpreter._get_np_dtype, dict[str, Any]()

    def found(dtype: Any) -> Any:
        name = str(dtype)
        if name not in known:
            known[name] = find(dtype)
        return known[name]

    interpreter._get_np_dtype = found


def count_by_tensors() -> None:
    """Let loops run to a tensor of one element where Triton 3.6 meets NumPy 2.4, which refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patched
