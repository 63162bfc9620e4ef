"""The training loop every stage shares: schedule, average, progress, checkpoints, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

CHECKPOINT_SECONDS = 150.0

#: One shard's loss and gradients, None for a parameter that the loss does not reach.
_Part = tuple[float, tuple[Any, ...]]


@dataclass(frozen=True)
class Budget:
    """When a stage ends.

    ``steps`` alone makes a run that repeats exactly; ``minutes`` spends a time instead and does
    as many steps as the machine manages. With both, whichever ends first.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("a budget needs steps or minutes")

    def used(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent, 1 or more at the end."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = seconds / 60 / self.minutes if self.minutes is not None else 0.0
        return max(by_steps, by_time)


@dataclass(frozen=True)
class Recipe:
    """How a stage learns.

    Attributes:
        lr: highest learning rate, reached after ``warmup`` steps and held for the share ``hold``
            of the budget; a cosine takes it down to 1 % after that.
        average: decay of the exponential moving average of the weights.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    average: float = 0.998
    warmup: int = 100
    hold: float = 0.35

    def rate(self, step: int, used: float) -> float:
        """Learning rate of one step."""
        fall = max(0.0, (min(used, 1.0) - self.hold) / (1 - self.hold))
        return (
            self.lr
            * min(1.0, (step + 1) / self.warmup)
            * (0.01 + 0.495 * (1 + math.cos(math.pi * fall)))
        )


@dataclass(frozen=True)
class Draw:
    """Randomness of one step: the same for the same seed, stage and step, resumed or not."""

    numpy: np.random.Generator
    torch: torch.Generator

    @staticmethod
    def of(seed: int, stage: str, step: int, shard: int = 0) -> Draw:
        """Generators of step ``step`` of a stage, for one shard of the batch."""
        root = np.random.SeedSequence((seed, step, shard, *stage.encode()))
        torch_seed = int(root.generate_state(1, np.uint64)[0] >> np.uint64(1))
        return Draw(np.random.default_rng(root), torch.Generator().manual_seed(torch_seed))

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal float32 noise of the shape and on the device of ``like``."""
        return torch.randn(like.shape, generator=self.torch).to(like.device)


class Stage:
    """One model's training: step by step, resumable.

    Args:
        name: of the checkpoint file and the progress line.
        folder: where the checkpoint lies.
        model: what is trained; only parameters that require gradients are touched.
        recipe: how.
        budget: how long.
        seed: of the whole run.
        shards: parts that a batch is computed in, each by a single-threaded worker. On a CPU that
            other programs use too this beats one worker of many threads several times over: the
            threads of an operator wait for the slowest at its every end.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        model: torch.nn.Module,
        recipe: Recipe,
        budget: Budget,
        seed: int,
        shards: int = 1,
    ) -> None:
        self.name, self.recipe, self.budget, self.seed = name, recipe, budget, seed
        self.shards = shards
        self.file = folder / f"{name}.pt"
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters if p.ndim > 1]},
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0
        self._pool: ThreadPoolExecutor | None = None
        if self.file.exists():
            self._load()

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.budget.used(self.step, self.seconds) >= 1

    def _load(self) -> None:
        device = self.parameters[0].device
        saved = torch.load(self.file, map_location=device, weights_only=True)
        if len(saved["parameters"]) != len(self.parameters):
            raise ValueError(f"{self.file} is of another model: use a fresh --out folder")
        with torch.no_grad():
            for mine, its in zip(self.parameters, saved["parameters"], strict=True):
                mine.copy_(its)
            for average, its in zip(self.average, saved["average"], strict=True):
                average.copy_(its)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]

    def save(self) -> None:
        """Write the checkpoint; a cut in the middle leaves the previous one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "parameters": [p.detach() for p in self.parameters],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        new = self.file.with_suffix(".new")
        torch.save(state, new)
        new.replace(self.file)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, the model carries the averaged weights."""
        backup = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for p, a in zip(self.parameters, self.average, strict=True):
                p.copy_(a)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, b in zip(self.parameters, backup, strict=True):
                    p.copy_(b)

    def adopt_average(self) -> None:
        """Give the model its averaged weights for good."""
        with torch.no_grad():
            for p, a in zip(self.parameters, self.average, strict=True):
                p.copy_(a)

    def update(self, loss: Callable[[Draw], torch.Tensor]) -> float:
        """One step; returns the loss."""
        recipe = self.recipe
        rate = recipe.rate(self.step, self.budget.used(self.step, self.seconds))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = self._gradients(loss)
        self.optimizer.zero_grad(set_to_none=True)
        for k, parameter in enumerate(self.parameters):
            grads = [grads[k] for _, grads in parts if grads[k] is not None]
            parameter.grad = sum(grads) / self.shards if grads else None
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(recipe.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        return sum(value for value, _ in parts) / self.shards

    def _gradients(self, loss: Callable[[Draw], torch.Tensor]) -> list[_Part]:
        def one(shard: int) -> _Part:
            value = loss(Draw.of(self.seed, self.name, self.step, shard))
            return float(value.detach()), torch.autograd.grad(
                value, self.parameters, allow_unused=True
            )

        if self.shards == 1:
            return [one(0)]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                self.shards, initializer=torch.set_num_threads, initargs=(1,)
            )
        return list(self._pool.map(one, range(self.shards)))

    def run(
        self,
        loss: Callable[[Draw], torch.Tensor],
        report: Callable[[], str] | None = None,
    ) -> None:
        """Train until the budget is spent, saving every few minutes.

        Args:
            loss: scalar to lower, from one step's randomness.
            report: figures worth a line at every checkpoint, taken with the averaged weights.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(
                "step {task.fields[step]}  loss {task.fields[loss]:.4f}  {task.fields[note]}"
            ),
            TimeElapsedColumn(),
        )
        with Progress(*columns) as progress:
            bar = progress.add_task(self.name, total=1.0, step=self.step, loss=math.nan, note="")
            smooth, saved = math.nan, time.monotonic()
            while not self.done:
                start = time.monotonic()
                value = self.update(loss)
                smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
                self.seconds += time.monotonic() - start
                used = self.budget.used(self.step, self.seconds)
                progress.update(bar, completed=min(used, 1.0), step=self.step, loss=smooth)
                if time.monotonic() - saved > CHECKPOINT_SECONDS or self.done:
                    self.save()
                    note = ""
                    if report is not None:
                        with self.averaged():
                            note = report()
                        progress.update(bar, note=note)
                    where = f"step {self.step}, {self.seconds / 60:.1f} min"
                    progress.console.print(f"{self.name}: {where}, loss {smooth:.4f} {note}")
                    saved = time.monotonic()
