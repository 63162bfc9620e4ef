"""A coded weight: its tensors, what they mean, and how many bits they take."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..integer import GROUP, integer_weight
from .encoding import ENTRIES, Encoding, Pruning
from .pruning import PruningError, joined, kept, mask_bits, split, unit_size


class Coded(NamedTuple):
    """An encoded weight.

    Attributes:
        codes: in the weight's shape, ``(N, K)`` or ``(O, I, KH, KW)``: int8 values themselves, or
            uint8 indices into ``table``.
        table: int8 ``(4,)``, ``(16,)`` or ``(256,)``; None where codes are values.
        group_scale: int8, 1 … 127, ``(N, ceil(K / 64))`` or ``(O, ceil(I / 64), KH, KW)``; None
            where codes are values. ``table[code] * group_scale`` lies within ±127.
        channel_scale: fp32 ``(O,)``.
    """

    codes: torch.Tensor
    table: torch.Tensor | None
    group_scale: torch.Tensor | None
    channel_scale: torch.Tensor


def decode(coded: Coded) -> torch.Tensor:
    """The weight that a coded one stands for, fp32, in its own shape."""
    scale = coded.channel_scale
    values = integer_weight(coded.codes, coded.table, coded.group_scale)
    return values.float() * scale.view(-1, *[1] * (coded.codes.dim() - 1))


def bits(coded: Coded, encoding: Encoding | None = None) -> int:
    """What a coded weight takes to store, to the bit: codes, table and both levels of scales.

    ``encoding`` is needed for a pruned weight only: then the codes of the weights kept are
    counted, and the mask that says which those are.
    """
    entries = 256 if coded.table is None else coded.table.numel()
    code_bits = ENTRIES[entries]
    total = 32 * coded.channel_scale.numel()
    if coded.table is not None and coded.group_scale is not None:
        total += 8 * (coded.table.numel() + coded.group_scale.numel())
    if encoding is None or encoding.pruning is None:
        return total + code_bits * coded.codes.numel()
    shape = tuple(coded.codes.shape)
    return total + code_bits * kept(shape, encoding.pruning) + mask_bits(shape, encoding.pruning)


def stored_bits(shape: tuple[int, ...], encoding: Encoding, element_bits: int = 32) -> int:
    """What a weight of that shape takes in an encoding, without encoding it.

    ``element_bits`` are those of the weight's own type, for weights that are kept.
    """
    count, mask = torch.Size(shape).numel(), 0
    if encoding.pruning:
        count, mask = kept(shape, encoding.pruning), mask_bits(shape, encoding.pruning)
    total = mask + count * (encoding.code_bits or element_bits)
    if encoding.kind != "keep":
        total += 32 * shape[0]
    if encoding.table:
        groups = shape[0] * -(-shape[1] // GROUP) * torch.Size(shape[2:]).numel()
        total += 8 * (encoding.entries + groups)
    return total


def pack(codes: torch.Tensor, code_bits: int) -> torch.Tensor:
    """Codes of 1 to 8 bits side by side in bytes, the first in the lowest bits: 1-D uint8."""
    flat = codes.reshape(-1)
    if code_bits == 8:
        return flat.view(torch.uint8)
    per_byte = 8 // code_bits
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % per_byte)).view(-1, per_byte)
    packed = flat[:, 0].clone()
    for i in range(1, per_byte):
        packed |= flat[:, i] << (i * code_bits)
    return packed


def unpack(packed: torch.Tensor, code_bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """What :func:`pack` packed, as uint8 of that shape."""
    if code_bits == 8:
        return packed.view(shape).clone()
    mask = (1 << code_bits) - 1
    parts = [(packed >> shift) & mask for shift in range(0, 8, code_bits)]
    return torch.stack(parts, dim=1).view(-1)[: torch.Size(shape).numel()].view(shape)


def pack_pruned(
    codes: torch.Tensor, table: torch.Tensor | None, code_bits: int, pruning: Pruning
) -> tuple[torch.Tensor, torch.Tensor]:
    """Only the codes that a pruning keeps, packed, and which those are.

    Args:
        codes: of a pruned weight, as in :class:`Coded`; or the floating weight itself.
        table: the values they stand for, with a zero among them; None where codes are values.
        code_bits: of a code; 0 leaves a floating weight's values as they are.
        pruning: the weight's.

    Returns:
        1-D uint8 tensors of :func:`kept` codes and of :func:`mask_bits` bits; floating values are
        a 1-D tensor of their own type.

    Raises:
        PruningError: more codes stand for something other than zero.
    """
    shape = tuple(codes.shape)
    values = codes if table is None else table.index_select(0, codes.flatten().int()).view(shape)
    live = split(values, pruning).ne(0).any(dim=1)
    units = split(codes, pruning)
    spare = kept(shape, pruning) // units.shape[1] - int(live.sum())
    if spare < 0:
        raise PruningError(f"a weight of shape {shape} is not pruned by {pruning}: prune it first")
    # Kept weights may round to zero: others stand in for them, so that the count is the same.
    live[(~live).nonzero().flatten()[:spare]] = True
    left = units[live]
    packed = pack(left, code_bits) if code_bits else left.flatten()
    return packed, pack(live.to(torch.uint8), 1)


def unpack_pruned(
    packed: torch.Tensor,
    mask: torch.Tensor,
    table: torch.Tensor | None,
    code_bits: int,
    shape: tuple[int, ...],
    pruning: Pruning,
) -> torch.Tensor:
    """What :func:`pack_pruned` packed, in that shape; the others are codes of zero."""
    live = unpack(mask, 1, (mask_bits(shape, pruning),)).bool()
    size = unit_size(shape, pruning)
    zero = 0 if table is None else int((table == 0).nonzero()[0])
    units = packed.new_full((len(live), size), zero)
    left = (kept(shape, pruning) // size, size)
    units[live] = unpack(packed, code_bits, left) if code_bits else packed.view(left)
    return joined(units, shape, pruning)
