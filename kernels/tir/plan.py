"""How a product is cut up: the fields a planner chooses and tuning may choose otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

P = TypeVar("P")


class StalePlan(Exception):  # noqa: N818 - it is an answer, not a failure
    """Raised by a lowering for a plan that does not fit its call; the message says why."""


@dataclass(frozen=True)
class Plan:
    """How a product is cut up; see :mod:`.gemm` and :mod:`.integer_product` for the loops.

    Attributes:
        batch_workers: workers side by side along independent products.
        row_workers: workers side by side along the row blocks.
        column_workers: workers side by side along the panels.
        blocks: row blocks between two reads of a panel.
        chunk: values of K between two visits of a block; of integers, steps of 64 values.
        fetch: whether the blocks fetch the panel's next chunk ahead, where the path can.
    """

    batch_workers: int
    row_workers: int
    column_workers: int
    blocks: int
    chunk: int
    fetch: bool


@dataclass(frozen=True)
class Extent:
    """What a plan cuts up.

    Attributes:
        threads: workers.
        products: independent products.
        blocks: row blocks of a product.
        panels: panels of a product.
        length: of the run of K that chunks divide.
        step: a chunk is a multiple of this.
        fetches: whether ``Plan.fetch`` makes a difference.
    """

    threads: int
    products: int
    blocks: int
    panels: int
    length: int
    step: int
    fetches: bool

    def check(self, plan: Plan) -> Plan:
        """The plan, if it cuts this.

        Raises:
            StalePlan: it does not.
        """
        if plan.batch_workers * plan.row_workers * plan.column_workers != self.threads:
            raise StalePlan(f"its workers are not {self.threads}")
        if min(dataclasses.astuple(plan)[:5]) < 1 or plan.blocks > self.blocks:
            raise StalePlan(f"it asks for {plan.blocks} of {self.blocks} row blocks")
        if plan.chunk % self.step or plan.chunk >= self.length + self.step:
            raise StalePlan(f"chunks of {plan.chunk} do not divide {self.length} values")
        return plan

    def nearby(self, plan: Plan) -> list[Plan]:
        """Plans that differ from one in one choice, those likeliest to be faster first."""
        return [other for other in dict.fromkeys(self._changes(plan)) if other != plan]

    def _changes(self, plan: Plan) -> Iterator[Plan]:
        share = -(-self.blocks // plan.row_workers)
        for turns in _around(-(-share // plan.blocks), share):
            yield dataclasses.replace(plan, blocks=-(-share // turns))
        for pieces in _around(-(-self.length // plan.chunk), self.length // self.step):
            chunk = -(-self.length // pieces // self.step) * self.step
            yield dataclasses.replace(plan, chunk=chunk)
        if self.fetches:
            yield dataclasses.replace(plan, fetch=not plan.fetch)
        turns = -(-share // plan.blocks)
        for workers in splits(self.threads):
            share = -(-self.blocks // workers[1])
            if workers[0] <= self.products and workers[1] <= self.blocks:
                yield Plan(*workers, -(-share // min(turns, share)), plan.chunk, plan.fetch)


def _around(count: int, most: int) -> list[int]:
    """Other counts to try beside one, from 1 to ``most``."""
    found = dict.fromkeys([count + 1, count - 1, 2 * count, count // 2, 1])
    return [n for n in found if 0 < n <= most and n != count]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def splits(threads: int) -> Iterator[tuple[int, int, int]]:
    """Every way to share ``threads`` workers among products, row blocks and panels."""
    for each in _divisors(threads):
        for across in _divisors(threads // each):
            yield each, across, threads // each // across


def chosen(planned: P, fields: Mapping[str, Any] | None) -> P:
    """The planner's choice, or the one whose fields are given.

    Args:
        planned: a dataclass.
        fields: values of all its fields by name, or None.

    Raises:
        StalePlan: other names or types.
    """
    if fields is None:
        return planned
    wanted = {f.name: type(getattr(planned, f.name)) for f in dataclasses.fields(planned)}  # type: ignore[arg-type]
    if {name: type(value) for name, value in fields.items()} != wanted:
        raise StalePlan(f"it says {', '.join(fields)} where {', '.join(wanted)} are needed")
    return dataclasses.replace(planned, **fields)  # type: ignore[type-var]
