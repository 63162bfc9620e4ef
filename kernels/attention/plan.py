"""How one attention call is cut into blocks: sizes, and nothing that emits code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..tir.isa import Isa
from ..tir.kernel import TensorSpec
from ..tir.plan import StalePlan

_KEYS = 128  # keys in a block if there are enough: their scores stay in the first-level cache
_MOST = 512  # what tuning tries at most
_LARGE = 128  # queries in a block at most
_STREAMED = 256  # where keys and values stream past the caches


@dataclass(frozen=True)
class Blocks:
    """What of a :class:`Plan` tuning may change: queries and keys of a block."""

    queries: int
    keys: int


@dataclass(frozen=True)
class Plan:
    """Sizes of one kernel.

    Attributes:
        batch, heads, dim, queries, keys: the problem.
        lanes: fp32 values in a vector; a vector holds one key's scores for that many queries.
        block_q: queries a worker takes at a time, a multiple of ``strip``.
        block_k: keys scored at a time.
        threads: workers.
    """

    batch: int
    heads: int
    dim: int
    queries: int
    keys: int
    lanes: int
    block_q: int
    block_k: int
    threads: int

    @property
    def strip(self) -> int:
        """Queries handled together in registers: two vectors."""
        return 2 * self.lanes

    @property
    def blocks_q(self) -> int:
        """Query blocks of one head."""
        return -(-self.queries // self.block_q)

    @property
    def blocks_k(self) -> int:
        """Key blocks of one head."""
        return -(-self.keys // self.block_k)

    @property
    def tasks(self) -> int:
        """Independent pieces of work."""
        return self.batch * self.heads * self.blocks_q

    @property
    def padded_keys(self) -> int:
        """Keys rounded up to whole blocks."""
        return self.blocks_k * self.block_k

    @property
    def blocks(self) -> Blocks:
        """What tuning may change."""
        return Blocks(self.block_q, self.block_k)

    def using(self, blocks: Blocks, unit: int, step: int) -> Plan:
        """This plan with other blocks, of whole units of queries and steps of keys.

        Raises:
            StalePlan: they are no such blocks.
        """
        whole = blocks.queries % unit == 0 and blocks.keys % step == 0
        if not whole or min(blocks.queries, blocks.keys) < 1:
            raise StalePlan(f"{blocks} is not in whole units of {unit} and {step}")
        return replace(self, block_q=blocks.queries, block_k=blocks.keys)

    def nearby(self, unit: int, step: int) -> Iterator[Blocks]:
        """Blocks a step away from this plan's, larger and smaller, that waste no whole unit."""
        for queries in (2 * self.block_q, self.block_q // 2):
            if queries % unit == 0 and unit <= queries < self.queries + self.block_q:
                yield Blocks(queries, self.block_k)
        counts = (self.blocks_k - 1, self.blocks_k + 1, 2 * self.blocks_k)
        sizes = {_round(-(-self.keys // count), step) for count in counts if count}
        for keys in sizes - {self.block_k}:
            if keys <= _MOST:
                yield Blocks(self.block_q, keys)


def _round(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _balanced(block: int, unit: int, queries: int, heads: int, threads: int) -> int:
    """The block halved while that spares the busiest worker a sixteenth of its queries."""

    def most(block: int) -> int:
        return -(-heads * -(-queries // block) // threads) * block

    while block > unit and most(block // 2) * 16 <= most(block) * 15:
        block //= 2
    return block


def plan(q: TensorSpec, keys: int, heads: int, dim: int, isa: Isa, step: int, nbytes: int) -> Plan:
    """Block sizes for a call.

    Args:
        q: spec of the queries.
        keys: number of keys.
        heads: number of heads.
        dim: size of one head.
        isa: instruction-set path.
        step: a key block is a multiple of this many keys.
        nbytes: bytes in which an element of k and v is held.
    """
    batch, queries, _ = q.shape
    # Equal key blocks waste the least padding.
    block_k = _round(-(-keys // -(-keys // _KEYS)), step)
    strip = 2 * isa.lanes
    # Every query block reads all keys and values of its head. Where they do not stay in the
    # second-level cache, larger query blocks read them fewer times.
    block_q = 2 * strip
    if 2 * keys * dim * nbytes > isa.l2 // 2:
        while block_q < _LARGE and 4 * block_q * 2 * (2 * dim + block_k) <= isa.l2:
            block_q *= 2
    threads = max(isa.threads, 1)
    block_q = _balanced(block_q, strip, queries, batch * heads, threads)
    return Plan(batch, heads, dim, queries, keys, isa.lanes, block_q, block_k, threads)


def plan_rows(
    q: TensorSpec, keys: int, heads: int, dim: int, isa: Isa, words: int, unit: int
) -> Plan:
    """Block sizes for a call that :class:`.rows.Rows` takes, whose step takes ``unit`` queries.

    It streams keys and values past the first-level cache, where a step's scores, weights and
    outputs stay: those of 64 keys of one word, or 32 of several.
    """
    batch, queries, _ = q.shape
    block_k = 64 if keys > 32 and words == 1 else 32
    block_q = unit
    if words > 1 and 4 * words * keys * dim > isa.l2 // 4:
        # From beyond the second-level cache: as few times as leaves all workers busy.
        while block_q < min(_STREAMED, queries):
            block_q *= 2
    threads = max(isa.threads, 1)
    block_q = _balanced(block_q, unit, queries, batch * heads, threads)
    return Plan(batch, heads, dim, queries, keys, isa.lanes, block_q, block_k, threads)


def plan_codes(q: TensorSpec, keys: int, heads: int, dim: int, isa: Isa, block: int) -> Plan:
    """Block sizes for a call in integers, whose scales fix the keys of a block.

    A block's codes stay in the first-level cache while many queries pass, 32 or so at a time.
    """
    batch, queries, _ = q.shape
    strip, threads = 2 * isa.lanes, max(isa.threads, 1)
    block_q = strip
    while block_q < min(_STREAMED, queries):
        block_q *= 2
    block_q = _balanced(block_q, strip, queries, batch * heads, threads)
    return Plan(batch, heads, dim, queries, keys, isa.lanes, block_q, block, threads)


def vector_width(dim: int, lanes: int) -> int:
    """The widest vector that divides a head."""
    return math.gcd(dim, lanes)
