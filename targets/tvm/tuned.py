"""Lower calls by the plans a tuning run found for them, by the planner's where it found none."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from ...kernels.tir.isa import Isa
from ...kernels.tir.kernel import Call, Kernel, lower
from ...kernels.tir.plan import StalePlan
from ...kernels.tir.processor import Processor, here
from ..tuning import Store, problem, version


def machine(isa: Isa, cpu: Processor | None = None) -> str:
    """Names what a kernel's time depends on: the CPU (this one by default) and the path."""
    path = f"{isa.name} with vnni" if isa.vnni else isa.name
    name = (cpu or here()).name or "a CPU without a name"
    return f"{name}, {path}, {isa.threads} threads, {isa.l1 >> 10} and {isa.l2 >> 10} KiB"


class Tuned:
    """Lowers calls for a path.

    Attributes:
        used: kernels whose plan the store decided.
        ignored: how many entries could not be used, by the reason.
    """

    def __init__(self, store: Store, isa: Isa) -> None:
        self.used = 0
        self.ignored: Counter[str] = Counter()
        if store.damaged:
            self.ignored["no entry: damaged lines"] = store.damaged
        self._store = store
        self._isa = isa
        self._machine = machine(isa)

    def lower(self, call: Call) -> Kernel:
        """The kernel of a call, as :func:`zoomc.kernels.tir.kernel.lower`."""
        entry = self._store.find(problem(call, self._machine)) if len(self._store) else None
        if entry is None:
            return lower(call, self._isa)
        if entry.kernels != version():
            self.ignored["measured with other versions of the kernels: tune again"] += 1
            return lower(call, self._isa)
        try:
            kernel = lower(dataclasses.replace(call, plan=entry.plan), self._isa)
        except StalePlan as reason:
            self.ignored[f"a plan that does not fit: {reason}"] += 1
            return lower(call, self._isa)
        self.used += 1
        return kernel

    def report(self) -> dict[str, Any]:
        """What was used, for people."""
        return {
            "file": None if self._store.path is None else str(self._store.path),
            "used": self.used,
            "ignored": dict(self.ignored),
        }
