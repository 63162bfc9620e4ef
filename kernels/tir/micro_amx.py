"""Micro-kernels on AMX tiles: 2 × 2 accumulators of 16 × 16.

A worker configures the tiles once (:data:`CONFIGURE`) and releases them when done
(:data:`RELEASE`): all eight are 16 rows of 64 bytes. Tiles 0-3 accumulate, 4 and 5 hold rows of
A, 6 and 7 columns of the panel.
"""

from __future__ import annotations

from functools import cache

from .llvm import Text, attributes, loop_without_unrolling

CONFIGURE = "zoomc_tiles_configure"
RELEASE = "zoomc_tiles_release"

_TILE_BYTES = 1024
_FEATURES = ("amx-tile", "amx-bf16", "amx-int8")


def _configuration() -> str:
    palette = [1] + [0] * 15
    row_bytes = [64, 0] * 8 + [0] * 16
    rows = [16] * 8 + [0] * 8
    return "".join(f"\\{byte:02X}" for byte in palette + row_bytes + rows)


#: Declarations, and the functions that configure and release the tiles.
PRELUDE = f"""
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
declare void @llvm.prefetch.p0(ptr, i32 immarg, i32 immarg, i32 immarg)
declare void @llvm.x86.tilezero(i8 immarg)
declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)
declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)
declare void @llvm.x86.tdpbf16ps(i8 immarg, i8 immarg, i8 immarg)
declare void @llvm.x86.tdpbssd(i8 immarg, i8 immarg, i8 immarg)
@zoomc_tiles = internal constant [64 x i8] c"{_configuration()}", align 64
define void @{CONFIGURE}() #0 {{
  call void @llvm.x86.ldtilecfg(ptr @zoomc_tiles)
  ret void
}}
define void @{RELEASE}() #0 {{
  call void @llvm.x86.tilerelease()
  ret void
}}
"""


def load_tile(tile: int, pointer: str, pitch: str) -> str:
    """A line of IR that loads a tile whose rows are ``pitch`` bytes apart."""
    return f"  call void @llvm.x86.tileloadd64(i8 {tile}, ptr {pointer}, i64 {pitch})"


def products(multiply: str) -> list[str]:
    """Lines of IR that add the four products of tiles 4 and 5 with 6 and 7."""
    return [
        f"  call void @llvm.x86.{multiply}(i8 {2 * i + j}, i8 {4 + i}, i8 {6 + j})"
        for i in (0, 1)
        for j in (0, 1)
    ]


#: Lines of IR that find the bytes of a listed step in a matrix of 16-bit elements.
_LISTED = [
    "  %op = getelementptr i32, ptr %offsets, i64 %k",
    "  %oi = load i32, ptr %op, align 4",
    "  %oe = sext i32 %oi to i64",
    "  %ao = shl nsw i64 %oe, 1",
]


