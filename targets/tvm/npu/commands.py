"""The instruction set: what one command says, as data and as a row of int64 for the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

#: int64 numbers in a command: its code, then its fields in order, then zeros.
FIELDS = 44


@dataclass(frozen=True)
class Command:
    """One instruction."""

    code: ClassVar[int]
    #: Name of the C function that carries it out.
    function: ClassVar[str]

    def numbers(self) -> list[int]:
        """Its numbers."""
        values = [self.code, *(int(v) for v in dataclasses.astuple(self))]
        return values + [0] * (FIELDS - len(values))


@dataclass(frozen=True)
class DmaIn(Command):
    """Copy a box from far memory to the scratchpad, where it lies dense.

    Attributes:
        far: first byte in far memory.
        near: first byte in the scratchpad.
        run: consecutive bytes.
        count0: runs ``stride0`` bytes apart; further out ``count1``, then ``count2``.
        stride0: see ``count0``.
        count1: see ``count0``.
        stride1: see ``count0``.
        count2: see ``count0``.
        stride2: see ``count0``.
    """

    code, function = 0, "zoomc_npu_dma_in"
    far: int
    near: int
    run: int
    count0: int = 1
    stride0: int = 0
    count1: int = 1
    stride1: int = 0
    count2: int = 1
    stride2: int = 0


@dataclass(frozen=True)
class DmaOut(DmaIn):
    """The same from the scratchpad to far memory."""

    code, function = 1, "zoomc_npu_dma_out"


@dataclass(frozen=True)
class Table(Command):
    """Load the int8 values that weight codes stand for into the decoder; 0 entries: values."""

    code, function = 2, "zoomc_npu_table"
    near: int
    entries: int


@dataclass(frozen=True)
class Product(Command):
    """int8 × int8 into int32: a tile of a convolution; a matmul is one of one tap.

    Inputs enter the array less their image's zero; padding is 0 behind that.

    Attributes:
        source: scratchpad address of the input held, ``(·, held_h, held_w, held_c)`` int8.
        held_h: its rows.
        held_w: its columns.
        held_c: its channels.
        n0: first image in it; likewise ``h0``, ``w0``, ``c0``.
        h0: see ``n0``.
        w0: see ``n0``.
        c0: see ``n0``.
        n: images; likewise rows ``h``, columns ``w`` and channels ``c`` of the tile.
        h: see ``n``.
        w: see ``n``.
        c: see ``n``.
        weight: scratchpad address of the weights held: codes ``(held_o, taps, held_i)`` of ``bits``
            bits, then, if ``group``, int8 scales ``(held_o, taps, ceil(held_i / group))``.
        held_o: output channels held.
        held_i: input channels held.
        o0: first output channel in them.
        i0: first input channel in them.
        o: output channels.
        kh: rows of the kernel.
        kw: columns of the kernel.
        sy: stride down.
        sx: stride across.
        top: rows of zeros above the tile's input.
        left: columns of zeros left of it.
        sums: scratchpad address of the int32 sums held, ``(·, held_p, held_q, held_s)``.
        held_p: their rows.
        held_q: their columns.
        held_s: their channels.
        sn: first image in them; likewise ``sp``, ``sq``, ``so``.
        sp: see ``sn``.
        sq: see ``sn``.
        so: see ``sn``.
        p: output rows.
        q: output columns.
        add: 1 to add to the sums, 0 to begin them.
        bits: of a weight code.
        group: input channels that share an integer scale; 0 = none.
        zero: scratchpad address of int32 zeros of the images, from the tile's first on; 0 = none.
    """

    code, function = 3, "zoomc_npu_product"
    source: int
    held_h: int
    held_w: int
    held_c: int
    n0: int
    h0: int
    w0: int
    c0: int
    n: int
    h: int
    w: int
    c: int
    weight: int
    held_o: int
    held_i: int
    o0: int
    i0: int
    o: int
    kh: int
    kw: int
    sy: int
    sx: int
    top: int
    left: int
    sums: int
    held_p: int
    held_q: int
    held_s: int
    sn: int
    sp: int
    sq: int
    so: int
    p: int
    q: int
    add: int
    bits: int
    group: int
    zero: int


#: Epilogue activations by number.
ACTIVATION_CODES = ("none", "silu", "gelu", "relu", "geglu")


@dataclass(frozen=True)
class Epilogue(Command):
    """Sums to results, in place: scales, bias, shift, activation, residual, rounding.

    Attributes:
        sums: scratchpad address of the sums, ``(n, p, q, o)`` int32, all of them; the results take
            their place from the same address on, dense.
        n: images.
        p: rows.
        q: columns.
        o: channels.
        column: scratchpad address of fp32 scales of the channels.
        bias: of fp32 biases of the channels; 0 = none.
        row: of fp32 scales of the rows or images, from this tile's first on.
        per_row: 1 = a scale a row, 0 = a scale an image.
        shift: of fp32 ``(n, shift_pitch)``, from the first channel on; 0 = none.
        shift_pitch: channels between two images' shifts.
        activation: index into :data:`ACTIVATION_CODES`.
        residual: of what is added last, in the results' type and place; 0 = none.
        half: 1 = results are bf16, 0 = fp32.
    """

    code, function = 4, "zoomc_npu_epilogue"
    sums: int
    n: int
    p: int
    q: int
    o: int
    column: int
    bias: int
    row: int
    per_row: int
    shift: int
    shift_pitch: int
    activation: int
    residual: int
    half: int


@dataclass(frozen=True)
class Barrier(Command):
    """Wait until everything before it has ended."""

    code, function = 5, "zoomc_npu_barrier"


@dataclass(frozen=True)
class Frequency(Command):
    """Run at a clock level from here on."""

    code, function = 6, "zoomc_npu_frequency"
    level: int


COMMANDS: tuple[type[Command], ...] = (DmaIn, DmaOut, Table, Product, Epilogue, Barrier, Frequency)


def encode(commands: Sequence[Command]) -> np.ndarray:
    """``(commands, FIELDS)`` int64."""
    rows = [command.numbers() for command in commands]
    return np.array(rows, dtype=np.int64).reshape(len(rows), FIELDS)


def decode(row: Sequence[int]) -> Command:
    """The command of a row."""
    kind = COMMANDS[int(row[0])]
    return kind(*(int(v) for v in row[1 : 1 + len(dataclasses.fields(kind))]))
