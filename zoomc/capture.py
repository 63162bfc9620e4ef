"""From Dynamo's graph to one functional ATen graph with concrete shapes and weights bound."""

from __future__ import annotations

import copy
import operator
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import fx
from torch.export.graph_signature import OutputKind

from .errors import DeviceError, TrainingError
from .functional import functional


@dataclass
class Program:
    """A captured graph.

    Attributes:
        graph: placeholders for the inputs that change from call to call, ``get_attr`` nodes for
            weights, functional ATen operators, ``meta["val"]`` on every node.
        inputs: for each placeholder, the position of its value among the arguments of a call.
        mutated: for each of the graph's first outputs, the position of the argument that the
            model updates in place with it.
        pick: rebuilds the call's result from the graph's remaining outputs.
    """

    graph: fx.GraphModule
    inputs: list[int]
    mutated: list[int]
    pick: Callable[[Sequence[Any]], Any]


def is_weight(value: Any) -> bool:
    """Whether Dynamo handed over this input as a parameter or buffer of the model."""
    return isinstance(value, torch.nn.Parameter) or (
        isinstance(value, torch.Tensor) and hasattr(value, "_dynamo_static_input_type")
    )


def weight_names(gm: fx.GraphModule, inputs: Sequence[Any]) -> dict[int, str]:
    """Positions of the weights among a graph's inputs, with their names in the user's model.

    Weights of two models in one graph may have one name; then Dynamo's own tells them apart.
    """
    names: dict[int, str] = {}
    sources: dict[int, str] = {}
    for i, (node, value) in enumerate(
        zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True)
    ):
        if is_weight(value):
            source = getattr(node.meta.get("grapharg"), "source", None)
            name = getattr(source, "name", None) or node.name
            sources[i] = name() if callable(name) else name
            names[i] = _module_path(sources[i])
    known = Counter(names.values())
    return {i: name if known[name] == 1 else sources[i] for i, name in names.items()}


def weight_position(attribute: str) -> int | None:
    """The argument that holds a weight, from the graph attribute bound to it; else None."""
    prefix, _, position = attribute.rpartition("_")
    return int(position) if prefix == "weight" else None


def _module_path(source: str) -> str:
    """``conv.weight`` from Dynamo's ``L['self']._modules['conv']._parameters['weight']``.

    Of modules that look attributes up in their own way, as diffusers' do, Dynamo writes
    ``.__dict__['_modules']``.
    """
    tables = "_(?:modules|parameters|buffers)"
    path = re.sub(rf"\.__dict__\['{tables}'\]|\.{tables}\b", "", source)
    parts = re.findall(r"[^\[\].'\"]+", path)
    return ".".join(parts[2:]) or source  # the first two are L['self']


def check_inference(inputs: Sequence[Any]) -> None:
    """Refuse calls whose result would need a gradient.

    Raises:
        TrainingError: grad mode is on and some input or weight requires grad.
    """
    if not torch.is_grad_enabled():
        return
    if any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs):
        raise TrainingError(
            "zoomc compiles for inference, but an input or weight requires grad: call the model"
            " under torch.no_grad(), or model.requires_grad_(False) first"
        )


def check_device(inputs: Sequence[Any], device: str) -> None:
    """Refuse tensors the target cannot reach.

    Raises:
        DeviceError: a tensor lies elsewhere than on ``device``.
    """
    for x in inputs:
        if isinstance(x, torch.Tensor) and x.device.type != device:
            raise DeviceError(
                f"target {device!r} got a tensor on {x.device}: move the model and its inputs"
                f" there with .to({device!r}), or choose another target"
            )


