"""Micro-kernels: ``C[rows, columns] += A[rows, K] · panel[K, columns]`` on one instruction path.

A micro-kernel is LLVM IR text, linked into every kernel that calls it: the register allocation
of its accumulators is then the text's and not the whim of a lowering pass, and it costs next to
no compile time. The loops around it are TIR (:mod:`.gemm`).

A panel holds ``columns`` columns of the right-hand matrix, ``kpack`` consecutive K values of a
column side by side: ``[K / kpack][columns][kpack]``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from tvm.tirx.script import builder as T

from ..integer import GROUP
from . import micro_amx, micro_vector
from .isa import Isa

Expr = Any


@dataclass(frozen=True)
class Micro:
    """One micro-kernel.

    Attributes:
        name: of the LLVM function, unique to its code.
        text: LLVM IR that defines it.
        rows: rows of A in a group; a group's rows are a constant distance apart.
        groups: groups multiplied together, each with an address of its own.
        columns: columns of a panel.
        kpack: consecutive K values that sit side by side in a panel.
        kstep: K must be a multiple of this.
        a: TIR dtype of A's elements.
        planes: elements of A that stand for one value: 3 where fp32 is split into bf16
            (``[K / 32][plane][32]``), else 1.
        panel: torch dtype of a packed panel.
        decoded: TIR dtype of the panel the code reads, where it is decoded from the packed one
            just before use; "" where the packed panel is read as it is.
        accumulator: TIR dtype of C.
        tiles: needs the AMX tile configuration around its use.
        ahead: lines of 64 bytes of the next panel that a step fetches into the second-level cache.
        listed: where in A each K step begins is read from a list.
    """

    name: str
    text: str
    rows: int
    groups: int
    columns: int
    kpack: int
    kstep: int
    a: str
    panel: torch.dtype
    planes: int = 1
    decoded: str = ""
    accumulator: str = "float32"
    tiles: bool = False
    ahead: int = 0
    listed: bool = False

    @property
    def block(self) -> int:
        """Rows of C that one call computes."""
        return self.rows * self.groups

    @property
    def a_bytes(self) -> int:
        """Bytes of A that stand for one value."""
        return (4 if self.a == "float32" else 2 if self.a == "uint16" else 1) * self.planes

    @property
    def b_bytes(self) -> int:
        """Bytes of one value in the panel the code reads."""
        return 2 * self.planes if self.decoded else self.panel.itemsize

    def begin(self) -> None:
        """Emit what a worker needs before its first call."""
        if self.tiles:
            T.evaluate(T.call_extern("void", micro_amx.CONFIGURE))

    def end(self) -> None:
        """Emit what a worker needs after its last call."""
        if self.tiles:
            T.evaluate(T.call_extern("void", micro_amx.RELEASE))

    def call(
        self,
        a: list[Expr],
        pitch: Expr,
        step: Expr,
        panel: Expr,
        k: Expr,
        c: Expr,
        accumulate: Expr,
        soon: Expr = None,
    ) -> None:
        """Emit one call.

        Args:
            a: address of each group's first row.
            pitch: bytes from one row of A to the next.
            step: bytes from one K step of A to the next, which only tiles take; where they are
                listed, the address of the steps' int32 element offsets.
            panel: address of the panel's values from K's start on.
            k: K, a positive multiple of ``kstep``.
            c: address of the result, ``[block][columns]``.
            accumulate: int32; zero overwrites C, else it is added to.
            soon: address from which to fetch ahead; needed where ``ahead`` is not zero.
        """
        steps = [step] if self.listed else [T.Cast("int64", step)] if self.tiles else []
        args = [
            *a,
            T.Cast("int64", pitch),
            *steps,
            panel,
            T.Cast("int64", k // self.kstep),
            c,
            accumulate,
        ]
        args += [soon] if self.ahead else []
        T.evaluate(T.call_extern("void", self.name, *args))


def micro(isa: Isa, dtype: torch.dtype, rows: int, listed: bool = False) -> Micro:
    """The micro-kernel for operands of a dtype and a left-hand matrix of ``rows`` rows.

    Every choice for one path and dtype reads the same packed panels, whatever ``rows``. Steps of K
    that are ``listed`` are, but for tiles', as long as a block of weights that is pruned.
    """
    few = rows <= 8  # bound by reading the panels: tiles would gain nothing
    if dtype is torch.float32:
        if isa.amx and not few:
            return _split(listed)
        return _fma(isa, dtype, rows, listed)
    if dtype is torch.bfloat16:
        if isa.amx and not few:
            return _tiles(listed)
        if isa.bf16_dot:
            return _dot(isa, rows, listed)
    return _fma(isa, dtype, rows, listed)


def _shape(isa: Isa, rows: int) -> tuple[int, int]:
    """Rows and vectors of accumulators that fit the registers beside the operands."""
    tall = 8 if isa.registers >= 32 else 6 if isa.fma else 4
    return min(tall, rows), 2


def _fma(isa: Isa, dtype: torch.dtype, rows: int, listed: bool) -> Micro:
    tall, vectors = _shape(isa, rows)
    stored = dtype
    if dtype is torch.float16 and isa.lanes < 8 and not isa.neon:
        stored = torch.float32  # no instruction widens fp16 there
    step = GROUP if listed else 1
    text = micro_vector.fma(tall, vectors, isa.lanes, stored, step if listed else 0)
    columns = vectors * isa.lanes
    return Micro(
        text.name, text.ir, tall, 1, columns, 1, step, a="float32", panel=stored, listed=listed
    )


def _dot(isa: Isa, rows: int, listed: bool) -> Micro:
    tall, vectors = _shape(isa, rows)
    step = GROUP if listed else 2
    text = micro_vector.bf16_dot(tall, vectors, step if listed else 0)
    stored = torch.bfloat16
    return Micro(
        text.name, text.ir, tall, 1, vectors * 16, 2, step, a="uint16", panel=stored, listed=listed
    )


def _tiles(listed: bool) -> Micro:
    text = micro_amx.bf16(listed=listed)
    stored = torch.bfloat16
    return Micro(
        text.name, text.ir, 16, 2, 32, 2, 32, a="uint16", panel=stored, tiles=True, listed=listed
    )


def _split(listed: bool) -> Micro:
    text = micro_amx.fp32_in_three(listed=listed)
    return Micro(
        text.name,
        text.ir,
        16,
        2,
        32,
        1,
        32,
        a="uint16",
        panel=torch.float32,
        planes=3,
        decoded="uint32",
        tiles=True,
        listed=listed,
    )


def fetching(micro: Micro, blocks: int) -> Micro:
    """The variant that fetches the next panel while ``blocks`` blocks use this one.

    Only tiles are so fast that the hardware's own prefetching falls behind.
    """
    lines = micro.kstep * micro.columns * micro.panel.itemsize // 64
    if not micro.tiles or 2 * blocks > lines:
        return micro
    ahead = -(-lines // blocks)
    tiles = micro_amx.fp32_in_three if micro.planes > 1 else micro_amx.bf16
    text = tiles(ahead, micro.listed)
    return replace(micro, name=text.name, text=text.ir, ahead=ahead)
