"""From what export records to functional operators that passes and kernels know."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import OutputKind

aten = torch.ops.aten


def functional(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without in-place operators, composites decomposed except those kept whole.

    A program that is so from the start is returned as it is: decomposing traces it twice over,
    which takes longer than the export did.
    """
    plain = all(
        spec.kind is OutputKind.USER_OUTPUT for spec in exported.graph_signature.output_specs
    )
    if plain and all(map(_is_settled, exported.graph_module.graph.nodes)):
        return exported
    return exported.run_decompositions(dict(_decompositions()))


def _is_settled(node: fx.Node) -> bool:
    """Whether decomposing would leave the node alone, or do to it what the passes do too."""
    if node.op in ("placeholder", "output") or node.target is operator.getitem:
        return True
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable:
        return False
    if op is aten.pad.default:
        mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
        return mode == "constant"
    if op in _REWRITTEN:
        return True
    if op in _decompositions():
        return False
    return not op._can_decompose() or _base_name(op) in _WHOLE


#: Composites that the passes rewrite themselves.
_REWRITTEN = frozenset(
    {
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.dropout.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.chunk.default,
        aten.contiguous.default,
        aten.concat.default,
    }
)

#: Operators kept whole: passes match them, or kernels compute them better than their parts.
_WHOLE = frozenset(
    "conv2d linear matmul group_norm layer_norm scaled_dot_product_attention silu gelu"
    " softmax log_softmax baddbmm addmm upsample_nearest2d transpose t split split_with_sizes"
    " stack squeeze unsqueeze detach masked_fill where arange zeros ones full zeros_like ones_like"
    " new_zeros new_ones new_full addcmul addcdiv lerp clamp_min clamp_max softplus leaky_relu elu"
    " hardtanh rsub sum all std var tril triu eye roll _unsafe_view".split()
)


@cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """torch's own decompositions of everything composite, except what is kept whole."""
    table = dict(torch.export.default_decompositions().items())
    table[torch.ops.aten._native_batch_norm_legit_no_training.default] = _batch_norm
    return {op: fn for op, fn in table.items() if _base_name(op) not in _WHOLE}


def _batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch norm in inference: one multiply-add, whose factors depend on weights alone."""
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (1, -1) + (1,) * (x.dim() - 2)
    unused = x.new_zeros(0)
    return (x * scale.view(shape) + shift.view(shape)).to(x.dtype), unused, unused


def _base_name(op: Any) -> str:
    return str(getattr(op, "_schema", op)).split("(")[0].split("::")[-1].split(".")[0]


__all__ = ["functional"]