def capture(gm: torch.nn.Module, args: Sequence[Any], weights: dict[int, str]) -> Program:
    """Export ``gm`` for these arguments.

    Args:
        gm: a module whose parameters are all inputs, as Dynamo makes it.
        args: tensors and plain numbers; shapes are taken as they are.
        weights: positions in ``args`` of weights, with their names.

    Returns:
        the program; weights are attributes ``weight_<position>`` of its graph module.

    Raises:
        TrainingError: the graph holds an operator in training mode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(_with_numbers(gm, args), tuple(args), strict=False)
        exported = functional(exported)
    graph_module = exported.graph_module
    _refuse_training(graph_module)
    inputs = _bind_weights(graph_module, exported, args, weights)
    _bind_constants(graph_module, exported)
    mutated, pick = _outputs(graph_module, exported)
    for position in mutated:
        if position in weights:
            raise NotImplementedError(f"the model updates {weights[position]!r} while it runs")
    graph_module.recompile()
    return Program(graph_module, inputs, mutated, pick)


def number_positions(gm: torch.nn.Module) -> set[int]:
    """Arguments that are Python floats in disguise.

    With ``dynamic=True`` Dynamo passes a module's floats, a norm's epsilon say, as tensors and
    reads them back with ``item()``; they are compiled in like any other number.
    """
    if not isinstance(gm, fx.GraphModule):
        return set()
    placeholders = gm.graph.find_nodes(op="placeholder")
    return {
        placeholders.index(node.args[0])
        for node in gm.graph.find_nodes(op="call_method", target="item")
        if node.args[0] in placeholders
    }


def _with_numbers(gm: torch.nn.Module, args: Sequence[Any]) -> torch.nn.Module:
    """The graph with the values of its disguised floats written in."""
    positions = number_positions(gm)
    if not positions or not isinstance(gm, fx.GraphModule):
        return gm
    gm = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    placeholders = gm.graph.find_nodes(op="placeholder")
    for position in positions:
        value = args[position].item()
        for user in list(placeholders[position].users):
            if user.op == "call_method" and user.target == "item":
                for reader in list(user.users):
                    reader.args, reader.kwargs = fx.node.map_aggregate(
                        (reader.args, reader.kwargs),
                        lambda x, user=user, value=value: value if x is user else x,
                    )
                gm.graph.erase_node(user)
    gm.recompile()
    return gm


def _bind_weights(
    gm: fx.GraphModule,
    exported: torch.export.ExportedProgram,
    args: Sequence[Any],
    weights: dict[int, str],
) -> list[int]:
    """Turn weight placeholders into attributes and drop those of plain numbers."""
    kept: list[int] = []
    by_name = {node.name: node for node in gm.graph.find_nodes(op="placeholder")}
    user_inputs = [
        spec.arg for spec in exported.graph_signature.input_specs if spec.kind.name == "USER_INPUT"
    ]
    for position, argument in enumerate(user_inputs):
        node = by_name[argument.name]
        if position in weights:
            attr = _become_attribute(gm, node, f"weight_{position}", args[position])
            attr.meta.update(weight=weights[position], position=position)
        elif isinstance(args[position], torch.Tensor):
            kept.append(position)
        else:
            gm.graph.erase_node(node)  # export has written the number into the graph
    return kept


def _bind_constants(gm: fx.GraphModule, exported: torch.export.ExportedProgram) -> None:
    """Turn placeholders of constants, as ``torch.tensor([...])`` in the model, into attributes."""
    signature = exported.graph_signature
    tables = {**exported.state_dict, **exported.constants}
    for spec in signature.input_specs:
        if spec.kind.name == "USER_INPUT" or spec.target is None:
            continue
        (node,) = (n for n in gm.graph.find_nodes(op="placeholder") if n.name == spec.arg.name)
        name = "constant_" + spec.target.replace(".", "_")
        _become_attribute(gm, node, name, tables[spec.target].detach())


def _become_attribute(
    gm: fx.GraphModule, node: fx.Node, name: str, tensor: torch.Tensor
) -> fx.Node:
    """Replace a placeholder by an attribute of the graph module that holds the tensor."""
    if isinstance(tensor, torch.nn.Parameter):
        gm.register_parameter(name, tensor)
    else:
        gm.register_buffer(name, tensor, persistent=False)
    with gm.graph.inserting_before(node):
        attr = gm.graph.get_attr(name)
    attr.meta = dict(node.meta)
    node.replace_all_uses_with(attr)
    gm.graph.erase_node(node)
    return attr


def _outputs(
    gm: fx.GraphModule, exported: torch.export.ExportedProgram
) -> tuple[list[int], Callable[[Sequence[Any]], Any]]:
    """Split the outputs into in-place updates of arguments and results; drop the plain numbers."""
    user_inputs = [
        s.arg.name for s in exported.graph_signature.input_specs if s.kind.name == "USER_INPUT"
    ]
    output = gm.graph.output_node()
    updates: list[tuple[int, fx.Node]] = []
    results: list[Any] = []
    values = cast("tuple[Any, ...]", output.args[0])
    for spec, value in zip(exported.graph_signature.output_specs, values, strict=True):
        if spec.kind is OutputKind.USER_INPUT_MUTATION:
            updates.append((user_inputs.index(spec.target), value))
        elif spec.kind is OutputKind.USER_OUTPUT:
            results.append(value)
        else:
            raise TrainingError(
                f"the model updates {spec.target!r} while it runs: call model.eval()"
            )
    nodes = list(dict.fromkeys(v for v in results if isinstance(v, fx.Node)))
    output.args = (tuple(node for _, node in updates) + tuple(nodes),)
    getters: list[Callable[[Sequence[Any]], Any]] = [
        operator.itemgetter(nodes.index(v)) if isinstance(v, fx.Node) else partial(_always, v)
        for v in results
    ]
    return [position for position, _ in updates], lambda values: [get(values) for get in getters]


def _always(value: Any, _: Sequence[Any]) -> Any:
    return value


def _refuse_training(gm: fx.GraphModule) -> None:
    """Raise on operators that behave differently in training mode."""
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        name = str(node.target)
        dropout = "dropout" in name and node.args[1] > 0 and node.args[2]
        norm = "batch_norm" in name and len(node.args) > 5 and node.args[5]
        if dropout or norm or "rrelu_with_noise" in name or name == "aten.bernoulli.p":
            raise TrainingError(
                f"the model is in training mode ({name}): call model.eval() before compiling"
            )


__all__ = [
    "Program",
    "capture",
    "check_device",
    "check_inference",
    "is_weight",
    "number_positions",
    "weight_names",
    "weight_position",
]
