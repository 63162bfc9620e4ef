"""4-bit codes to int8 through a table of 16, which lies in four 32-bit words."""

from __future__ import annotations

import triton
import triton.language as tl

#: Eight codes in the four bytes of $2 to eight int8 values: of the low nibbles in $0, of the high
#: ones in $1. The table's words are $3, $7, $11 and $15 (each comes once for every byte of $2).
#: A byte permute has four selectors of four bits, so it looks four codes up in half of the table;
#: the codes' top bits then choose between the halves.
LOOKUP = tl.constexpr(
    """
    {
    .reg .b32 code, half, low, high, first, second;
    and.b32 code, $2, 0x77777777;
    shr.u32 half, $2, 1;
    and.b32 half, half, 0x44444444;
    or.b32 half, half, 0x32103210;
    prmt.b32 low, $3, $7, code;
    prmt.b32 high, $11, $15, code;
    prmt.b32 first, low, high, half;
    shr.u32 code, code, 16;
    shr.u32 half, half, 16;
    prmt.b32 low, $3, $7, code;
    prmt.b32 high, $11, $15, code;
    prmt.b32 second, low, high, half;
    prmt.b32 $0, first, second, 0x6420;
    prmt.b32 $1, first, second, 0x7531;
    }
    """
)


@triton.jit
def pick(code, t0, t1, t2, t3):
    """The table's entry for each code, by shifts and selects alone."""
    word = tl.where(code < 8, tl.where(code < 4, t0, t1), tl.where(code < 12, t2, t3))
    return (word >> ((code & 3) * 8)).to(tl.int8)


@triton.jit
def decode(codes, table, PERMUTE: tl.constexpr):
    """int8 weights of packed codes.

    Args:
        codes: uint8 ``[N, K / 2]``, code ``2k`` in the low and ``2k + 1`` in the high nibble.
        table: points to the table's four words.
        PERMUTE: look up by NVIDIA's byte permute, three instructions for four codes.

    Returns:
        int8 ``[N, K]``.
    """
    t0 = tl.load(table)
    t1 = tl.load(table + 1)
    t2 = tl.load(table + 2)
    t3 = tl.load(table + 3)
    if PERMUTE:
        low, high = tl.inline_asm_elementwise(
            LOOKUP,
            "=r,=r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [codes, t0, t1, t2, t3],
            dtype=(tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    else:
        wide = codes.to(tl.int32)
        low = pick(wide & 15, t0, t1, t2, t3)
        high = pick(wide >> 4, t0, t1, t2, t3)
    return tl.join(low, high).reshape(codes.shape[0], codes.shape[1] * 2)