def _kernel(name: str, b_step: int, body: list[str], ahead: int, listed: bool) -> Text:
    """The loop over K around ``body``, which finds its operands at %pa0, %pa1 and %pb.

    A's rows are ``%pitch`` bytes apart, its K steps ``%step``, or where the elements listed from
    ``%offsets`` on say. C is ``[32][32]`` fp32, so that a
    tile's rows are 128 bytes apart, as a panel's are. Each step fetches ``ahead`` lines from a
    last argument on.
    """
    name += ("_listed" if listed else "") + (f"_{ahead}" if ahead else "")
    steps = "ptr %offsets" if listed else "i64 %step"
    soon = ", ptr %soon" if ahead else ""
    fetch = [f"  %so = mul nuw nsw i64 %k, {ahead * 64}"] if ahead else []
    for i in range(ahead):
        fetch += [
            f"  %q{i} = getelementptr i8, ptr %soon, i64 %so",
            f"  %r{i} = getelementptr i8, ptr %q{i}, i64 {i * 64}",
            f"  call void @llvm.prefetch.p0(ptr %r{i}, i32 0, i32 2, i32 1)",
        ]
    quarters = [(t, (t // 2) * 16 * 128 + (t % 2) * 64) for t in range(4)]
    lines = [
        f"define void @{name}(ptr %a0, ptr %a1, i64 %pitch, {steps}, ptr %b, i64 %n, ptr %c,"
        f" i32 %add"
        f"{soon}) #0 {{",
        "entry:",
        *(f"  %c{t} = getelementptr i8, ptr %c, i64 {offset}" for t, offset in quarters),
        "  %fresh = icmp eq i32 %add, 0",
        "  br i1 %fresh, label %zero, label %old",
        "zero:",
        *(f"  call void @llvm.x86.tilezero(i8 {t})" for t, _ in quarters),
        "  br label %loop",
        "old:",
        *(load_tile(t, f"%c{t}", "128") for t, _ in quarters),
        "  br label %loop",
        "loop:",
        "  %k = phi i64 [0, %zero], [0, %old], [%k1, %loop]",
        *(_LISTED if listed else ["  %ao = mul nuw nsw i64 %k, %step"]),
        f"  %bo = mul nuw nsw i64 %k, {b_step}",
        "  %pa0 = getelementptr i8, ptr %a0, i64 %ao",
        "  %pa1 = getelementptr i8, ptr %a1, i64 %ao",
        "  %pb = getelementptr i8, ptr %b, i64 %bo",
        *body,
        *fetch,
        "  %k1 = add nuw nsw i64 %k, 1",
        "  %end = icmp eq i64 %k1, %n",
        "  br i1 %end, label %done, label %loop, !llvm.loop !0",
        "done:",
        *(f"  call void @llvm.x86.tilestored64(i8 {t}, ptr %c{t}, i64 128)" for t, _ in quarters),
        "  ret void",
        "}",
    ]
    return Text(
        name, PRELUDE + "\n".join(lines) + "\n" + attributes(_FEATURES) + loop_without_unrolling()
    )


@cache
def bf16(ahead: int = 0, listed: bool = False) -> Text:
    """bf16 A and panel; 32 values of K a step."""
    body = [
        "  %pb1 = getelementptr i8, ptr %pb, i64 64",
        load_tile(6, "%pb", "128"),
        load_tile(4, "%pa0", "%pitch"),
        load_tile(7, "%pb1", "128"),
        load_tile(5, "%pa1", "%pitch"),
        *products("tdpbf16ps"),
    ]
    return _kernel("zoomc_tiles_bf16", 2 * _TILE_BYTES, body, ahead, listed)


@cache
def fp32_in_three(ahead: int = 0, listed: bool = False) -> Text:
    """fp32 as sums of three bf16, on both sides; 32 values of K a step.

    A row of A holds 32 high parts, 32 middle, 32 low; the panel likewise ``[3][16][32][2]``.
    Of the nine products the six largest are added: the rest is below fp32's last place. An
    infinity on either side gives a NaN or an infinity.
    """
    body: list[str] = []
    for plane in range(3):
        offset = plane * 2 * _TILE_BYTES
        body += [
            f"  %pb{plane}_0 = getelementptr i8, ptr %pb, i64 {offset}",
            f"  %pb{plane}_1 = getelementptr i8, ptr %pb, i64 {offset + 64}",
            f"  %pa{plane}_0 = getelementptr i8, ptr %pa0, i64 {plane * 64}",
            f"  %pa{plane}_1 = getelementptr i8, ptr %pa1, i64 {plane * 64}",
        ]
    held = (-1, -1)
    # In an order that changes one operand at a time where it can, and small products first.
    for a, b in ((0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0)):
        if b != held[1]:
            body += [load_tile(6, f"%pb{b}_0", "128"), load_tile(7, f"%pb{b}_1", "128")]
        if a != held[0]:
            body += [load_tile(4, f"%pa{a}_0", "%pitch"), load_tile(5, f"%pa{a}_1", "%pitch")]
        body += products("tdpbf16ps")
        held = (a, b)
    return _kernel("zoomc_tiles_fp32", 6 * _TILE_BYTES, body, ahead, listed)
