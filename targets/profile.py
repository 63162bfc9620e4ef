"""What a step's time goes to, as a target measures it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Profile:
    """Seconds a step spends, by the symbols of generated kernels.

    Attributes:
        kernels: in all calls of a kernel.
        stages: of these, in each stage of a kernel that tells: ``norm`` (a group norm's statistics,
            or a layer norm with the quantisation that goes row by row with it), ``prepare`` or
            ``quantise`` (what a product reads is written, norm and activation applied) and
            ``product`` (with its epilogue).
    """

    kernels: dict[str, float] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
