"""Values that depend on one input alone, kept while that input stays as it is.

A denoising loop calls a step with the same prompt again and again: keys and values of the cross
attention come out the same each time. And every picture goes through the same timesteps, whose
projections are a few numbers each.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import fx

from .plan import Plan

_MEMCMP = ctypes.CDLL(None).memcmp
_MEMCMP.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

#: Multiplies and adds from which on an input's own work is worth a look at the input.
WORTH = 10**8

#: Bytes of an input up to which it is compared with the one before.
SMALL = 4 << 20

#: Bytes of an input up to which results are kept for many values of it.
TINY = 256

#: As :data:`WORTH`, for such inputs: their few rows make weights the work.
WORTH_TINY = 10**7

#: Values of a tiny input, and bytes of their results, that are kept at most.
VALUES, HELD = 256, 64 << 20


def own_work(gm: fx.GraphModule, plan: Plan) -> dict[fx.Node, set[fx.Node]]:
    """The compiled nodes that depend on one placeholder alone, where they are worth keeping.

    More than half of a graph's work is never kept: what depends on one input alone is then the
    point of the graph, and a caller who repeats a call wants it run again.
    """
    sources: dict[fx.Node, frozenset[fx.Node]] = {}
    own: dict[fx.Node, set[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder" or node in plan.fallbacks or node in plan.elsewhere:
            sources[node] = frozenset([node])
            continue
        sources[node] = frozenset().union(*(sources[n] for n in node.all_input_nodes))
        if node in plan.constant or node.op != "call_function" or len(sources[node]) != 1:
            continue
        (source,) = sources[node]
        if source.op == "placeholder" and node.users:
            own.setdefault(source, set()).add(node)

    def work(nodes: set[fx.Node]) -> int:
        return sum(plan.kernels[node].flops for node in nodes if node in plan.kernels)

    total = work(set(plan.kernels))
    return {
        source: nodes
        for source, nodes in own.items()
        if (WORTH_TINY if tiny(source) else WORTH) <= work(nodes) <= total / 2
    }


def tiny(source: fx.Node) -> bool:
    """Whether results are kept for many values of an input."""
    return bool(source.meta["val"].nbytes <= TINY)


class Recent:
    """Results by the bits of the input they depend on, the least recently used dropped first."""

    def __init__(self) -> None:
        self._results: OrderedDict[bytes, list[torch.Tensor]] = OrderedDict()
        self._held = 0

    def find(self, value: torch.Tensor) -> list[torch.Tensor] | None:
        """The results for a dense tensor's bits, if they are here."""
        key = _bits(value)
        if key in self._results:
            self._results.move_to_end(key)
        return self._results.get(key)

    def keep(self, value: torch.Tensor, results: list[torch.Tensor]) -> None:
        """Take results that nobody writes to."""
        self._held -= _size(self._results.pop(_bits(value), []))
        self._results[_bits(value)] = results
        self._held += _size(results)
        while len(self._results) > 1 and (len(self._results) > VALUES or self._held > HELD):
            self._held -= _size(self._results.popitem(last=False)[1])


def _size(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _bits(value: torch.Tensor) -> bytes:
    return ctypes.string_at(value.data_ptr(), value.nbytes)


class Watch:
    """Remembers a graph's inputs, and says which of them stay while others change.

    An input counts as steady once it came back the same, bit for bit, in a call in which another
    did not: a call repeated as a whole says nothing.

    Attributes:
        same: positions of the inputs that were in the last call what they were in the one before.
    """

    def __init__(self) -> None:
        self._before: dict[int, torch.Tensor] = {}
        self._steady: set[int] = set()
        self.same: set[int] = set()

    def steady(self, inputs: Sequence[torch.Tensor]) -> set[int]:
        """Positions of the inputs that stay; they are the same as in the last call.

        Args:
            inputs: dense tensors, of the same shapes in every call.
        """
        same = set()
        for position, tensor in enumerate(inputs):
            if tensor.nbytes > SMALL:
                continue
            before = self._before.get(position)
            if before is not None and _same_bits(tensor, before):
                same.add(position)
            else:
                self._before[position] = tensor.detach().clone()
        self.same = same
        if len(same) < len(inputs):
            self._steady = same
        return self._steady & same


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two dense tensors of one shape and type hold the same bits: NaN equals itself."""
    return bool(_MEMCMP(a.data_ptr(), b.data_ptr(), a.nbytes) == 0)
