"""What the kernels of coded linears and convolutions share: what they take, and their constants."""

from __future__ import annotations

import torch

from ..integer import LONGEST
from .integer_product import IntegerProduct
from .kernel import Call, Operand, Unsupported
from .pack import column_operand

_DTYPES = {torch.float32, torch.bfloat16, torch.float16}
_CODES = ("weight", "table", "group_scale", "channel_scale", "bias", "bounds")


def check(call: Call, dtypes: set[torch.dtype], k: int) -> None:
    """Refuse coded calls that no integer kernel takes.

    Raises:
        Unsupported: activations other than fp32, bf16, fp16, or mixed, or not to be quantised;
            codes known only at run time; sums that could leave int32.
    """
    if call["weight_only"]:
        raise Unsupported("coded weights with activations that are not quantised")
    if len(dtypes) > 1 or not dtypes <= _DTYPES:
        raise Unsupported(f"activations of {', '.join(map(str, dtypes))} with coded weights")
    if any(call[n] is not None and not call[n].constant for n in _CODES):
        raise Unsupported("coded weights that are not constants")
    if k > LONGEST:
        raise Unsupported(f"int8 products of {k} values, whose sums may leave int32")


def operands(call: Call, product: IntegerProduct, zero: int) -> dict[str, Operand]:
    """The packed constants of a coded call, by name; ``zero`` is for :meth:`.Codes.correction`."""
    weight, table, group_scale = (call[n] for n in _CODES[:3])
    codes = product.codes
    named = {"panels": codes.operand(weight, table, group_scale)}
    if codes.pruned:
        named["offsets"] = codes.offsets(weight, table, product.places)
    if codes.bits < 8:
        named["table"] = codes.table(table)
    named["factors"] = column_operand(call["channel_scale"], codes.micro, codes.gated)
    if zero:
        named["correction"] = codes.correction(weight, table, group_scale, zero)
    if call["bias"] is not None:
        named["columns"] = column_operand(call["bias"], codes.micro, codes.gated)
    if call["bounds"] is not None:
        named["bounds"] = Operand((call["bounds"],))
    return named
