"""Attention by rows on AMX: LLVM text of the inner step, tile products beside vector work.

Tile instructions run on a unit of their own, but a core looks only some 500 instructions ahead:
they overlap with the exponentials only where both stand side by side in the code. One step
therefore works on three units of work, each :data:`QUERIES` queries against a block of keys: it
computes the scores of the next unit, turns those of this one into weights, and multiplies those
of the last one by the values.

Weights are made with 32 keys to a vector. A score in octaves becomes a 16-bit fixed-point number
with 9 bits of fraction (the conversion saturates, so what is too small becomes zero). Its upper
bits are the exponent of ``2^t``; subtracting ``f - (2^f - 1)``, looked up by the upper 6 bits of
the fraction f, turns the rest into the mantissa, and a shift leaves the bits of a bf16.

Layouts, in tiles of 16 rows of 64 bytes:

- queries ``[16][chunk][16 queries][32 elements]``
- keys ``[piece][chunk][2][16 pairs of elements][16 keys]``; a piece is 32 keys
- scores of a piece ``[16][2][16 queries][16 keys]``
- weights ``[16][piece][16 queries][32 keys]``
- values ``[piece][tile][16 pairs of keys][16 elements]``
- outputs ``[16][tile + 1][16 queries][16 elements]``; the last tile holds each query's sum of
  weights, 16 times: the weights times a tile of ones

Column c of the first tile of scores in a piece is key ``8 (c / 4) + c % 4``, of the second 4 more:
the order in which two vectors of 32 bits are packed to one of 16.

What bounds it, a core, for each product of tiles: the tile unit takes 16 cycles, and while it works
floating point has one port of two and storing a tile takes the other for 16 cycles. So integer
instructions make the weights where they can, and sums of weights are left to the tile unit.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

from ..tir.llvm import Text, attributes, loop_without_unrolling
from .tiles import products
from .vector import exp2_coefficients

QUERIES = 32  # queries of a unit
PIECE = 32  # keys of a piece
FRACTION = 9  # bits of fraction of a score in octaves
#: Added to a score in fixed point, so that the last shift rounds.
ROUND = 2

_TILE = 1024
_FEATURES = (
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "avx512bf16",
    "amx-tile",
    "amx-bf16",
)

#: By byte of 64 bits, the first of the 8 bits wanted there: the 6 below a word's exponent.
_UPPER = [16 * (byte // 2) + FRACTION - 6 for byte in range(8)]

_PRELUDE = """
declare <64 x i8> @llvm.x86.avx512.pmultishift.qb.512(<64 x i8>, <64 x i8>)
@zoomc_attention_ones = internal constant <512 x i16> splat (i16 16256), align 64
declare void @llvm.x86.tilezero(i8 immarg)
declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)
declare void @llvm.x86.tileloaddt164(i8 immarg, ptr, i64)
declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)
declare void @llvm.x86.tdpbf16ps(i8 immarg, i8 immarg, i8 immarg)
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare float @llvm.vector.reduce.fadd.v16f32(float, <16 x float>)
declare <16 x float> @llvm.x86.avx512.mask.reduce.ps.512(<16 x float>, i32, <16 x float>, i16, i32)
declare <16 x float> @llvm.x86.avx512.mask.scalef.ps.512(<16 x float>, <16 x float>, <16 x float>,
                                                         i16, i32)
