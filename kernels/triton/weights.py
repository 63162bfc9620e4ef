"""How a product's weights lie in memory: one row a column of the result, ``k`` innermost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import integer
from ..tir.kernel import Call, Operand, Pack, TensorSpec, Unsupported, Value


def padded(channels: int, coded: bool) -> int:
    """Channels with zeros added to whole blocks of ``k``, and of groups where weights are coded."""
    if coded or channels >= 64:
        return -(-channels // 64) * 64
    return max(16, 1 << (channels - 1).bit_length())


@dataclass(frozen=True)
class Order:
    """Which weight lies where.

    Attributes:
        channels: of each input.
        depths: of each input, padded.
        taps: positions of the filter.
        gated: columns alternate between value and gate.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    taps: int
    gated: bool

    @property
    def depth(self) -> int:
        """Length of a row."""
        return self.taps * sum(self.depths)

    def columns(self, tensor: torch.Tensor) -> torch.Tensor:
        """What belongs to columns, in their order."""
        if not self.gated:
            return tensor
        return tensor.unflatten(0, (2, -1)).transpose(0, 1).reshape(tensor.shape)

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """``(N, C, ...)`` as ``[N, depth]``."""
        columns = self.columns(weight)
        weight = columns.reshape(columns.shape[0], sum(self.channels), self.taps)
        parts = []
        for part, depth in zip(weight.split(self.channels, 1), self.depths, strict=True):
            full = part.new_zeros(part.shape[0], self.taps, depth)
            full[:, :, : part.shape[1]] = part.transpose(1, 2)
            parts.append(full.flatten(1))
        return torch.cat(parts, 1)


@dataclass(frozen=True)
class Weights:
    """The operands that make a call's weights, and what they are.

    ``bits`` is 16 or 32 for floating weights, 8 for int8, 4 for codes.
    """

    operands: dict[str, Operand]
    bits: int


def _constant(value: Value) -> Value:
    if not value.constant:
        raise Unsupported("weights that are computed anew at every call")
    return value


def _pack(
    values: Sequence[Value],
    key: tuple[Any, ...],
    fn: Callable[..., torch.Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Operand:
    constants = tuple(_constant(v) for v in values)
    return Operand(constants, Pack.of(("triton", *key), fn, TensorSpec(shape, dtype)))


def pack(call: Call, order: Order) -> Weights:
    """The weights of a linear or a convolution.

    Raises:
        Unsupported: they are not constant, or their table is of no known size.
    """
    weight: Value = call["weight"]
    columns = weight.spec.shape[0]
    shape = (columns, order.depth)
    if call["channel_scale"] is None:
        dtype = weight.spec.dtype
        operand = _pack([weight], ("rows", order), order.rows, shape, dtype)
        return Weights({"w": operand}, 8 * dtype.itemsize)
    operands = {"channel_scale": column(call["channel_scale"], order)}
    table, scale = call["table"], call["group_scale"]
    if table is None and scale is None:
        operands["w"] = _pack([weight], ("rows", order), order.rows, shape, torch.int8)
        return Weights(operands, 8)
    if table is None or scale is None:
        raise Unsupported("a table without group scales, or group scales without a table")
    (entries,) = table.spec.shape
    if entries == 256:  # a code is as long as what it stands for

        def values(codes: torch.Tensor, table: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return order.rows(integer.integer_weight(codes, table, scale))

        operands["w"] = _pack([weight, table, scale], ("values", order), values, shape, torch.int8)
        return Weights(operands, 8)
    if entries not in (4, 16):
        raise Unsupported(f"codes for {entries} values")

    def nibbles(codes: torch.Tensor) -> torch.Tensor:
        rows = order.rows(codes).view(columns, -1, 2)
        return rows[:, :, 0] | rows[:, :, 1] << 4

    def words(table: torch.Tensor) -> torch.Tensor:
        full = table.new_zeros(16)
        full[:entries] = table
        return full.view(torch.int32)

    groups = dataclasses.replace(
        order,
        channels=tuple(-(-c // integer.GROUP) for c in order.channels),
        depths=tuple(d // integer.GROUP for d in order.depths),
    )
    size = (columns, order.depth // 2)
    operands["w"] = _pack([weight], ("nibbles", order), nibbles, size, torch.uint8)
    operands["table"] = _pack([table], ("words",), words, (4,), torch.int32)
    operands["group_scale"] = _pack(
        [scale], ("rows", groups), groups.rows, (columns, order.depth // 64), torch.int8
    )
    return Weights(operands, 4)


def column_sums(call: Call, order: Order) -> Operand:
    """What coded weights of a column add up to, with what padding is decoded to: int32.

    Raises:
        Unsupported: the weights are not constant.
    """
    values = [call[n] for n in ("weight", "table", "group_scale") if call[n] is not None]

    def sums(
        weight: torch.Tensor, table: torch.Tensor | None = None, scale: torch.Tensor | None = None
    ) -> torch.Tensor:
        if table is not None and len(table) == 256:  # padded with values, which are 0
            weight, table, scale = integer.integer_weight(weight, table, scale), None, None
        return integer.column_sums(weight, table, scale)

    return _pack(values, ("sums", order), sums, call["channel_scale"].spec.shape, torch.int32)


def column(value: Value, order: Order) -> Operand:
    """An operand with one element a column, a bias say."""
    if not order.gated:
        return Operand((value,))
    return _pack([value], ("columns", order.gated), order.columns, value.spec.shape,
                 value.spec.dtype)  # fmt: skip
