"""Attention by rows on AMX: LLVM text of the inner step, tile products beside vector work.

Tile instructions run on a unit of their own, but a core looks only some 500 instructions ahead:
they overlap with the exponentials only where both stand side by side in the code. One step
therefore works on three units of work, each :data:`QUERIES` queries against a block of keys: it
computes the scores of the next unit, turns those of this one into weights, and multiplies those
of the last one by the values.

Weights of one word are made with 32 keys to a vector. A score in octaves becomes a 16-bit
fixed-point number with 9 bits of fraction (the conversion saturates, so what is too small becomes
zero). Its upper bits are the exponent of ``2^t``; subtracting ``f - (2^f - 1)``, looked up by the
upper 6 bits of the fraction f, turns the rest into the mantissa, and a shift leaves a bf16.

Layouts, in tiles of 16 rows of 64 bytes:

- queries ``[2][word][chunk][16 queries][32 elements]``
- keys ``[piece][word][chunk][2][16 pairs of elements][16 keys]``; a piece is 32 keys
- scores of a piece ``[2][2][16 queries][16 keys]``
- weights ``[2][piece][word][16 queries][32 keys]``
- values ``[piece][word][tile][16 pairs of keys][16 elements]``
- outputs ``[2][tile][16 queries][16 elements]``; of one word there is one tile more, which holds
  each query's sum of weights, 16 times: the weights times a tile of ones

Column c of the first tile of scores in a piece is key ``8 (c / 4) + c % 4``, of the second 4 more:
the order in which two vectors of 32 bits are packed to one of 16.

What bounds it, a core, for each product of tiles: the tile unit takes 16 cycles, and while it works
floating point has one port of two and storing a tile takes the other for 16 cycles. So integer
instructions make the weights where they can, and sums of weights are left to the tile unit.
"""

from __future__ import annotations

from functools import cache

from ..tir.llvm import Text, attributes, loop_without_unrolling
from .micro_tiles import TILE, Lines, Tile, outputs, schedule, scores
from .micro_weights import additions, exact_weights, vector, weights

QUERIES = 32  # queries of a unit
PIECE = 32  # keys of a piece
#: Added to a score in fixed point, so that the last shift rounds.
ROUND = 2

_FEATURES = (
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "avx512bf16",
    "amx-tile",
    "amx-bf16",
)

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
    return vector([8 * (c // 4) + c % 4 + 4 * half for c in range(16)], "i32")


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
    names = Lines("t")
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
    applied = outputs(names, head, tiles, words, pieces, "%o")
    work: list[Tile] = []
    vectors: list[list[list[str]]] = []
    ends = []
    for p in range(pieces):
        to, scored = f"%s{(p + 1) % 2}", f"%s{p % 2}"
        if p + 1 < pieces:
            work += scores(names, head, chunks, words, p + 1, "%q", "%k", to)
        else:
            work += scores(names, head, chunks, words, 0, "%qnext", "%knext", to)
        work += applied[len(applied) * p // pieces : len(applied) * (p + 1) // pieces]
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
                exact_weights(names, words, pieces, p, row, scored, both) for row in range(QUERIES)
            ]
            # In the first half, before the products of outputs: they overwrite ``part``.
            vectors.append(([] if p else additions(names, tiles, "%part", "%sum")) + part)
        else:
            first = vector([PIECE * p + i for i in range(PIECE)], "i16")
            keep = names.let(head, f"icmp ult <32 x i16> {first}, %m")
            rows = range(QUERIES)
            vectors.append([weights(names, pieces, p, row, scored, keep) for row in rows])
    groups = schedule(work)
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
    names = Lines("t")
    name = f"zoomc_attention_apply_{tiles}_{words}_{pieces}"
    exact = words > 1
    more = ", ptr %sum, ptr %end" if exact else ""
    lines = [f"define void @{name}(ptr %last, ptr %v, ptr %o{more}) #0 {{"]
    groups = additions(names, tiles, "%o", "%sum") if exact else []
    groups += schedule(outputs(names, lines, tiles, words, pieces, "%o"))
    groups += additions(names, tiles, "%o", "%end") if exact else []
    for group in groups:
        lines += group
    return Text(name, "\n".join([*lines, "  ret void", "}"]))


def _across(names: Lines, lines: list[str], rows: list[str]) -> str:
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
                    lines, f"shufflevector {f16} {a}, {f16} {b}, <16 x i32> {vector(order, 'i32')}"
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
    names = Lines("t")
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
        f"  %ko = mul i64 %i1, {chunks * words * 2 * TILE}",
        "  %k = getelementptr i8, ptr %keys, i64 %ko",
    ]
    for group in schedule(scores(names, loop, chunks, words, 0, "%q", "%k", "%next")):
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
            offset = ((row // 16) * 2 + half) * TILE + row % 16 * 64
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
