"""Weights and everything computed from weights alone: evaluated, packed, shared, refreshed."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from ..kernels.tir.kernel import Operand
from .pages import CODES, page_out

#: Bytes from which on a packed constant gets pages of its own.
_LARGE = 1 << 20

#: Bytes of weights read between two looks for free memory to give back: packing leaves holes as
#: large as what it reads, also where it makes a quarter of it.
_TRIM = 128 << 20

#: Gives the current tensor of a weight's attribute, None for any other attribute.
Weights = Callable[[str], torch.Tensor | None]


def constant_nodes(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes the passes marked as computed from weights alone, and the weights themselves."""
    return {node for node in gm.graph.nodes if node.op == "get_attr" or node.meta.get("constant")}


def fingerprint(node: fx.Node) -> Hashable:
    """What a constant node computes, by structure, so that graph variants share its value."""
    if node.op == "get_attr":
        weight = node.meta.get("weight")
        return weight or ("constant", id(attribute(node)))

    def leaf(x: Any) -> Hashable:
        if isinstance(x, fx.Node):
            return fingerprint(x)
        if isinstance(x, (list, tuple)):
            return tuple(map(leaf, x))
        return repr(x)

    arguments = (leaf(node.args), tuple((k, leaf(v)) for k, v in sorted(node.kwargs.items())))
    return (str(node.target), *arguments)


def attribute(node: fx.Node) -> torch.Tensor:
    """The tensor a ``get_attr`` node names in its graph module."""
    return getattr(node.graph.owning_module, str(node.target))  # type: ignore[no-any-return]


class Constants:
    """Packed constants, one copy each, shared by every variant that needs them.

    Nothing is evaluated before it is asked for, and intermediate results are dropped at once:
    packing a model never holds more than the model, the packed copy and the layer at hand.
    """

    def __init__(self, weights: Weights, shared: Constants | None = None) -> None:
        """``weights`` gives the current tensor of a weight; ``shared`` packs the same ones."""
        self._weights = weights
        self._since_trim = 0
        self._packed: weakref.WeakValueDictionary[Hashable, torch.Tensor] = (
            shared._packed if shared else weakref.WeakValueDictionary()
        )
        #: The last call with several results, as encoding a weight is: a layer packs them one
        #: after the other, and computing them again for each would take as many times as long.
        self._several: tuple[Hashable, Any] | None = None
        #: Codes read since memory was looked after: of them too, the packed copy is the only one
        #: that has to stay.
        self._codes: list[torch.Tensor] = []

    def evaluate(self, node: fx.Node) -> torch.Tensor:
        """The value of a constant node, computed in eager."""
        values: dict[fx.Node, Any] = {}
        for needed in _ancestors(node, self._known):
            known = self._known(needed)
            if known is not None:
                values[needed] = known
            elif needed.op == "get_attr":
                weight = self._weights(str(needed.target))
                values[needed] = (attribute(needed) if weight is None else weight).detach()
                self._since_trim += values[needed].nbytes
                if values[needed].dtype in CODES:
                    self._codes.append(values[needed])
            else:
                args, kwargs = fx.map_arg((needed.args, needed.kwargs), values.__getitem__)
                if _has_several(needed):
                    self._several = None  # not to be held beside what takes its place
                with torch.no_grad():
                    values[needed] = needed.target(*args, **kwargs)  # type: ignore[operator]
                if _has_several(needed):
                    self._several = fingerprint(needed), values[needed]
        return values[node]

    def _known(self, node: fx.Node) -> Any:
        """The value of the call with several results that was evaluated last."""
        if self._several is None or not _has_several(node):
            return None
        key, value = self._several
        return value if key == fingerprint(node) else None

    def settle(self) -> None:
        """Everything is packed: let go of what was only kept on the way."""
        self._several = None
        self._look_after_memory()

    def packed(self, operand: Operand) -> torch.Tensor:
        """The operand's tensor as its kernel expects it: laid out, dense, aligned to 64 bytes."""
        sources = [value.source for value in operand.values]
        layout = operand.pack.key if operand.pack else None
        key = (tuple(map(fingerprint, sources)), layout)
        tensor = self._packed.get(key)
        if tensor is None:
            values = [self.evaluate(node).detach() for node in sources]
            tensor = operand.tensor(values, partial(room, device=values[0].device))
            if not operand.pack:
                tensor = settled(tensor.contiguous())
            self._packed[key] = tensor
            del values
            if self._since_trim > _TRIM:
                self._look_after_memory()
        return tensor

    def _look_after_memory(self) -> None:
        for codes in self._codes:
            page_out(codes)
        self._codes.clear()
        if self._since_trim > _LARGE:
            trim()
        self._since_trim = 0

    def forget(self) -> None:
        """Drop every packed copy, so that the next request packs the current weights."""
        self._packed.clear()
        self._several = None

    def nbytes(self) -> int:
        """Bytes held in packed copies."""
        return sum(t.nbytes for t in self._packed.values())


def _has_several(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


def _ancestors(node: fx.Node, known: Callable[[fx.Node], Any]) -> Iterable[fx.Node]:
    """The node and all it depends on, each after what it depends on, up to known values."""
    seen: dict[fx.Node, None] = {}
    stack = [(node, False)]
    while stack:
        current, ready = stack.pop()
        if ready:
            seen[current] = None
        elif current not in seen:
            stack.append((current, True))
            if known(current) is None:
                stack.extend((n, False) for n in current.all_input_nodes)
    return seen


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if its memory does not start at a multiple of 64 bytes."""
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def settled(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, aligned and, where it is large, in pages of its own.

    What lives as long as the model must not lie between short-lived tensors in the allocator's
    memory: the holes they leave could never be given back.
    """
    if tensor.nbytes < _LARGE or tensor.device.type != "cpu":
        return aligned(tensor)
    return room(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def room(
    shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """An uninitialised tensor, aligned to 64 bytes; a large one on a CPU in pages of its own."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE or torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)


def trim() -> None:
    """Give memory that the allocator holds but nobody uses back to the system.

    glibc keeps what packing frees, which would add half a gigabyte to an SD2 UNet's peak. Other
    allocators give back by themselves, or have no such call.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