declare <16 x float> @llvm.maximum.v16f32(<16 x float>, <16 x float>)
declare <16 x i32> @llvm.x86.avx512.mask.cvtps2dq.512(<16 x float>, <16 x i32>, i16, i32)
declare <32 x i16> @llvm.x86.avx512.packusdw.512(<16 x i32>, <16 x i32>)
declare <64 x i8> @llvm.x86.avx512.permvar.qi.512(<64 x i8>, <64 x i8>)
declare <32 x i16> @llvm.usub.sat.v32i16(<32 x i16>, <32 x i16>)
"""


def _correction() -> list[int]:
    """``f - (2^f - 1)`` in the fixed point of scores, the mean over each 64th of an octave."""
    table = []
    for i in range(64):
        fine = [(i + (j + 0.5) / 64) / 64 for j in range(64)]
        mean = sum(f - (2**f - 1) for f in fine) / len(fine)
        table.append(round(mean * 2**FRACTION))
    return table


def _vector(values: list[int], element: str) -> str:
    return f"<{', '.join(f'{element} {value}' for value in values)}>"


def _float(value: float) -> str:
    """A float constant as LLVM writes it: the bits of the double that equals it."""
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    return "0x" + struct.pack(">d", single).hex().upper()


def _load(tile: int, pointer: str, streams: bool = False) -> str:
    name = "tileloaddt164" if streams else "tileloadd64"
    return f"  call void @llvm.x86.{name}(i8 {tile}, ptr {pointer}, i64 64)"


def _store(tile: int, pointer: str) -> str:
    return f"  call void @llvm.x86.tilestored64(i8 {tile}, ptr {pointer}, i64 64)"


class _Lines:
    """Instructions with names of their own."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"%{self.prefix}{self.count}"

    def at(self, lines: list[str], base: str, offset: int) -> str:
        """A pointer some bytes after another."""
        name = self.name()
        lines.append(f"  {name} = getelementptr i8, ptr {base}, i64 {offset}")
        return name

    def let(self, lines: list[str], value: str) -> str:
        name = self.name()
        lines.append(f"  {name} = {value}")
        return name


@dataclass(frozen=True)
class _Tile:
    """One tile of a result: where from (zero if nowhere), the products it adds up, where to."""

    start: str | None
    products: list[tuple[str, str]]
    to: str


def _scores(
    names: _Lines, lines: list[str], chunks: int, words: int, piece: int, q: str, k: str, to: str
) -> list[_Tile]:
    """The tiles of the scores of one piece of the keys at ``k``."""

    def at(base: str, tile: int) -> str:
        return names.at(lines, base, tile * _TILE)

    left = {
        (i, a, c): at(q, (i * words + a) * chunks + c)
        for i in range(2)
        for a in range(words)
        for c in range(chunks)
    }
    tiles = []
    for j in range(2):
        right = {
            (b, c): at(k, ((piece * words + b) * chunks + c) * 2 + j)
            for b in range(words)
            for c in range(chunks)
        }
        for i in range(2):
            pairs = [
                (left[i, a, c], right[b, c]) for a, b in products(words) for c in range(chunks)
            ]
            tiles.append(_Tile(None, pairs, at(to, i * 2 + j)))
    return tiles


def _outputs(
    names: _Lines, lines: list[str], tiles: int, words: int, pieces: int, to: str
) -> list[_Tile]:
    """The tiles of the last unit's outputs: added up if of one word, else of this unit alone."""

    def at(base: str, tile: int) -> str:
        return names.at(lines, base, tile * _TILE)

    exact = words > 1
    each = tiles if exact else tiles + 1
    left = {
        (i, p, a): at("%last", (i * pieces + p) * words + a)
        for i in range(2)
        for p in range(pieces)
        for a in range(words)
    }
    result = []
    for t in range(each):
        right = {
            (p, b): at("%v", (p * words + b) * tiles + t) if t < tiles else "@zoomc_attention_ones"
            for p in range(pieces)
            for b in range(words)
        }
        for i in range(2):
            pairs = [
                (left[i, p, a], right[p, b]) for a, b in products(words) for p in range(pieces)
            ]
            here = at(to, i * each + t)
            result.append(_Tile(None if exact else here, pairs, here))
    return result


def _schedule(tiles: list[_Tile]) -> list[list[str]]:
    """Instructions in groups, each of one product.

    One result tile after another, in two registers by turns; the store of one comes a tile later,
    lest it wait in the store buffer for its products. Six registers hold operands, and the one
    whose next use is farthest makes room. Loads come one product before their use. Right-hand
    operands stream past: they are loaded so as not to displace the rest from the first-level cache.
    """
    order = [(index, n) for index, tile in enumerate(tiles) for n in range(len(tile.products))]
    results = 2
    uses = [operand for index, n in order for operand in tiles[index].products[n]]
    held: dict[str, int] = {}
    used: dict[str, int] = {}
    loads: list[list[str]] = [[] for _ in order]
    stores: list[list[str]] = [[] for _ in order]
    multiplied: list[str] = []
    ends: dict[int, int] = {}
    for at, (index, n) in enumerate(order):
        tile, result = tiles[index], index % results
        pair = tile.products[n]
        if n == 0 and tile.start:
            loads[at].append(_load(result, tile.start))
        for operand in pair:
            if operand not in held:
                register, free = results + len(held), 0
                if register > 7:
                    rest = uses[2 * at :]
                    idle = [x for x in held if x not in pair]
                    far = max(idle, key=lambda x: rest.index(x) if x in rest else len(rest))
                    register, free = held.pop(far), used[far] + 1
                held[operand] = register
                line = _load(register, operand, streams=operand is pair[1])
                loads[max(free, at - 1)].append(line)
            used[operand] = at
        left, right = (held[operand] for operand in pair)
        zero = "" if n or tile.start else f"  call void @llvm.x86.tilezero(i8 {result})\n"
        multiplied.append(
            f"{zero}  call void @llvm.x86.tdpbf16ps(i8 {result}, i8 {left}, i8 {right})"
        )
        ends[index] = at
    for index, tile in enumerate(tiles):
        due = ends[min(index + 1, len(tiles) - 1)]
        stores[due].append(_store(index % results, tile.to))
    return [[*a, b, *c] for a, b, c in zip(loads, multiplied, stores, strict=True)]


