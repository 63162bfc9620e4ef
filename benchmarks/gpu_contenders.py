"""Who takes part in the GPU benchmarks, and what each makes of a model."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from gpu_machine import Gpu

#: Arguments of ``torch.compile``; None is eager.
CONTENDERS: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "inductor": {"mode": "max-autotune"},
    "zoomc": {"backend": "zoomc", "options": {"weights": "keep"}},
    "zoomc-tuned": {"backend": "zoomc", "options": {"weights": "keep", "tune": True}},
    "zoomc-int8": {"backend": "zoomc", "options": {"weights": "int8"}},
    "zoomc-int4": {"backend": "zoomc", "options": {"weights": "int4"}},
    "zoomc-w4a8": {"backend": "zoomc", "options": {"weights": "int4", "activations": "int8"}},
}

#: Whom zoomc is held against.
PEER = "inductor"


def settings(name: str, machine: Gpu) -> dict[str, Any] | None:
    """A contender's arguments of ``torch.compile`` on a machine; None is eager.

    No contender sees what another's tuning found, nor what the user's own tuning file holds.
    """
    chosen = CONTENDERS[name]
    if chosen is None:
        return None
    if chosen.get("backend") != "zoomc":
        # On a CPU Inductor would take a minute of a C++ compiler's time.
        return {"backend": "aot_eager"} if machine.dry else chosen
    options = chosen["options"]
    store = tempfile.mktemp(suffix=".jsonl") if options.get("tune") else "off"
    return {"backend": "zoomc", "options": options | {"tuning": store} | machine.options()}


def compiled(model: torch.nn.Module, name: str, machine: Gpu) -> Any:
    """The model as a contender runs it."""
    chosen = settings(name, machine)
    return model if chosen is None else torch.compile(model, fullgraph=True, **chosen)
