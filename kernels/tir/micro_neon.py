"""Integer micro-kernels on 128-bit Arm vectors, and the decoding of codes into their panels.

Both instructions read bytes that are signed on either side, so A is stored as it is:

- ``sdot`` (dotprod): 4 columns, each the product of 4 values of K with 4 of one row;
- ``smmla`` (i8mm): 2 rows by 2 columns, each the product of 8 values of K.

A block is 8 rows by 8 columns: 16 accumulators, beside them the block's A and B of 16 values of K.
"""

from __future__ import annotations

from functools import cache

from .llvm import Text, attributes, loop_without_unrolling

ROWS, COLUMNS = 8, 8

#: Values of K that one turn of the loop multiplies: what a vector of a row's bytes holds.
_TURN = 16


@cache
def dot(step: int) -> Text:
    """The micro-kernel of ``sdot``; its panels are ``[K / 4][8][4]``, its steps ``step`` long."""
    call = "call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8"
    body: list[str] = []
    for i in range(ROWS):
        body.append(f"  %q{i} = bitcast <16 x i8> %a{i} to <4 x i32>")
    last = {(i, j): f"%s{i}_{j}" for i in range(ROWS) for j in (0, 1)}
    for word in range(4):
        for i in range(ROWS):
            lane = ", ".join([f"i32 {word}"] * 4)
            body += [
                f"  %v{i}_{word} = shufflevector <4 x i32> %q{i}, <4 x i32> poison, "
                f"<4 x i32> <{lane}>",
                f"  %w{i}_{word} = bitcast <4 x i32> %v{i}_{word} to <16 x i8>",
            ]
            for j in (0, 1):
                new = f"%n{i}_{j}" if word == 3 else f"%m{i}_{j}_{word}"
                body.append(
                    f"  {new} = {call}(<4 x i32> {last[i, j]}, <16 x i8> %b{2 * word + j}, "
                    f"<16 x i8> %w{i}_{word})"
                )
                last[i, j] = new
    return _kernel("zoomc_sdot_int8", "sdot", step, body, [], "%n", ("neon", "dotprod"))


