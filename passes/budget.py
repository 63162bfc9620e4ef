"""The fewest bits a layer that keep the measured error of the outputs within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from zoomc.kernels import integer
from zoomc.kernels.weights import Encoding, encode, prune

from .validate import relative_error

if TYPE_CHECKING:
    from .encode import Candidate

#: Runs of the whole graph that the search may take after the first two.
RUNS = 8

Weight = tuple[torch.Tensor, dict[str, Any]]


def fit(
    gm: fx.GraphModule,
    candidates: Sequence[Candidate],
    budget: float,
    inputs: Sequence[torch.Tensor],
) -> float:
    """Set every candidate's level so that the error stays within the budget.

    One run of the graph measures what each layer loses by itself on each rung of its ladder, on
    the very activations it sees. Steps up the ladder are then ordered by what they win for each
    bit they cost, and runs of the whole graph find how many of them it takes, guided by the sum
    of the squares of the errors that are left. With all steps taken every weight is kept, so a
    way within the budget always exists.

    Args:
        gm: the graph, weights not yet encoded.
        candidates: the layers; their levels and errors are set.
        budget: relative error (2-norm) of the worst output.
        inputs: one tensor for each placeholder.

    Returns:
        the measured error at the levels chosen.
    """
    gm.recompile()
    by_node = {candidate.node: candidate for candidate in candidates}
    weights = _Weights()

    def measure(node: fx.Node, weight: torch.Tensor, call: Call) -> torch.Tensor:
        candidate = by_node[node]
        kept = call(weight, {})
        candidate.errors = [
            relative_error(call(*weights.coded(candidate, weight, rung)), kept)
            if rung != Encoding("keep")
            else 0.0
            for rung in candidate.ladder
        ]
        return kept

    with integer.sums_in(torch.float32):
        wanted = _Layers(gm, set(by_node), measure).outputs(inputs)
        steps = _steps(candidates)

        def error_after(count: int) -> float:
            _take(candidates, steps[:count])

            def run(node: fx.Node, weight: torch.Tensor, call: Call) -> torch.Tensor:
                candidate = by_node[node]
                return call(*weights.coded(candidate, weight, candidate.encoding))

            found = _Layers(gm, set(by_node), run).outputs(inputs)
            return max(map(relative_error, found, wanted), default=0.0)

        count, error = _fewest(candidates, steps, budget, error_after)
    _take(candidates, steps[:count])
    return error


#: Runs a layer on another weight: takes the weight and the arguments that go with it.
Call = Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]


class _Layers(fx.Interpreter):
    """Runs a graph, asking at each of some layers what to compute."""

    def __init__(
        self,
        gm: fx.GraphModule,
        layers: set[fx.Node],
        at_layer: Callable[[fx.Node, torch.Tensor, Call], torch.Tensor],
    ) -> None:
        super().__init__(gm)
        self._layers = layers
        self._at_layer = at_layer

    def run_node(self, n: fx.Node) -> Any:
        """A layer by the function given, anything else as it is."""
        if n not in self._layers:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)

        def call(weight: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            return n.target(args[0], weight, *args[2:], **kwargs, **extra)  # type: ignore[operator,no-any-return]

        return self._at_layer(n, args[1], call)

    def outputs(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The graph's floating outputs."""
        with torch.no_grad():
            results = self.run(*inputs)
        if isinstance(results, torch.Tensor):
            results = (results,)
        return [y for y in results if isinstance(y, torch.Tensor) and y.is_floating_point()]


class _Weights:
    """Encoded weights, kept from run to run at a byte a weight."""

    def __init__(self) -> None:
        self._known: dict[tuple[fx.Node, str], Weight] = {}

    def coded(self, candidate: Candidate, weight: torch.Tensor, encoding: Encoding) -> Weight:
        """The arguments of a layer on its weight in an encoding."""
        if encoding.kind == "keep":
            return (prune(weight, encoding.pruning) if encoding.pruning else weight), {}
        key = candidate.node.args[1], str(encoding)
        if key not in self._known:
            coded = encode(weight, encoding, gram=candidate.gram if encoding.table else None)
            extra: dict[str, Any] = {"channel_scale": coded.channel_scale}
            if encoding.table:
                extra |= {"table": coded.table, "group_scale": coded.group_scale}
            self._known[key] = coded.codes, extra  # type: ignore[index]
        return self._known[key]  # type: ignore[index]


def _steps(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Whose turn it is to climb one rung, the best bargain first."""
    bargains: list[tuple[float, int, Candidate]] = []
    for order, candidate in enumerate(candidates):
        worth = math.inf
        for level in range(len(candidate.ladder) - 1):
            won = candidate.errors[level] ** 2 - candidate.errors[level + 1] ** 2
            cost = max(1, candidate.bits(level + 1) - candidate.bits(level))
            worth = min(worth, won / cost)  # never before the rung below
            bargains.append((-worth, order, candidate))
    return [candidate for _, _, candidate in sorted(bargains, key=lambda b: b[:2])]


def _take(candidates: Sequence[Candidate], steps: Sequence[Candidate]) -> None:
    for candidate in candidates:
        candidate.level = 0
    for candidate in steps:
        candidate.level += 1


def _fewest(
    candidates: Sequence[Candidate],
    steps: Sequence[Candidate],
    budget: float,
    error_after: Callable[[int], float],
) -> tuple[int, float]:
    """The fewest steps found whose measured error is within the budget, and that error."""
    _take(candidates, [])
    left = [sum(c.errors[c.level] ** 2 for c in candidates)]
    for candidate in steps:
        before = candidate.errors[candidate.level]
        candidate.level += 1
        left.append(left[-1] - before**2 + candidate.errors[candidate.level] ** 2)
    low, error = 0, error_after(0)
    if error <= budget:
        return 0, error
    high, best = len(steps), 0.0
    gain = error**2 / max(left[0], 1e-30)
    for run in range(RUNS):
        if high - low <= 1:
            break
        within = (i for i in range(low + 1, high) if left[i] * gain <= budget**2)
        # The model guides the first runs; halving then makes sure of an end.
        count = next(within, high - 1) if run < RUNS // 2 else (low + high) // 2
        error = error_after(count)
        if error <= budget:
            high, best = count, error
        else:
            low = count
        if left[count] > 0 and math.isfinite(error):
            gain = error**2 / left[count]
    return high, best
