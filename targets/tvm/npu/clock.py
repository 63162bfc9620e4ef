"""Under a power limit: the clock of each layer, as the set-frequency command will say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...errors import PowerLimitError
from ...power import Load, Supply, layerwise
from .commands import Frequency
from .machine import Machine
from .program import Program
from .simulator import Counts, Simulator


def supply(machine: Machine) -> Supply:
    """A machine's clock levels, at its one voltage."""
    return Supply(
        tuple(map(float, machine.mhz)),
        (machine.volts,) * len(machine.mhz),
        machine.static_mw,
        machine.standby_mw,
    )


def check_limit(machine: Machine, limit_mw: float) -> None:
    """Refuse a limit below what flows whether anything happens or not.

    Raises:
        PowerLimitError: it is.
    """
    idle = machine.static_mw + machine.standby_mw
    if limit_mw <= idle:
        raise PowerLimitError(
            f"machine {machine.name} takes {idle:g} mW doing nothing ({machine.static_mw:g} static,"
            f" {machine.standby_mw:g} standby of its memory): a limit of {limit_mw:g} mW cannot be"
            " kept; raise it"
        )


def count(program: Program) -> Counts:
    """What a program comes to, without computing anything."""
    simulator = Simulator(program.machine, program.far_bytes, compute=False)
    for command in program.commands:
        simulator.issue(command)
    return simulator.finish()


def at_level(program: Program, level: int) -> Program:
    """The same program behind a set-frequency command."""
    return replace(program, commands=(Frequency(level), *program.commands))


def load_of(program: Program) -> Load:
    """A program as the power model sees it, from counting runs at the highest and lowest clock.

    What it takes is a maximum of sums, each of some transfers and some arithmetic, so a convex
    function of the clock's period: the model meets it at both ends and nowhere exceeds it, and the
    modelled power is never below the simulated one.
    """
    machine = program.machine
    fast, slow = count(program), count(at_level(program, 0))
    return Load(
        program.job.layer.name or program.job.layer.kind,
        fast.compute_ns * machine.mhz[-1] / 1e3,
        fast.nanoseconds,
        fast.energy["mac"] + fast.energy["scratchpad"],
        fast.energy["dram"] - machine.standby_mw * fast.nanoseconds / 1e3,
        2 * program.job.layer.macs,
        slow.nanoseconds - slow.compute_ns,
    )


def levels(programs: Sequence[Program], machine: Machine, limit_mw: float) -> tuple[int, ...]:
    """Each program's clock level: the highest whose modelled power keeps the limit.

    Raises:
        PowerLimitError: some program keeps it at no level.
    """
    return layerwise([load_of(p) for p in programs], supply(machine), limit_mw).levels
