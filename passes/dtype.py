"""Computing in another floating type than the model's.

The weights carry the compute type, and whatever meets a weight follows. What has met none yet,
such as the sines of a timestep, keeps the precision the model asked for until it does; so a
timestep of 981 is never rounded to bfloat16's 980.
"""

from __future__ import annotations

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from zoomc.kernels.weights.op import DECODE

from .context import Context, PassRecord
from .ops import TO
from .rewrite import Call, Editor, dtype, fake_like, infer, is_call, is_tensor

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _is_weight(gm: fx.GraphModule, node: fx.Node) -> bool:
    if is_call(node, DECODE):  # a weight the model stores in codes
        return True
    if node.op != "get_attr" or not is_tensor(node) or dtype(node) not in _FLOATS:
        return False
    return "weight" in node.meta or isinstance(getattr(gm, str(node.target), None), nn.Parameter)


def _infer(node: fx.Node, leaders: set[torch.dtype], wanted: torch.dtype, editor: Editor) -> None:
    """Set the value of a node whose operands of type ``leaders`` are now of type ``wanted``."""
    old = node.meta["val"]
    floats = {dtype(x) for x in node.all_input_nodes if is_tensor(x) and dtype(x) in _FLOATS}
    follows = isinstance(old, FakeTensor) and {old.dtype} == leaders and floats == {wanted}
    if follows and node.target is not TO and node.kwargs.get("dtype") is None:
        # All operands changed alike, so the result does: no need to run every node again.
        node.meta["val"] = fake_like(old, old.shape, old.stride(), wanted)
    else:
        infer(node, editor.mode)


def set_dtype(gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
    """Compute in ``context.dtype``: cast weights, cast inputs where they first meet a weight.

    Integer values keep their type; outputs return to the type they had.
    """
    wanted = context.dtype
    weights = [node for node in gm.graph.nodes if _is_weight(gm, node)]
    if wanted is None or all(dtype(node) == wanted for node in weights) or not context.spend():
        return
    record.hit(f"f(weights) => f(weights as {str(wanted).removeprefix('torch.')})")
    editor = Editor(gm)
    before = {node: dtype(node) for node in gm.graph.nodes if is_tensor(node)}
    model = {before[node] for node in weights}
    follows: set[fx.Node] = set()
    casts: dict[fx.Node, fx.Node] = {}

    def cast(node: fx.Node, to: torch.dtype, place: fx.Node) -> fx.Node:
        return editor.insert(Call(TO, (node,), {"dtype": to}, node), place)

    for node in weights:
        if before[node] != wanted:
            new = cast(node, wanted, node.next)
            node.replace_all_uses_with(new, lambda user, new=new: user is not new)
            follows.add(new)
            before[new] = before[node]
        else:
            follows.add(node)

    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node in follows:
            continue
        leaders = {before[x] for x in node.all_input_nodes if x in follows}
        if not leaders:
            continue
        for x in node.all_input_nodes:
            # Operands of different types in the model are the model's own choice.
            if is_tensor(x) and x not in follows and before[x] in leaders and dtype(x) != wanted:
                if x not in casts:
                    casts[x] = cast(x, wanted, node)
                    before[casts[x]] = before[x]
                node.replace_input_with(x, casts[x])
        asked = node.kwargs.get("dtype")
        if asked in model and asked != torch.float32:
            node.update_kwarg("dtype", wanted)
        _infer(node, leaders, wanted, editor)
        if is_tensor(node) and dtype(node) == wanted:
            follows.add(node)
        elif not is_tensor(node):  # several results, taken apart by getitem
            follows.add(node)
            before[node] = next(iter(leaders))

    output = gm.graph.output_node()
    for x in output.all_input_nodes:
        if dtype(x) != before[x]:
            output.replace_input_with(x, cast(x, before[x], output))
