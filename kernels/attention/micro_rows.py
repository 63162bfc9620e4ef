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

from dataclasses import dataclass
from functools import cache

from ..tir.llvm import Text, attributes, loop_without_unrolling

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
    names: _Lines, lines: list[str], chunks: int, piece: int, q: str, k: str, to: str
) -> list[_Tile]:
    """The tiles of the scores of one piece of the keys at ``k``."""

    def at(base: str, tile: int) -> str:
        return names.at(lines, base, tile * _TILE)

    left = [[at(q, i * chunks + c) for c in range(chunks)] for i in range(2)]
    tiles = []
    for j in range(2):
        right = [at(k, (piece * chunks + c) * 2 + j) for c in range(chunks)]
        for i in range(2):
            tiles.append(_Tile(None, list(zip(left[i], right, strict=True)), at(to, i * 2 + j)))
    return tiles


def _outputs(names: _Lines, lines: list[str], tiles: int, pieces: int) -> list[_Tile]:
    """The tiles of the last unit's outputs."""

    def at(base: str, tile: int) -> str:
        return names.at(lines, base, tile * _TILE)

    left = [[at("%last", i * pieces + p) for p in range(pieces)] for i in range(2)]
    result = []
    for t in range(tiles + 1):
        right = [
            at("%v", p * tiles + t) if t < tiles else "@zoomc_attention_ones" for p in range(pieces)
        ]
        for i in range(2):
            to = at("%o", i * (tiles + 1) + t)
            result.append(_Tile(to, list(zip(left[i], right, strict=True)), to))
    return result


def _schedule(tiles: list[_Tile], late: int = 1, early: int = 1) -> list[list[str]]:
    """Instructions in groups, each of one product.

    One result tile after another. The store of one comes ``late`` tiles later, lest it wait in
    the store buffer for its products; loads come ``early`` products before their use. Registers
    beside the ``late + 1`` of results hold operands, and the one whose next use is farthest makes
    room. Right-hand operands stream past: they are loaded so as not to displace the rest from the
    first-level cache.
    """
    results = late + 1
    uses = [operand for tile in tiles for pair in tile.products for operand in pair]
    held: dict[str, int] = {}
    used: dict[str, int] = {}
    loads: list[list[str]] = []
    products: list[str] = []
    stores: list[list[str]] = []
    ends: list[int] = []
    for index, tile in enumerate(tiles):
        result = index % results
        for n, pair in enumerate(tile.products):
            at = len(products)
            loads.append([])
            stores.append([])
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
                    loads[max(free, at - early)].append(line)
                used[operand] = at
            left, right = (held[operand] for operand in pair)
            zero = "" if n or tile.start else f"  call void @llvm.x86.tilezero(i8 {result})\n"
            products.append(
                f"{zero}  call void @llvm.x86.tdpbf16ps(i8 {result}, i8 {left}, i8 {right})"
            )
        ends.append(len(products) - 1)
    for index, tile in enumerate(tiles):
        due = ends[min(index + late, len(tiles) - 1)]
        stores[due].append(_store(index % results, tile.to))
    return [[*a, b, *c] for a, b, c in zip(loads, products, stores, strict=True)]


