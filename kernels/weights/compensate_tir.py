"""Error-compensating rounding as a compiled kernel: what :mod:`.compensate` means, in one pass.

Sixty-four weights of a group, for as many output channels as a vector has lanes, stay in the
first-level cache while each one's error is passed on to those that follow, where torch would
move them through memory for every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ..integer import GROUP
from ..tir.isa import Isa, isa, supported
from ..tir.memory import load, splat
from .tables import Table

#: Entries up to which comparing with each is how the nearest is found.
ENTRIES = 16


def available(table: Table) -> bool:
    """Whether codes of this table can be found here: few entries, and a CPU with known paths."""
    return len(table.values) <= ENTRIES and bool(supported())


def compensated(
    x: torch.Tensor, step: torch.Tensor, table: Table, inverse: torch.Tensor
) -> torch.Tensor:
    """The codes of a block; arguments and result are those of :func:`.compensate.compensated`."""
    channels, groups = x.shape[:2]
    columns = step[0].numel()
    codes = torch.empty(x.shape, dtype=torch.uint8)
    values = table.values.float()
    _compiled()(
        x.contiguous().view(channels, groups, columns),
        step.contiguous().view(groups, columns),
        inverse.contiguous(),
        inverse.diagonal(dim1=1, dim2=2).reciprocal(),
        values,
        (values[1:] + values[:-1]) / 2,
        codes.view(channels, groups, columns),
    )
    return codes


@functools.cache
def _compiled() -> Callable[..., None]:
    import tvm

    path = isa(threads=1)
    module = tvm.IRModule({"main": _function(path).with_attr("global_symbol", "main")})
    library = tvm.compile(module, target=tvm.target.Target(path.target))
    _ALIVE.append(library)
    return library["main"]  # type: ignore[no-any-return]


_ALIVE: list[Any] = []  # machine code must outlive the function


def _function(path: Isa) -> Any:
    """The kernel, for any number of groups, columns and table entries; one thread's work."""
    lanes = path.lanes
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True})
            groups, columns, entries = T.int32(), T.int32(), T.int32()
            shapes = {
                "x": ((GROUP, groups, columns), "float32"),
                "step": ((groups, columns), "float32"),
                "inverse": ((groups, GROUP, GROUP), "float32"),
                "reciprocal": ((groups, GROUP), "float32"),
                "values": ((entries,), "float32"),
                "middles": ((entries - 1,), "float32"),
                "codes": ((GROUP, groups, columns), "uint8"),
            }
            handles = {name: T.arg(name, T.handle()) for name in shapes}
            named = {
                name: T.match_buffer(handles[name], shape, dtype)
                for name, (shape, dtype) in shapes.items()
            }
            with T.sblock("root"), T.serial(groups) as g:
                whole = T.bind(T.floordiv(columns, lanes))
                with T.serial(whole) as block:
                    _round(named, entries, g, T.bind(block * lanes), lanes)
                with T.serial(columns - whole * lanes) as rest:
                    _round(named, entries, g, T.bind(whole * lanes + rest), 1)
        return builder.get()


def _round(named: dict[str, Any], entries: Any, g: Any, column: Any, lanes: int) -> None:
    """Round a group's weights of some output channels, one after the other."""
    everywhere = [T.ramp(0, 1, lanes) if lanes > 1 else 0]
    left = T.alloc_buffer((GROUP * lanes,), "float32", scope="local")

    def at(i: Any) -> list[Any]:
        return [T.ramp(i * lanes, 1, lanes) if lanes > 1 else i]

    with T.serial(GROUP) as i:
        T.buffer_store(left, load(named["x"], [i, g, column], lanes), at(i))
    step = T.bind(load(named["step"], [g, column], lanes))
    per_step = T.bind(splat(T.float32(1), lanes) / step)
    value = T.alloc_buffer((lanes,), "float32", scope="local")
    code = T.alloc_buffer((lanes,), "float32", scope="local")
    with T.serial(GROUP) as i:
        weight = T.bind(load(left, [i * lanes], lanes))
        place = T.bind(weight * per_step)
        T.buffer_store(value, splat(named["values"][0], lanes), everywhere)
        T.buffer_store(code, splat(T.float32(0), lanes), everywhere)
        with T.serial(entries - 1) as k:
            above = place > splat(named["middles"][k], lanes)
            following = splat(named["values"][k + 1], lanes)
            T.buffer_store(value, T.Select(above, following, load(value, [0], lanes)), everywhere)
            number = splat(T.Cast("float32", k + 1), lanes)
            T.buffer_store(code, T.Select(above, number, load(code, [0], lanes)), everywhere)
        where = [i, g, T.ramp(column, 1, lanes) if lanes > 1 else column]
        kind = "uint8" if lanes == 1 else f"uint8x{lanes}"
        T.buffer_store(named["codes"], T.Cast(kind, load(code, [0], lanes)), where)
        lost = weight - load(value, [0], lanes) * step
        error = T.bind(lost * splat(named["reciprocal"][g, i], lanes))
        with T.serial(i + 1, GROUP) as j:
            passed = splat(named["inverse"][g, i, j], lanes) * error
            T.buffer_store(left, load(left, [j * lanes], lanes) - passed, at(j))
