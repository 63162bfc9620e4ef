"""Attention by rows on AMX: the tile products of a step, as LLVM text in a good order."""

from __future__ import annotations

from dataclasses import dataclass

from .tiles import products

TILE = 1024  # bytes


def _load(tile: int, pointer: str, streams: bool = False) -> str:
    name = "tileloaddt164" if streams else "tileloadd64"
    return f"  call void @llvm.x86.{name}(i8 {tile}, ptr {pointer}, i64 64)"


def _store(tile: int, pointer: str) -> str:
    return f"  call void @llvm.x86.tilestored64(i8 {tile}, ptr {pointer}, i64 64)"


class Lines:
    """Instructions with names of their own."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.count = 0

    def name(self) -> str:
        """A new name."""
        self.count += 1
        return f"%{self.prefix}{self.count}"

    def at(self, lines: list[str], base: str, offset: int) -> str:
        """A pointer some bytes after another."""
        name = self.name()
        lines.append(f"  {name} = getelementptr i8, ptr {base}, i64 {offset}")
        return name

    def let(self, lines: list[str], value: str) -> str:
        """A name for a value."""
        name = self.name()
        lines.append(f"  {name} = {value}")
        return name


@dataclass(frozen=True)
class Tile:
    """One tile of a result: where from (zero if nowhere), the products it adds up, where to."""

    start: str | None
    products: list[tuple[str, str]]
    to: str


def scores(
    names: Lines, lines: list[str], chunks: int, words: int, piece: int, q: str, k: str, to: str
) -> list[Tile]:
    """The tiles of the scores of one piece of the keys at ``k``."""

    def at(base: str, tile: int) -> str:
        return names.at(lines, base, tile * TILE)

    left = {
        (i, a, c): at(q, (i * words + a) * chunks + c)
        for i in range(2)
        for a in range(words)
        for c in range(chunks)
    }
    tiles = []
    for j in range(2):
        right = {
            (b, c): at(k, ((piece * words + b) * chunks + c) * 2 + j)
            for b in range(words)
            for c in range(chunks)
        }
        for i in range(2):
            pairs = [
                (left[i, a, c], right[b, c]) for a, b in products(words) for c in range(chunks)
            ]
            tiles.append(Tile(None, pairs, at(to, i * 2 + j)))
    return tiles


def outputs(
    names: Lines, lines: list[str], tiles: int, words: int, pieces: int, to: str
) -> list[Tile]:
    """The tiles of the last unit's outputs: added up if of one word, else of this unit alone."""

    def at(base: str, tile: int) -> str:
        return names.at(lines, base, tile * TILE)

    exact = words > 1
    each = tiles if exact else tiles + 1
    left = {
        (i, p, a): at("%last", (i * pieces + p) * words + a)
        for i in range(2)
        for p in range(pieces)
        for a in range(words)
    }
    result = []
    for t in range(each):
        right = {
            (p, b): at("%v", (p * words + b) * tiles + t) if t < tiles else "@zoomc_attention_ones"
            for p in range(pieces)
            for b in range(words)
        }
        for i in range(2):
            pairs = [
                (left[i, p, a], right[p, b]) for a, b in products(words) for p in range(pieces)
            ]
            here = at(to, i * each + t)
            result.append(Tile(None if exact else here, pairs, here))
    return result


def schedule(tiles: list[Tile]) -> list[list[str]]:
    """Instructions in groups, each of one product.

    One result tile after another, in two registers by turns; the store of one comes a tile later,
    lest it wait in the store buffer for its products. Six registers hold operands, and the one
    whose next use is farthest makes room. Loads come one product before their use. Right-hand
    operands stream past: they are loaded so as not to displace the rest from the first-level cache.
    """
    order = [(index, n) for index, tile in enumerate(tiles) for n in range(len(tile.products))]
    results = 2
    uses = [operand for index, n in order for operand in tiles[index].products[n]]
    held: dict[str, int] = {}
    used: dict[str, int] = {}
    loads: list[list[str]] = [[] for _ in order]
    stores: list[list[str]] = [[] for _ in order]
    multiplied: list[str] = []
    ends: dict[int, int] = {}
    for at, (index, n) in enumerate(order):
        tile, result = tiles[index], index % results
        pair = tile.products[n]
        if n == 0 and tile.start:
            loads[at].append(_load(result, tile.start))
        for operand in pair:
            if operand not in held:
                register, free = results + len(held), 0
                if register > 7:
                    rest = uses[2 * at :]
                    idle = [x for x in held if x not in pair]
                    far = max(idle, key=lambda x: rest.index(x) if x in rest else len(rest))
                    register, free = held.pop(far), used[far] + 1
                held[operand] = register
                line = _load(register, operand, streams=operand is pair[1])
                loads[max(free, at - 1)].append(line)
            used[operand] = at
        left, right = (held[operand] for operand in pair)
        zero = "" if n or tile.start else f"  call void @llvm.x86.tilezero(i8 {result})\n"
        multiplied.append(
            f"{zero}  call void @llvm.x86.tdpbf16ps(i8 {result}, i8 {left}, i8 {right})"
        )
        ends[index] = at
    for index, tile in enumerate(tiles):
        due = ends[min(index + 1, len(tiles) - 1)]
        stores[due].append(_store(index % results, tile.to))
    return [[*a, b, *c] for a, b, c in zip(loads, multiplied, stores, strict=True)]
