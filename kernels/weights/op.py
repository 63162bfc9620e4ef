"""Encoding and decoding as operators, so that a graph of coded layers still runs in eager."""

from __future__ import annotations

import torch

from ..integer import GROUP
from ..operator import declare
from .coded import Coded, decode, unpack, unpack_pruned
from .encoder import encode
from .encoding import ENTRIES, Encoding
from .pruning import prune


def _encode(
    weight: torch.Tensor,
    encoding: str,
    gram: torch.Tensor | None = None,
    factors: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    coded = encode(weight, Encoding.parse(encoding), gram=gram, factors=factors)
    nothing = torch.empty(0, dtype=torch.int8, device=weight.device)
    table = nothing if coded.table is None else coded.table.clone()
    scale = nothing.clone() if coded.group_scale is None else coded.group_scale
    return coded.codes, table, scale, coded.channel_scale


def _encode_fake(
    weight: torch.Tensor,
    encoding: str,
    gram: torch.Tensor | None = None,
    factors: torch.Tensor | None = None,
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
    "encode(Tensor weight, str encoding, Tensor? gram=None, Tensor? factors=None)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _encode,
    _encode_fake,
)


def _decode(
    packed: torch.Tensor,
    table: torch.Tensor,
    group_scale: torch.Tensor,
    channel_scale: torch.Tensor,
    shape: list[int],
    mask: torch.Tensor | None = None,
    encoding: str = "",
) -> torch.Tensor:
    codes = _unpack(packed, table, shape, mask, encoding)
    scale = channel_scale.view(torch.float32)
    if not table.numel():
        return decode(Coded(codes, None, None, scale))
    return decode(Coded(codes, table, group_scale, scale))


#: The fp32 weight of that shape that packed codes stand for. ``table`` and ``group_scale`` are
#: empty for int8; ``channel_scale`` is the bits of fp32 numbers as int32, which nothing rounds
#: when a model is cast to another type. ``mask`` and ``encoding`` are for a pruned weight, see
#: :func:`.coded.pack_pruned`.
DECODE = declare(
    "decode(Tensor packed, Tensor table, Tensor group_scale, Tensor channel_scale, int[] shape,"
    ' Tensor? mask=None, str encoding="") -> Tensor',
    _decode,
    lambda packed, table, group_scale, channel_scale, shape, mask=None, encoding="": (
        packed.new_empty(shape, dtype=torch.float32)
    ),
)


def _unpack(
    packed: torch.Tensor,
    table: torch.Tensor,
    shape: list[int],
    mask: torch.Tensor | None = None,
    encoding: str = "",
) -> torch.Tensor:
    values, size = table if table.numel() else None, tuple(shape)
    code_bits = 8 if values is None else ENTRIES[values.numel()]
    if mask is None:
        codes = unpack(packed, code_bits, size)
    else:
        pruning = Encoding.parse(encoding).pruning
        assert pruning is not None
        codes = unpack_pruned(packed, mask, values, code_bits, size, pruning)
    return codes.view(torch.int8) if values is None else codes


#: Codes out of the bytes that hold them: as many bits each as ``table`` needs; int8 without one.
#: ``mask`` and ``encoding`` as for :data:`DECODE`.
UNPACK = declare(
    'unpack(Tensor packed, Tensor table, int[] shape, Tensor? mask=None, str encoding="")'
    " -> Tensor",
    _unpack,
    lambda packed, table, shape, mask=None, encoding="": packed.new_empty(
        shape, dtype=torch.uint8 if table.numel() else torch.int8
    ),
)


def _restore(
    values: torch.Tensor, mask: torch.Tensor, shape: list[int], encoding: str
) -> torch.Tensor:
    pruning = Encoding.parse(encoding).pruning
    assert pruning is not None
    return unpack_pruned(values, mask, None, 0, tuple(shape), pruning)


#: The weight of that shape of which a pruning left these floating values, see
#: :func:`.coded.pack_pruned`.
RESTORE = declare(
    "restore(Tensor values, Tensor mask, int[] shape, str encoding) -> Tensor",
    _restore,
    lambda values, mask, shape, encoding: values.new_empty(shape),
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
