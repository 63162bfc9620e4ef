"""What identifies a kernel's code."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from .isa import Isa
from .kernel import Call, Value


def call_key(call: Call, isa: Isa) -> Hashable:
    """What determines a kernel's code: the call without its values, its plan, and the path."""

    def strip(x: Any) -> Hashable:
        if isinstance(x, Value):
            return x.spec, x.constant
        return tuple(map(strip, x)) if isinstance(x, (list, tuple)) else x

    arguments = tuple((name, strip(x)) for name, x in sorted(call.args.items()))
    plan = tuple(sorted(call.plan.items())) if call.plan else None
    return call.op, isa, arguments, call.out, plan
