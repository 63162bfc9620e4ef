"""The fewest bits a layer that keep the measured error of the outputs within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx
from zoomc.kernels import integer

from .validate import relative_error

#: Runs of the whole graph that the search may take after the first two.
RUNS = 8


class Ladder(Protocol):
    """A node that could be computed less exactly, on rungs of ever more bits.

    Attributes:
        node: the node.
        level: the rung taken.
        errors: the node's own error on each rung, where measured. The last rung has none.
    """

    node: fx.Node
    level: int
    errors: list[float]

    @property
    def ladder(self) -> Sequence[object]:
        """The rungs."""

    def bits(self, level: int) -> int:
        """What a rung costs."""

    def run(
        self, level: int, args: Sequence[Any], kwargs: Mapping[str, Any], memo: dict[Any, Any]
    ) -> torch.Tensor:
        """Run the node on a rung; ``memo`` is kept from run to run."""


def fit(
    gm: fx.GraphModule,
    candidates: Sequence[Ladder],
    budget: float,
    inputs: Sequence[torch.Tensor],
) -> float:
    """Set every candidate's level so that the error stays within the budget.

    One run of the graph measures what each layer loses by itself on each rung of its ladder, on
    the very activations it sees. Steps up the ladder are then ordered by what they win for each
    bit they cost, and runs of the whole graph find how many of them it takes, guided by the sum
    of the squares of the errors that are left. With all steps taken nothing is lost, so a way
    within the budget always exists.

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
    memo: dict[Any, Any] = {}

    def measure(candidate: Ladder, run: Run) -> torch.Tensor:
        last = len(candidate.ladder) - 1
        kept = run(last)
        candidate.errors = [relative_error(run(level), kept) for level in range(last)] + [0.0]
        return kept

    def outputs(at_layer: Callable[[Ladder, Run], torch.Tensor]) -> list[torch.Tensor]:
        return _Layers(gm, by_node, at_layer, memo).outputs(inputs)

    with integer.sums_in(torch.float32):
        wanted = outputs(measure)
        steps = _steps(candidates)

        def error_after(count: int) -> float:
            _take(candidates, steps[:count])
            found = outputs(lambda candidate, run: run(candidate.level))
            return max(map(relative_error, found, wanted), default=0.0)

        count, error = _fewest(candidates, steps, budget, error_after)
    _take(candidates, steps[:count])
    return error


#: Runs a layer on a rung.
Run = Callable[[int], torch.Tensor]


class _Layers(fx.Interpreter):
    """Runs a graph, asking at each of some layers what to compute."""

    def __init__(
        self,
        gm: fx.GraphModule,
        layers: Mapping[fx.Node, Ladder],
        at_layer: Callable[[Ladder, Run], torch.Tensor],
        memo: dict[Any, Any],
    ) -> None:
        super().__init__(gm)
        self._layers = layers
        self._at_layer = at_layer
        self._memo = memo

    def run_node(self, n: fx.Node) -> Any:
        """A layer by the function given, anything else as it is."""
        if n not in self._layers:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        layer = self._layers[n]
        return self._at_layer(layer, lambda level: layer.run(level, args, kwargs, self._memo))

    def outputs(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The graph's floating outputs."""
        with torch.no_grad():
            results = self.run(*inputs)
        if isinstance(results, torch.Tensor):
            results = (results,)
        return [y for y in results if isinstance(y, torch.Tensor) and y.is_floating_point()]


def _steps(candidates: Sequence[Ladder]) -> list[Ladder]:
    """Whose turn it is to climb one rung, the best bargain first."""
    bargains: list[tuple[float, int, Ladder]] = []
    for order, candidate in enumerate(candidates):
        worth = math.inf
        for level in range(len(candidate.ladder) - 1):
            won = candidate.errors[level] ** 2 - candidate.errors[level + 1] ** 2
            cost = max(1, candidate.bits(level + 1) - candidate.bits(level))
            worth = min(worth, won / cost)  # never before the rung below
            bargains.append((-worth, order, candidate))
    return [candidate for _, _, candidate in sorted(bargains, key=lambda b: b[:2])]


def _take(candidates: Sequence[Ladder], steps: Sequence[Ladder]) -> None:
    for candidate in candidates:
        candidate.level = 0
    for candidate in steps:
        candidate.level += 1


def _fewest(
    candidates: Sequence[Ladder],
    steps: Sequence[Ladder],
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
