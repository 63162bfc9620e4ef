"""What a node's neighbours can gather for it, before a plan settles what they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import fx

from ...kernels.triton.gpu import Gpu
from ...kernels.triton.kernel import (
    Call,
    Unsupported,
    Value,
    candidates,
    gathering,
    gathering_peaks,
    given,
    given_peaks,
)
from ..tvm.plan import as_call, is_view
from .plan import lowered


def as_planned(node: fx.Node, constant: set[fx.Node], gpu: Gpu) -> Call:
    """A node's call, given what kernels that write its inputs can gather of them.

    Args:
        node: a call of an operator.
        constant: nodes of its graph that depend on weights alone.
        gpu: what it is planned for.

    Raises:
        Unsupported: nothing here can compute the call.
    """
    call = as_call(node, constant)
    kernel = candidates(call, gpu)[0]
    if kernel.scaled:
        (value,) = kernel.operands[kernel.scaled].values
        peaks = _gathered(value, gathering_peaks, "peaks", constant, gpu)
        call = call if peaks is None else given_peaks(call, peaks)
    if kernel.measured:
        values = [kernel.operands[name].values[0] for name in kernel.measured]
        moments = []
        for value in values:
            ask = partial(gathering, rows=math.prod(value.spec.shape[1:-1]))
            moments.append(_gathered(value, ask, "moments", constant, gpu))
        call = given(call, moments)
    return call


def _gathered(
    value: Value, ask: Callable[[Call], Call], name: str, constant: set[fx.Node], gpu: Gpu
) -> Value | None:
    """What the kernel that writes a value gathers if it is asked to; None if it cannot."""
    source = value.source
    try:
        while is_view(source):
            source = source.args[0]
        call = as_call(source, constant)
    except Unsupported:
        return None
    found = lowered(ask(call), gpu)
    if isinstance(found, str) or call.out.shape[-1] != value.spec.shape[-1]:
        return None
    specs = [kernel.extras[name].spec for kernel in found if name in kernel.extras]
    return Value(specs[0]) if specs else None
