"""Attention by rows on AMX: the vector work of a step, as LLVM text."""

from __future__ import annotations

import struct

from .micro_tiles import TILE, Lines
from .vector import exp2_coefficients

FRACTION = 9  # bits of fraction of a score in octaves

#: By byte of 64 bits, the first of the 8 bits wanted there: the 6 below a word's exponent.
_UPPER = [16 * (byte // 2) + FRACTION - 6 for byte in range(8)]


def vector(values: list[int], element: str) -> str:
    """A constant vector."""
    return f"<{', '.join(f'{element} {value}' for value in values)}>"


def _float(value: float) -> str:
    """A float constant as LLVM writes it: the bits of the double that equals it."""
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    return "0x" + struct.pack(">d", single).hex().upper()


def _correction() -> list[int]:
    """``f - (2^f - 1)`` in the fixed point of scores, the mean over each 64th of an octave."""
    table = []
    for i in range(64):
        fine = [(i + (j + 0.5) / 64) / 64 for j in range(64)]
        mean = sum(f - (2**f - 1) for f in fine) / len(fine)
        table.append(round(mean * 2**FRACTION))
    return table


def _octaves(names: Lines, lines: list[str], row: int, scores: str) -> list[str]:
    """One row of scores times the factor, from its reference: two vectors."""
    f16 = "<16 x float>"
    base = names.at(lines, "%base", row * 4)
    scalar = names.let(lines, f"load float, ptr {base}, align 4")
    one = names.let(lines, f"insertelement {f16} poison, float {scalar}, i64 0")
    shift = names.let(lines, f"shufflevector {f16} {one}, {f16} poison, <16 x i32> zeroinitializer")
    result = []
    for half in range(2):
        offset = ((row // 16) * 2 + half) * TILE + row % 16 * 64
        at = names.at(lines, scores, offset)
        s = names.let(lines, f"load {f16}, ptr {at}, align 64")
        result.append(
            names.let(lines, f"call {f16} @llvm.fma.v16f32({f16} {s}, {f16} %c, {f16} {shift})")
        )
    return result


def weights(names: Lines, pieces: int, p: int, row: int, scores: str, keep: str) -> list[str]:
    """Vector work: one row of scores of one piece of this unit to weights."""
    lines: list[str] = []
    f16, i16, w32 = "<16 x float>", "<16 x i32>", "<32 x i16>"
    fixed = [
        names.let(
            lines,
            f"call {i16} @llvm.x86.avx512.mask.cvtps2dq.512({f16} {t}, {i16} "
            "zeroinitializer, i16 -1, i32 4)",
        )
        for t in _octaves(names, lines, row, scores)
    ]
    t = names.let(
        lines, f"call {w32} @llvm.x86.avx512.packusdw.512({i16} {fixed[0]}, {i16} {fixed[1]})"
    )
    bytes_ = names.let(lines, f"bitcast {w32} {t} to <64 x i8>")
    index = names.let(
        lines,
        "call <64 x i8> @llvm.x86.avx512.pmultishift.qb.512(<64 x i8> "
        f"{vector(_UPPER * 8, 'i8')}, <64 x i8> {bytes_})",
    )
    found = names.let(
        lines,
        "call <64 x i8> @llvm.x86.avx512.permvar.qi.512(<64 x i8> "
        f"{vector(_correction(), 'i8')}, <64 x i8> {index})",
    )
    low = names.let(
        lines,
        f"select <64 x i1> {vector([1, 0] * 32, 'i1')}, <64 x i8> {found}, "
        "<64 x i8> zeroinitializer",
    )
    less = names.let(lines, f"bitcast <64 x i8> {low} to {w32}")
    bent = names.let(lines, f"call {w32} @llvm.usub.sat.v32i16({w32} {t}, {w32} {less})")
    weight = names.let(lines, f"lshr {w32} {bent}, splat (i16 {FRACTION - 7})")
    seen = names.let(lines, f"select <32 x i1> {keep}, {w32} {weight}, {w32} zeroinitializer")
    to = names.at(lines, "%made", ((row // 16) * pieces + p) * TILE + row % 16 * 64)
    lines.append(f"  store {w32} {seen}, ptr {to}, align 64")
    return lines


def exact_weights(
    names: Lines, words: int, pieces: int, p: int, row: int, scores: str, keep: list[str]
) -> list[str]:
    """Vector work: one row of scores of one piece to weights in several words, and their sum."""
    lines: list[str] = []
    f16, i16, w32 = "<16 x float>", "<16 x i32>", "<32 x i16>"
    all_lanes = f"{f16} zeroinitializer, i16 -1, i32 4"
    to_total = names.at(lines, "%total", row * 64)
    total = names.let(lines, f"load {f16}, ptr {to_total}, align 64")
    rest = []
    for half, t in enumerate(_octaves(names, lines, row, scores)):
        f = names.let(
            lines,
            f"call {f16} @llvm.x86.avx512.mask.reduce.ps.512({f16} {t}, i32 1, {all_lanes})",
        )
        coefficients = [_float(c) for c in reversed(exp2_coefficients(6))]
        value = f"splat (float {coefficients[0]})"
        for c in coefficients[1:]:
            value = names.let(
                lines,
                f"call {f16} @llvm.fma.v16f32({f16} {value}, {f16} {f}, {f16} splat (float {c}))",
            )
        value = names.let(
            lines,
            f"call {f16} @llvm.x86.avx512.mask.scalef.ps.512({f16} {value}, {f16} {t}, "
            f"{all_lanes})",
        )
        value = names.let(
            lines, f"select <16 x i1> {keep[half]}, {f16} {value}, {f16} zeroinitializer"
        )
        total = names.let(lines, f"fadd {f16} {total}, {value}")
        rest.append(value)
    lines.append(f"  store {f16} {total}, ptr {to_total}, align 64")
    for word in range(words):
        # Cut, not rounded: what is left is exact, and three words hold all 24 bits.
        tops = []
        for half in range(2):
            bits = names.let(lines, f"bitcast {f16} {rest[half]} to {i16}")
            tops.append(names.let(lines, f"lshr {i16} {bits}, splat (i32 16)"))
            if word + 1 < words:
                high = names.let(lines, f"and {i16} {bits}, splat (i32 -65536)")
                cut = names.let(lines, f"bitcast {i16} {high} to {f16}")
                rest[half] = names.let(lines, f"fsub {f16} {rest[half]}, {cut}")
        both = names.let(
            lines, f"call {w32} @llvm.x86.avx512.packusdw.512({i16} {tops[0]}, {i16} {tops[1]})"
        )
        tile = ((row // 16) * pieces + p) * words + word
        to = names.at(lines, "%made", tile * TILE + row % 16 * 64)
        lines.append(f"  store {w32} {both}, ptr {to}, align 64")
    return lines


def additions(names: Lines, tiles: int, part: str, to: str) -> list[list[str]]:
    """Vector work: outputs of one unit alone added to those of all."""
    f16 = "<16 x float>"
    groups = []
    for row in range(2 * tiles * 16):
        lines: list[str] = []
        values = []
        for base in (to, part):
            at = names.at(lines, base, row * 64)
            values.append(names.let(lines, f"load {f16}, ptr {at}, align 64"))
        value = names.let(lines, f"fadd {f16} {values[0]}, {values[1]}")
        lines.append(f"  store {f16} {value}, ptr {names.at(lines, to, row * 64)}, align 64")
        groups.append(lines)
    return groups