@cache
def matrix(step: int) -> Text:
    """The micro-kernel of ``smmla``; its panels are ``[K / 8][8][8]``, its steps ``step`` long.

    Accumulator ``p, q`` is rows ``2p, 2p + 1`` by columns ``2q, 2q + 1``; accumulators are named
    as a row's halves are (:func:`_kernel`), which they become in the end.
    """
    call = "call <4 x i32> @llvm.aarch64.neon.smmla.v4i32.v16i8"
    body: list[str] = []
    pairs = [(p, q) for p in range(ROWS // 2) for q in range(COLUMNS // 2)]
    named = {(p, q): f"{2 * p + q // 2}_{q % 2}" for p, q in pairs}
    last = {pair: f"%s{named[pair]}" for pair in pairs}
    for half in (0, 1):
        lanes = ", ".join(f"i32 {source + 8 * half + k}" for source in (0, 16) for k in range(8))
        for p in range(ROWS // 2):
            body.append(
                f"  %w{p}_{half} = shufflevector <16 x i8> %a{2 * p}, <16 x i8> %a{2 * p + 1}, "
                f"<16 x i32> <{lanes}>"
            )
        for p, q in pairs:
            new = f"%n{named[p, q]}" if half else f"%m{named[p, q]}"
            body.append(
                f"  {new} = {call}(<4 x i32> {last[p, q]}, <16 x i8> %w{p}_{half}, "
                f"<16 x i8> %b{4 * half + q})"
            )
            last[p, q] = new
    rows = []
    for i in range(ROWS):
        low = 2 * (i % 2)  # a pair's first row is the accumulators' lower half
        for j in (0, 1):
            left, right = (named[i // 2, 2 * j + side] for side in (0, 1))
            rows.append(
                f"  %r{i}_{j} = shufflevector <4 x i32> %n{left}, <4 x i32> %n{right}, "
                f"<4 x i32> <i32 {low}, i32 {low + 1}, i32 {low + 4}, i32 {low + 5}>"
            )
    return _kernel("zoomc_smmla_int8", "smmla", step, body, rows, "%r", ("neon", "i8mm"))


def _kernel(
    name: str,
    instruction: str,
    step: int,
    body: list[str],
    rows: list[str],
    result: str,
    features: tuple[str, ...],
) -> Text:
    """The loop around 16 values of K, from accumulators ``%s{i}_{j}`` to ``%n{i}_{j}``.

    ``body`` multiplies ``%a{row}`` by ``%b0`` … ``%b7``, 128 bytes of the panel; ``rows`` makes
    what the loop leaves into halves of C's rows, named ``result`` and ``{row}_{half}``.
    """
    tile = [(i, j) for i in range(ROWS) for j in (0, 1)]
    turns = step // _TURN
    signature = f"@llvm.aarch64.neon.{instruction}.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)"
    out = [
        f"declare <4 x i32> {signature}",
        f"define void @{name}(ptr %a, ptr %offsets, ptr %b, i64 %n, ptr %c, i32 %add) #0 {{",
        "entry:",
        f"  %total = mul nuw nsw i64 %n, {turns}",
        "  br label %loop",
        "loop:",
        "  %k = phi i64 [0, %entry], [%k1, %loop]",
        *(
            f"  %s{i}_{j} = phi <4 x i32> [zeroinitializer, %entry], [%n{i}_{j}, %loop]"
            for i, j in tile
        ),
        f"  %step = udiv i64 %k, {turns}",
        f"  %turn = urem i64 %k, {turns}",
        "  %op = getelementptr i32, ptr %offsets, i64 %step",
        "  %oi = load i32, ptr %op, align 4",
        "  %o = sext i32 %oi to i64",
        "  %ao = getelementptr i8, ptr %a, i64 %o",
        f"  %to = mul nuw nsw i64 %turn, {_TURN}",
        "  %ap = getelementptr i8, ptr %ao, i64 %to",
        f"  %bo = mul nuw nsw i64 %k, {_TURN * COLUMNS}",
        "  %bp = getelementptr i8, ptr %b, i64 %bo",
    ]
    for i in range(ROWS):
        out += [
            f"  %ap{i} = getelementptr i8, ptr %ap, i64 {i * step}",
            f"  %a{i} = load <16 x i8>, ptr %ap{i}, align 16",
        ]
    for i in range(_TURN * COLUMNS // 16):
        out += [
            f"  %bp{i} = getelementptr i8, ptr %bp, i64 {i * 16}",
            f"  %b{i} = load <16 x i8>, ptr %bp{i}, align 16",
        ]
    out += [
        *body,
        "  %k1 = add nuw nsw i64 %k, 1",
        "  %end = icmp eq i64 %k1, %total",
        "  br i1 %end, label %done, label %loop, !llvm.loop !0",
        "done:",
        *rows,
        "  %fresh = icmp eq i32 %add, 0",
        "  br i1 %fresh, label %first, label %more",
    ]
    for label, sums in (("first", result), ("more", "%t")):
        out.append(f"{label}:")
        for i, j in tile:
            at = f"%{label}{i}_{j}"
            out.append(f"  {at} = getelementptr i8, ptr %c, i64 {(2 * i + j) * 16}")
            if label == "more":
                out += [
                    f"  %i{i}_{j} = load <4 x i32>, ptr {at}, align 16",
                    f"  %t{i}_{j} = add <4 x i32> %i{i}_{j}, {result}{i}_{j}",
                ]
            out.append(f"  store <4 x i32> {sums}{i}_{j}, ptr {at}, align 16")
        out.append("  ret void")
    out.append("}")
    return Text(name, "\n".join(out) + "\n" + attributes(features) + loop_without_unrolling())


@cache
def decode(bits: int, columns: int, packed: int, step: int) -> Text:
    """Decoding by ``tbl``, 16 weights at a time; what :meth:`.codes.Codes.decode` calls."""
    name = f"zoomc_decode{bits}_neon_{columns}x{packed}"
    vector, per = "<16 x i8>", 8 // bits
    total = step * columns // 16
    apart = columns * packed // 16  # scale vectors: a panel row is that many vectors long
    lookup = "@llvm.aarch64.neon.tbl1.v16i8"
    out = [
        f"declare {vector} {lookup}({vector}, {vector})",
        f"define void @{name}(ptr %codes, ptr %scales, ptr %table, ptr %out, i64 %n) #0 {{",
        "entry:",
        f"  %t = load {vector}, ptr %table, align 1",
        "  br label %loop",
        "loop:",
        "  %k = phi i64 [0, %entry], [%k1, %loop]",
        f"  %so = mul nuw nsw i64 %k, {columns}",
        "  %sp = getelementptr i8, ptr %scales, i64 %so",
        f"  %sb = load <{columns} x i8>, ptr %sp, align 1",
        f"  %co = mul nuw nsw i64 %k, {step * columns * bits // 8}",
        "  %cp = getelementptr i8, ptr %codes, i64 %co",
        f"  %oo = mul nuw nsw i64 %k, {step * columns}",
        "  %op = getelementptr i8, ptr %out, i64 %oo",
    ]
    for v in range(apart):
        lanes = ", ".join(f"i32 {(16 * v + i) // packed}" for i in range(16))
        out.append(
            f"  %s{v} = shufflevector <{columns} x i8> %sb, <{columns} x i8> poison, "
            f"<16 x i32> <{lanes}>"
        )
    for c in range(total // per):
        out += [
            f"  %cp{c} = getelementptr i8, ptr %cp, i64 {c * 16}",
            f"  %c{c} = load {vector}, ptr %cp{c}, align 1",
        ]
        for i in range(per):
            v = c * per + i
            out += [
                f"  %h{v} = lshr {vector} %c{c}, splat (i8 {i * bits})",
                f"  %i{v} = and {vector} %h{v}, splat (i8 {2**bits - 1})",
                f"  %w{v} = call {vector} {lookup}({vector} %t, {vector} %i{v})",
                f"  %y{v} = mul {vector} %w{v}, %s{v % apart}",
                f"  %yp{v} = getelementptr i8, ptr %op, i64 {v * 16}",
                f"  store {vector} %y{v}, ptr %yp{v}, align 1",
            ]
    out += [
        "  %k1 = add nuw nsw i64 %k, 1",
        "  %end = icmp eq i64 %k1, %n",
        "  br i1 %end, label %done, label %loop",
        "done:",
        "  ret void",
        "}",
    ]
    return Text(name, "\n".join(out) + "\n" + attributes(("neon",)))
