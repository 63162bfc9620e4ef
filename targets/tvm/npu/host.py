"""The host program: TVM-compiled code that hands a layer's commands to the machine's functions.

The same loop comes in two forms. Compiled here, it calls functions that the simulator registers
with TVM. As portable C (``target="c"``), it calls plain C functions, which a driver would provide:

    void zoomc_npu_dma_in(const int64_t* command);    and so on, one a command

with the numbers of :mod:`.commands` behind the pointer.
"""

from __future__ import annotations

import itertools
import threading
from functools import cache
from typing import Any

import torch
import tvm
import tvm_ffi
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from .commands import COMMANDS, FIELDS, encode
from .commands import decode as decode_row
from .program import Program
from .simulator import Counts, Simulator

#: Name of the compiled function.
ENTRY = "zoomc_npu_run"

_SESSIONS: dict[int, tuple[Simulator, list[list[int]]]] = {}
_NUMBERS = itertools.count(1)
_LOCK = threading.Lock()


def prim_func(portable: bool) -> Any:
    """The loop over ``commands``, ``(n, FIELDS)`` int64, as a PrimFunc.

    Args:
        portable: call C functions with a pointer to each command; else call the simulator's
            registered functions with the session and the command's number.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(ENTRY)
            T.func_attr({"global_symbol": ENTRY, "tirx.noalias": True})
            handle = T.arg("commands", T.handle())
            session = T.arg("session", T.int64())
            count = T.int64()
            commands = T.match_buffer(handle, (count, FIELDS), "int64")
            with T.serial(count) as index:
                for kind in COMMANDS:
                    with T.If(commands[index, 0] == T.int64(kind.code)), T.Then():
                        if portable:
                            place = T.address_of(commands[index, 0])
                            T.evaluate(T.call_extern("void", kind.function, place))
                        else:
                            T.evaluate(T.call_packed(kind.function, session, index))
        return builder.get()


def source() -> str:
    """The host program as portable C."""
    module = tvm.IRModule({ENTRY: prim_func(portable=True)})
    return str(tvm.compile(module, target=tvm.target.Target("c")).mod.inspect_source())


@cache
def _compiled() -> Any:
    """The host program for this machine; the simulator's functions are registered with it."""
    for kind in COMMANDS:

        def carry_out(session: int, index: int) -> None:
            simulator, rows = _SESSIONS[session]
            simulator.issue(decode_row(rows[index]))

        tvm_ffi.register_global_func(kind.function, carry_out, override=True)
    module = tvm.IRModule({ENTRY: prim_func(portable=False)})
    return tvm.compile(module, target=tvm.target.Target("llvm"))


def run(
    program: Program, tensors: dict[str, torch.Tensor] | None = None, count: bool = True
) -> tuple[torch.Tensor | None, Counts]:
    """Run a program through the compiled host code on a simulated machine.

    Args:
        program: what to run.
        tensors: bytes of its tensors, see :func:`.tensors.tensors`; None counts alone.
        count: whether to follow DRAM rows and time, see :class:`.simulator.Simulator`.

    Returns:
        the bytes of far memory from the output on, None if nothing was computed; and the counts.
    """
    simulator = Simulator(program.machine, program.far_bytes, tensors is not None, count)
    simulator.write(program.far, tensors or {})
    rows = encode(program.commands)
    with _LOCK:
        entry = _compiled()[ENTRY]
    session = next(_NUMBERS)
    _SESSIONS[session] = (simulator, rows.tolist())
    try:
        entry(torch.from_numpy(rows), session)
    finally:
        del _SESSIONS[session]
    counts = simulator.finish()
    return (simulator.far[program.far["output"] :] if tensors is not None else None), counts
