"""The fewest bits a layer that keep the measured error of the outputs within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx
from zoomc.kernels import integer

from .validate import relative_error

#: Runs of the whole graph that the search may take, after those that measure.
RUNS = 8

#: Parts of the graph whose losses are taken to reach the outputs alike: a run for each.
PARTS = 16


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
    the very activations it sees; a run for each part of the graph, with nothing lost elsewhere,
    how much of such losses there reaches the outputs. Steps up the ladder are then ordered by what
    they win for each bit they cost, and runs of the whole graph find how many of them it takes,
    guided by the sum of the squares of the errors that are left. With all steps taken nothing is
    lost, so a way within the budget always exists.

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

        def error_now() -> float:
            found = outputs(lambda candidate, run: run(candidate.level))
            return max(map(relative_error, found, wanted), default=0.0)

        _take(candidates, [])
        error = error_now()
        if error <= budget:
            return error
        order = {node: place for place, node in enumerate(gm.graph.nodes)}
        losses = _losses(sorted(candidates, key=lambda c: order[c.node]), error_now)
        steps = _steps(candidates, losses)

        def error_after(count: int) -> float:
            _take(candidates, steps[:count])
            return error_now()

        count, error = _fewest(candidates, losses, steps, budget, error, error_after)
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


#: Squared error of the outputs that a node causes on each rung, as estimated.
Losses = Mapping[fx.Node, Sequence[float]]


def _losses(candidates: Sequence[Ladder], error_now: Callable[[], float]) -> Losses:
    """Each node's squared errors, scaled by how much of them reaches the outputs from its part.

    Args:
        candidates: in the graph's order; a part is a run of neighbours.
        error_now: error of the outputs at the levels taken.
    """
    losses: dict[fx.Node, list[float]] = {}
    size = math.ceil(len(candidates) / PARTS)
    for start in range(0, len(candidates), size):
        part = candidates[start : start + size]
        for candidate in candidates:
            candidate.level = 0 if candidate in part else len(candidate.ladder) - 1
        own = sum(candidate.errors[0] ** 2 for candidate in part)
        reach = error_now() ** 2 / own if own else 1.0
        for candidate in part:
            losses[candidate.node] = [reach * error**2 for error in candidate.errors]
    return losses


def _steps(candidates: Sequence[Ladder], losses: Losses) -> list[Ladder]:
    """Whose turn it is to climb one rung, the best bargain first."""
    bargains: list[tuple[float, int, Ladder]] = []
    for order, candidate in enumerate(candidates):
        loss = losses[candidate.node]
        climbs: list[tuple[float, int, int]] = []  # what several rungs win, cost, their number
        for level in range(len(candidate.ladder) - 1):
            cost = max(1, candidate.bits(level + 1) - candidate.bits(level))
            climb = loss[level] - loss[level + 1], cost, 1
            # A rung that wins little is no reason to stay below one that wins much.
            while climbs and climb[0] * climbs[-1][1] > climbs[-1][0] * climb[1]:
                won, paid, count = climbs.pop()
                climb = climb[0] + won, climb[1] + paid, climb[2] + count
            climbs.append(climb)
        for won, cost, count in climbs:
            bargains += [(-won / cost, order, candidate)] * count
    return [candidate for _, _, candidate in sorted(bargains, key=lambda b: b[:2])]


def _take(candidates: Sequence[Ladder], steps: Sequence[Ladder]) -> None:
    for candidate in candidates:
        candidate.level = 0
    for candidate in steps:
        candidate.level += 1


def _fewest(
    candidates: Sequence[Ladder],
    losses: Losses,
    steps: Sequence[Ladder],
    budget: float,
    error: float,
    error_after: Callable[[int], float],
) -> tuple[int, float]:
    """The fewest steps found whose measured error is within the budget, and that error.

    Args:
        candidates: all nodes.
        losses: of each.
        steps: all of them, in order.
        budget: what the error must be within.
        error: with no step taken, above the budget.
        error_after: of the outputs once so many steps are taken.
    """
    _take(candidates, [])
    left = [sum(losses[c.node][0] for c in candidates)]
    for candidate in steps:
        loss = losses[candidate.node]
        candidate.level += 1
        left.append(left[-1] - loss[candidate.level - 1] + loss[candidate.level])
    low, high, best = 0, len(steps), 0.0
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
