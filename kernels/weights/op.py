"""Encoding and decoding as operators, so that a graph of coded layers still runs in eager."""

from __future__ import annotations

import torch

from ..integer import GROUP
from ..operator import declare
from .coded import Coded, decode, unpack
from .encoder import encode
from .encoding import Encoding
from .pruning import prune


def _encode(
    weight: torch.Tensor, encoding: str, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    coded = encode(weight, Encoding.parse(encoding), importance)
    nothing = torch.empty(0, dtype=torch.int8)
    table = nothing if coded.table is None else coded.table.clone()
    scale = nothing.clone() if coded.group_scale is None else coded.group_scale
    return coded.codes, table, scale, coded.channel_scale


def _encode_fake(
    weight: torch.Tensor, encoding: str, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    parsed, shape = Encoding.parse(encoding), weight.shape
    groups, entries, kind = (0,), 0, torch.int8
    if parsed.table:
        groups, entries = (shape[0], -(-shape[1] // GROUP), *shape[2:]), parsed.entries
        kind = torch.uint8
    return (
        weight.new_empty(shape, dtype=kind),
        weight.new_empty(entries, dtype=torch.int8),
        weight.new_empty(groups, dtype=torch.int8),
        weight.new_empty(shape[0], dtype=torch.float32),
    )


#: ``(codes, table, group_scale, channel_scale)`` of a weight in the encoding of that spelling, as
#: in :func:`zoomc.kernels.weights.encode`; the two in the middle are empty for int8.
ENCODE = declare(
    "encode(Tensor weight, str encoding, Tensor? importance=None)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _encode,
    _encode_fake,
)


def _decode(
    codes: torch.Tensor,
    table: torch.Tensor | None,
    group_scale: torch.Tensor | None,
    channel_scale: torch.Tensor,
) -> torch.Tensor:
    return decode(Coded(codes, table, group_scale, channel_scale))


#: The fp32 weight of a coded one.
DECODE = declare(
    "decode(Tensor codes, Tensor? table, Tensor? group_scale, Tensor channel_scale) -> Tensor",
    _decode,
    lambda codes, *_: codes.new_empty(codes.shape, dtype=torch.float32),
)


def _unpack(packed: torch.Tensor, code_bits: int, shape: list[int]) -> torch.Tensor:
    return unpack(packed, code_bits, tuple(shape))


#: Codes of 2, 4 or 8 bits out of the bytes that hold them.
UNPACK = declare(
    "unpack(Tensor packed, int code_bits, int[] shape) -> Tensor",
    _unpack,
    lambda packed, _, shape: packed.new_empty(shape),
)


def _prune(weight: torch.Tensor, encoding: str) -> torch.Tensor:
    pruning = Encoding.parse(encoding).pruning
    return weight.clone() if pruning is None else prune(weight, pruning)


#: The weight with what the encoding prunes set to zero.
PRUNE = declare(
    "prune(Tensor weight, str encoding) -> Tensor",
    _prune,
    lambda weight, _: weight.new_empty(weight.shape),
)