def _octaves(names: _Lines, lines: list[str], row: int, scores: str) -> list[str]:
    """One row of scores times the factor, from its reference: two vectors."""
    f16 = "<16 x float>"
    base = names.at(lines, "%base", row * 4)
    scalar = names.let(lines, f"load float, ptr {base}, align 4")
    one = names.let(lines, f"insertelement {f16} poison, float {scalar}, i64 0")
    shift = names.let(lines, f"shufflevector {f16} {one}, {f16} poison, <16 x i32> zeroinitializer")
    result = []
    for half in range(2):
        offset = ((row // 16) * 2 + half) * _TILE + row % 16 * 64
        at = names.at(lines, scores, offset)
        s = names.let(lines, f"load {f16}, ptr {at}, align 64")
        result.append(
            names.let(lines, f"call {f16} @llvm.fma.v16f32({f16} {s}, {f16} %c, {f16} {shift})")
        )
    return result


def _weights(names: _Lines, pieces: int, p: int, row: int, scores: str, keep: str) -> list[str]:
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
        f"{_vector(_UPPER * 8, 'i8')}, <64 x i8> {bytes_})",
    )
    found = names.let(
        lines,
        "call <64 x i8> @llvm.x86.avx512.permvar.qi.512(<64 x i8> "
        f"{_vector(_correction(), 'i8')}, <64 x i8> {index})",
    )
    low = names.let(
        lines,
        f"select <64 x i1> {_vector([1, 0] * 32, 'i1')}, <64 x i8> {found}, "
        "<64 x i8> zeroinitializer",
    )
    less = names.let(lines, f"bitcast <64 x i8> {low} to {w32}")
    bent = names.let(lines, f"call {w32} @llvm.usub.sat.v32i16({w32} {t}, {w32} {less})")
    weight = names.let(lines, f"lshr {w32} {bent}, splat (i16 {FRACTION - 7})")
    seen = names.let(lines, f"select <32 x i1> {keep}, {w32} {weight}, {w32} zeroinitializer")
    to = names.at(lines, "%made", ((row // 16) * pieces + p) * _TILE + row % 16 * 64)
    lines.append(f"  store {w32} {seen}, ptr {to}, align 64")
    return lines


def _exact_weights(
    names: _Lines, words: int, pieces: int, p: int, row: int, scores: str, keep: list[str]
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
        to = names.at(lines, "%made", tile * _TILE + row % 16 * 64)
        lines.append(f"  store {w32} {both}, ptr {to}, align 64")
    return lines


def _additions(names: _Lines, tiles: int, part: str, to: str) -> list[list[str]]:
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


def _merge(tiles: list[list[str]], vectors: list[list[str]]) -> list[str]:
    """Both kinds of work, evenly mixed."""
    rest = [line for item in vectors for line in item]
    lines: list[str] = []
    done = 0
    for i, group in enumerate(tiles):
        upto = (i + 1) * len(rest) // len(tiles)
        lines += group + rest[done:upto]
        done = upto
    return lines


def _columns(half: int) -> str:
    """The keys of a piece in the columns of one of its tiles of scores."""
    return _vector([8 * (c // 4) + c % 4 + 4 * half for c in range(16)], "i32")


@cache
def unit(chunks: int, tiles: int, words: int, pieces: int) -> Text:
    """The step of the inner loop: 32 queries against ``pieces`` pieces of keys.

    Arguments: queries and keys of this unit, whose first piece has been scored, and of the next
    one, whose first piece will be; two places for the scores of a piece, of which the first holds
    this unit's first; the 32 constants that this unit's scores in octaves start from, where its
    weights go, how many of its keys there are, the factor of scores; weights and values of the
    last unit, and its outputs, added up. Of several words those are its own instead, and three
    more follow: this unit's sums ``[32][16]``, and the outputs of the unit before the last with
    the ones to add them to.

    Args:
        chunks: 32s of elements of a head.
        tiles: 16s of elements of a head.
        words: bf16 words of an element.
        pieces: 32s of keys.
    """
    names = _Lines("t")
    name = f"zoomc_attention_rows_{chunks}_{tiles}_{words}_{pieces}"
    exact = words > 1
    head = [
        f"define void @{name}(ptr %q, ptr %k, ptr %qnext, ptr %knext, ptr %s0, ptr %s1, ptr %base,"
        " ptr %made, i32 %count, float %factor, ptr %last, ptr %v, ptr %o"
        f"{', ptr %total, ptr %part, ptr %sum' if exact else ''}) #0 {{",
        "  %c0 = insertelement <16 x float> poison, float %factor, i64 0",
        "  %c = shufflevector <16 x float> %c0, <16 x float> poison, <16 x i32> zeroinitializer",
        "  %n0 = insertelement <16 x i32> poison, i32 %count, i64 0",
        "  %n = shufflevector <16 x i32> %n0, <16 x i32> poison, <16 x i32> zeroinitializer",
        "  %m16 = trunc i32 %count to i16",
        "  %m0 = insertelement <32 x i16> poison, i16 %m16, i64 0",
        "  %m = shufflevector <32 x i16> %m0, <32 x i16> poison, <32 x i32> zeroinitializer",
    ]
    outputs = _outputs(names, head, tiles, words, pieces, "%o")
    work: list[_Tile] = []
    vectors: list[list[list[str]]] = []
    ends = []
    for p in range(pieces):
        to, scores = f"%s{(p + 1) % 2}", f"%s{p % 2}"
        if p + 1 < pieces:
            work += _scores(names, head, chunks, words, p + 1, "%q", "%k", to)
        else:
            work += _scores(names, head, chunks, words, 0, "%qnext", "%knext", to)
        work += outputs[len(outputs) * p // pieces : len(outputs) * (p + 1) // pieces]
        ends.append(sum(len(tile.products) for tile in work))
        if exact:
            both = [
                names.let(
                    head,
                    f"icmp slt <16 x i32> {_columns(half)}, "
                    + names.let(head, f"sub <16 x i32> %n, splat (i32 {PIECE * p})"),
                )
                for half in range(2)
            ]
            part = [
                _exact_weights(names, words, pieces, p, row, scores, both) for row in range(QUERIES)
            ]
            # First, before the place they come from is written again.
            vectors.append(([] if p else _additions(names, tiles, "%part", "%sum")) + part)
        else:
            first = _vector([PIECE * p + i for i in range(PIECE)], "i16")
            keep = names.let(head, f"icmp ult <32 x i16> {first}, %m")
            rows = range(QUERIES)
            vectors.append([_weights(names, pieces, p, row, scores, keep) for row in rows])
    groups = _schedule(work)
    body = []
    start = 0
    for end, part in zip(ends, vectors, strict=True):
        body += _merge(groups[start:end], part)
        start = end
    return Text(name, "\n".join([*head, *body, "  ret void", "}"]))


@cache
def apply(tiles: int, words: int, pieces: int) -> Text:
    """The outputs of the last unit: ``(weights, values, outputs)``.

    Of several words two arguments follow: outputs to add what lies at ``outputs`` to before, and
    those to add the last unit's to.
    """
    names = _Lines("t")
    name = f"zoomc_attention_apply_{tiles}_{words}_{pieces}"
    exact = words > 1
    more = ", ptr %sum, ptr %end" if exact else ""
    lines = [f"define void @{name}(ptr %last, ptr %v, ptr %o{more}) #0 {{"]
    groups = _additions(names, tiles, "%o", "%sum") if exact else []
    groups += _schedule(_outputs(names, lines, tiles, words, pieces, "%o"))
    groups += _additions(names, tiles, "%o", "%end") if exact else []
    for group in groups:
        lines += group
    return Text(name, "\n".join([*lines, "  ret void", "}"]))


def _across(names: _Lines, lines: list[str], rows: list[str]) -> str:
    """The largest lane of each of 16 vectors, in one vector: a transposition that keeps maxima."""
    f16 = "<16 x float>"
    bit = 1
    while bit < 16:
        low = [i if not i & bit else 16 + (i ^ bit) for i in range(16)]
        high = [(i | bit) if not i & bit else 16 + i for i in range(16)]
        halves = []
        for a, b in zip(rows[::2], rows[1::2], strict=True):
            one, two = (
                names.let(
                    lines, f"shufflevector {f16} {a}, {f16} {b}, <16 x i32> {_vector(order, 'i32')}"
                )
                for order in (low, high)
            )
            halves.append(
                names.let(lines, f"call {f16} @llvm.maximum.v16f32({f16} {one}, {f16} {two})")
            )
        rows = halves
        bit *= 2
    return rows[0]


@cache
def peak(chunks: int, words: int) -> Text:
    """The largest score of each of 32 queries: ``(queries, keys, pieces, count, scores, out)``.

    ``out`` takes 32 numbers, NaN where a score is NaN; ``scores`` those of the first piece.
    """
    names = _Lines("t")
    name = f"zoomc_attention_peak_{chunks}_{words}"
    f16 = "<16 x float>"
    low = f"{f16} splat (float 0xFFF0000000000000)"
    head = [
        f"define void @{name}(ptr %q, ptr %keys, i64 %pieces, i32 %count, ptr %next, ptr %out)"
        " #0 {",
        "entry:",
        f"  %tops = alloca [{QUERIES} x {f16}], align 64",
    ]
    tops = [names.at(head, "%tops", row * 64) for row in range(QUERIES)]
    head += [f"  store {low}, ptr {top}, align 64" for top in tops]
    # From the last piece to the first, whose scores then lie ready.
    loop = [
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [%pieces, %entry], [%i1, %loop]",
        "  %i1 = sub i64 %i, 1",
        f"  %ko = mul i64 %i1, {chunks * words * 2 * _TILE}",
        "  %k = getelementptr i8, ptr %keys, i64 %ko",
    ]
    for group in _schedule(_scores(names, loop, chunks, words, 0, "%q", "%k", "%next")):
        loop += group
    loop += [
        "  %done = trunc i64 %i1 to i32",
        f"  %before = mul i32 %done, {PIECE}",
        "  %rest = sub i32 %count, %before",
        "  %n0 = insertelement <16 x i32> poison, i32 %rest, i64 0",
        "  %n = shufflevector <16 x i32> %n0, <16 x i32> poison, <16 x i32> zeroinitializer",
    ]
    for half in range(2):
        loop.append(f"  %keep{half} = icmp slt <16 x i32> {_columns(half)}, %n")
    for row, top in enumerate(tops):
        value = names.let(loop, f"load {f16}, ptr {top}, align 64")
        for half in range(2):
            offset = ((row // 16) * 2 + half) * _TILE + row % 16 * 64
            at = names.at(loop, "%next", offset)
            s = names.let(loop, f"load {f16}, ptr {at}, align 64")
            s = names.let(loop, f"select <16 x i1> %keep{half}, {f16} {s}, {low}")
            value = names.let(loop, f"call {f16} @llvm.maximum.v16f32({f16} {value}, {f16} {s})")
        loop.append(f"  store {f16} {value}, ptr {top}, align 64")
    loop += [
        "  %end = icmp eq i64 %i1, 0",
        "  br i1 %end, label %last, label %loop, !llvm.loop !0",
        "last:",
    ]
    for i in range(0, QUERIES, 16):
        rows = [names.let(loop, f"load {f16}, ptr {top}, align 64") for top in tops[i : i + 16]]
        best = _across(names, loop, rows)
        loop.append(f"  store {f16} {best}, ptr {names.at(loop, '%out', i * 4)}, align 64")
    return Text(name, "\n".join([*head, *loop, "  ret void", "}"]))


SUM = Text(
    "zoomc_attention_sum",
    """define float @zoomc_attention_sum(<16 x float> %x) #0 {
  %r = call reassoc float @llvm.vector.reduce.fadd.v16f32(float -0.0, <16 x float> %x)
  ret float %r
}""",
)


def module(*functions: Text) -> str:
    """The LLVM module that defines these functions."""
    bodies = "\n".join(text.ir for text in functions)
    return _PRELUDE + bodies + "\n" + attributes(_FEATURES) + loop_without_unrolling()