def _weights(names: _Lines, pieces: int, p: int, row: int, scores: str, keep: str) -> list[str]:
    """Vector work: one row of scores of one piece of this unit to weights."""
    lines: list[str] = []
    f16, i16, w32 = "<16 x float>", "<16 x i32>", "<32 x i16>"
    base = names.at(lines, "%base", row * 4)
    scalar = names.let(lines, f"load float, ptr {base}, align 4")
    one = names.let(lines, f"insertelement {f16} poison, float {scalar}, i64 0")
    shift = names.let(lines, f"shufflevector {f16} {one}, {f16} poison, <16 x i32> zeroinitializer")
    fixed = []
    for half in range(2):
        offset = ((row // 16) * 2 + half) * _TILE + row % 16 * 64
        at = names.at(lines, scores, offset)
        s = names.let(lines, f"load {f16}, ptr {at}, align 64")
        t = names.let(lines, f"call {f16} @llvm.fma.v16f32({f16} {s}, {f16} %c, {f16} {shift})")
        fixed.append(
            names.let(
                lines,
                f"call {i16} @llvm.x86.avx512.mask.cvtps2dq.512({f16} {t}, {i16} "
                "zeroinitializer, i16 -1, i32 4)",
            )
        )
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


def _merge(tiles: list[list[str]], vectors: list[list[str]]) -> list[str]:
    """Both kinds of work, evenly mixed."""
    lines: list[str] = []
    done = 0
    for i, group in enumerate(tiles):
        lines += group
        upto = (i + 1) * len(vectors) // len(tiles)
        for item in vectors[done:upto]:
            lines += item
        done = upto
    return lines


@cache
def unit(chunks: int, tiles: int, pieces: int) -> Text:
    """The step of the inner loop: 32 queries against ``pieces`` pieces of keys.

    Arguments: queries and keys of this unit, whose first piece has been scored, and of the next
    one, whose first piece will be; two places for the scores of a piece, of which the first holds
    this unit's first; the 32 constants that this unit's scores in fixed point start from, where
    its weights go, how many of its keys there are, the factor of scores in fixed point; weights,
    values and outputs of the last unit.

    Args:
        chunks: 32s of elements of a head.
        tiles: 16s of elements of a head.
        pieces: 32s of keys.
    """
    names = _Lines("t")
    name = f"zoomc_attention_rows_{chunks}_{tiles}_{pieces}"
    head = [
        f"define void @{name}(ptr %q, ptr %k, ptr %qnext, ptr %knext, ptr %s0, ptr %s1, ptr %base,"
        " ptr %made, i32 %count, float %factor, ptr %last, ptr %v, ptr %o) #0 {",
        "  %c0 = insertelement <16 x float> poison, float %factor, i64 0",
        "  %c = shufflevector <16 x float> %c0, <16 x float> poison, <16 x i32> zeroinitializer",
        "  %n16 = trunc i32 %count to i16",
        "  %n0 = insertelement <32 x i16> poison, i16 %n16, i64 0",
        "  %n = shufflevector <32 x i16> %n0, <32 x i16> poison, <32 x i32> zeroinitializer",
    ]
    outputs = _outputs(names, head, tiles, pieces)
    body = []
    work: list[_Tile] = []
    vectors: list[list[list[str]]] = []
    ends = []
    for p in range(pieces):
        first = _vector([PIECE * p + i for i in range(PIECE)], "i16")
        keep = names.let(head, f"icmp ult <32 x i16> {first}, %n")
        to = f"%s{(p + 1) % 2}"
        if p + 1 < pieces:
            work += _scores(names, head, chunks, p + 1, "%q", "%k", to)
        else:
            work += _scores(names, head, chunks, 0, "%qnext", "%knext", to)
        work += outputs[len(outputs) * p // pieces : len(outputs) * (p + 1) // pieces]
        ends.append(sum(len(tile.products) for tile in work))
        scores = f"%s{p % 2}"
        vectors.append([_weights(names, pieces, p, row, scores, keep) for row in range(QUERIES)])
    groups = _schedule(work)
    start = 0
    for end, part in zip(ends, vectors, strict=True):
        body += _merge(groups[start:end], part)
        start = end
    return Text(name, "\n".join([*head, *body, "  ret void", "}"]))


@cache
def apply(tiles: int, pieces: int) -> Text:
    """The outputs of the last unit: ``(weights, values, outputs)``."""
    names = _Lines("t")
    name = f"zoomc_attention_apply_{tiles}_{pieces}"
    lines = [f"define void @{name}(ptr %last, ptr %v, ptr %o) #0 {{"]
    for group in _schedule(_outputs(names, lines, tiles, pieces)):
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
def peak(chunks: int) -> Text:
    """The largest score of each of 32 queries: ``(queries, keys, pieces, count, scores, out)``.

    ``out`` takes 32 numbers, NaN where a score is NaN; ``scores`` those of the first piece.
    """
    names = _Lines("t")
    name = f"zoomc_attention_peak_{chunks}"
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
        f"  %ko = mul i64 %i1, {chunks * 2 * _TILE}",
        "  %k = getelementptr i8, ptr %keys, i64 %ko",
    ]
    for group in _schedule(_scores(names, loop, chunks, 0, "%q", "%k", "%next")):
        loop += group
    loop += [
        "  %done = trunc i64 %i1 to i32",
        f"  %before = mul i32 %done, {PIECE}",
        "  %rest = sub i32 %count, %before",
        "  %n0 = insertelement <16 x i32> poison, i32 %rest, i64 0",
        "  %n = shufflevector <16 x i32> %n0, <16 x i32> poison, <16 x i32> zeroinitializer",
    ]
    for half in range(2):
        order = _vector([8 * (c // 4) + c % 4 + 4 * half for c in range(16)], "i32")
        loop.append(f"  %keep{half} = icmp slt <16 x i32> {order}, %n")
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


def module(*functions: Text) -> str:
    """The LLVM module that defines these functions."""
    bodies = "\n".join(text.ir for text in functions)
    return _PRELUDE + bodies + "\n" + attributes(_FEATURES) + loop_without_unrolling()
