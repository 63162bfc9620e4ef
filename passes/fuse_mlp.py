"""A linear of a linear becomes one operator, where the target keeps what stands between near."""

from __future__ import annotations

from torch import fx

from .constants import constant_inputs
from .context import Context, PassRecord
from .ops import LINEAR, MLP
from .rewrite import Call, Editor, Value, arguments, build, is_call, only_user, shape

#: What the second linear brings under a name of its own.
_DOWN = ("bias", "table", "group_scale", "channel_scale", "kept_steps")

#: Arguments that neither may have, beside a norm or activation of the second.
_REFUSED = {"weight_only": False, "bounds": None, "pre_activation": "none"}


def fuse_mlp(gm: fx.GraphModule, context: Context, record: PassRecord) -> None:
    """Fuse linears on coded weights with the linear they read, if nobody else reads that."""
    editor = Editor(gm)
    for node in list(gm.graph.nodes):
        fused = _fused(node)
        if fused is None:
            continue
        trial = editor.insert(fused, node)
        if context.refuses(trial, constant_inputs(trial)) is not None or not context.spend():
            editor.erase_dead(trial)
            continue
        node.replace_all_uses_with(trial)
        editor.erase_dead(node)
        record.hit("linear(linear(x, v), w) => mlp(x, v, w)")


def _fused(node: fx.Node) -> Call | None:
    if not is_call(node, LINEAR) or not is_call(node.args[0], LINEAR):
        return None
    first = node.args[0]
    up, down = arguments(first), arguments(node)
    plain = all(values[n] == v for values in (up, down) for n, v in _REFUSED.items())
    coded = up["channel_scale"] is not None and down["channel_scale"] is not None
    behind = not down["norm"] and down["activation"] == "none" and up["residual"] is None
    if not (plain and coded and behind and only_user(first)):
        return None
    values: dict[str, Value] = {n: v for n, v in up.items() if n not in _REFUSED}
    values |= {"residual": down["residual"], "down": down["weight"]}
    values |= {f"down_{name}": down[name] for name in _DOWN}
    return build(MLP, values, node, size=shape(node))
