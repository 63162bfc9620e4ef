"""The operators that rules speak of, by short names; importing this registers zoomc's own."""

from __future__ import annotations

import torch
from zoomc.kernels.attention import op as _attention  # noqa: F401
from zoomc.kernels.conv2d import op as _conv2d  # noqa: F401
from zoomc.kernels.linear import op as _linear  # noqa: F401
from zoomc.kernels.mlp import op as _mlp  # noqa: F401
from zoomc.kernels.norm import op as _norm  # noqa: F401

aten = torch.ops.aten
RESHAPE = aten.reshape.default
PERMUTE = aten.permute.default
EXPAND = aten.expand.default
SLICE = aten.slice.Tensor
CAT = aten.cat.default
PAD = aten.constant_pad_nd.default
ADD = aten.add.Tensor
MUL = aten.mul.Tensor
TO = aten._to_copy.default

CONV2D = torch.ops.zoomc.conv2d.default
LINEAR = torch.ops.zoomc.linear.default
MLP = torch.ops.zoomc.mlp.default
MATMUL = torch.ops.zoomc.matmul.default
ATTENTION = torch.ops.zoomc.attention.default
GROUP_NORM = torch.ops.zoomc.group_norm.default
LAYER_NORM = torch.ops.zoomc.layer_norm.default
