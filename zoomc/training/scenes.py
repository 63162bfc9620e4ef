"""Aquarium pictures drawn from a seed, each with a caption.

A zoom-out shows the previous picture small in the middle of a new one, again and again. So most
pictures here are drawn the same way: level 0 fills the frame, level k is what the frame showed k
zoom-outs ago, shrunk by ``keep**k`` about the centre. The sea floor and the water colours are one
continuous world through all levels, and things may stick out of the window they were drawn in,
which is what a model has to continue.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

WATERS: dict[str, tuple[Colour, Colour]] = {
    "blue": ((96, 196, 238), (20, 76, 156)),
    "green": ((150, 226, 190), (20, 108, 98)),
    "purple": ((192, 152, 232), (62, 38, 124)),
    "dark": ((42, 74, 126), (8, 14, 42)),
}
FLOORS: dict[str, tuple[Colour, Colour]] = {
    "sand": ((236, 212, 154), (200, 160, 96)),
    "rock": ((134, 134, 144), (72, 74, 86)),
}
FISH: dict[str, Colour] = {
    "red": (224, 44, 40),
    "orange": (250, 140, 28),
    "yellow": (250, 222, 48),
    "white": (242, 242, 247),
    "blue": (52, 84, 224),
    "pink": (246, 120, 184),
}
NUMBERS = ("no", "a", "two", "three", "four")
WORDS = (
    "a an the of no some many one two three four five and with in over under by "
    "red orange yellow white blue pink green purple dark black grey brown "
    "fish water sand rock rocks weed coral bubbles starfish"
).split()

KEEPS = (0.5, 0.625, 0.75)
"""Shares of the side that a zoom-out keeps; multiples of 1/16, so windows end on latent cells."""

_SUPERSAMPLE = 4
_BLACK: Colour = (0, 0, 0)
_WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Picture:
    """One drawn picture.

    Attributes:
        image: (size, size, 3) uint8, RGB.
        caption: what level 0 shows, in words of `WORDS`.
        keep: share of the side that the nested window takes; 0 for a picture without one.
    """

    image: np.ndarray
    caption: str
    keep: float


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """Colour at share ``t`` of the way from ``a`` to ``b``."""
    return tuple(int(x + (y - x) * t) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _disc(d: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: Colour) -> None:
    d.ellipse([x - r, y - r, x + r, y + r], fill=fill)


def _ellipse(cx: float, cy: float, a: float, b: float, start: float, end: float) -> list[Point]:
    angles = np.linspace(start, end, 24)
    return list(zip(cx + a * np.cos(angles), cy + b * np.sin(angles), strict=True))


def draw_fish(
    d: ImageDraw.ImageDraw, x: float, y: float, s: float, colour: Colour, left: bool
) -> None:
    """Fish with its middle at (x, y), about 1.4 ``s`` long and 0.8 ``s`` high, in pixels."""
    side = -1 if left else 1
    dark, light = mix(colour, _BLACK, 0.38), mix(colour, _WHITE, 0.4)

    def at(points: list[Point]) -> list[Point]:
        return [(x + side * px * s, y + py * s) for px, py in points]

    d.polygon(at([(-0.3, 0), (-0.84, -0.38), (-0.68, 0), (-0.84, 0.38)]), fill=dark)
    d.polygon(at([(-0.28, -0.2), (-0.06, -0.5), (0.22, -0.22)]), fill=dark)
    d.polygon(at(_ellipse(0, 0, 0.54, 0.33, 0, 2 * math.pi)), fill=colour)
    d.polygon(at(_ellipse(0, 0.04, 0.47, 0.26, 0.25, math.pi - 0.25)), fill=light)
    d.polygon(at([(-0.02, 0.02), (-0.26, 0.2), (-0.2, -0.05)]), fill=dark)
    ex, ey = at([(0.29, -0.07)])[0]
    _disc(d, ex, ey, 0.13 * s, _WHITE)
    _disc(d, ex + side * 0.015 * s, ey, 0.082 * s, (8, 8, 16))


def draw_weed(
    d: ImageDraw.ImageDraw,
    x: float,
    y: float,
    h: float,
    colour: Colour,
    rng: np.random.Generator,
) -> None:
    """Tuft of two to four waving blades standing at (x, y), at most ``h`` pixels high."""
    count = int(rng.integers(2, 5))
    t = np.linspace(0, 1, 11)
    for j in range(count):
        lean = j - (count - 1) / 2
        wave = 0.08 * h * np.sin(rng.uniform(0, 6.28) + 5 * t) * t
        cx = x + lean * h * 0.17 + wave + lean * h * 0.1 * t
        width = h * 0.1 * (0.18 + 0.82 * (1 - t))
        cy = y - h * rng.uniform(0.6, 1.0) * t
        edge = [*zip(cx - width, cy, strict=True), *zip((cx + width)[::-1], cy[::-1], strict=True)]
        d.polygon(edge, fill=mix(colour, _BLACK, 0.25 * (j % 2)))


def draw_coral(
    d: ImageDraw.ImageDraw,
    x: float,
    y: float,
    h: float,
    colour: Colour,
    rng: np.random.Generator,
) -> None:
    """Coral of five fat rounded arms standing at (x, y), at most ``h`` pixels high."""
    for k, angle in enumerate(np.linspace(-0.95, 0.95, 5)):
        length = h * rng.uniform(0.65, 1.0) * (1 - 0.25 * abs(angle))
        tip = (x + length * math.sin(angle), y - length * math.cos(angle))
        fill = mix(colour, _BLACK if k % 2 else _WHITE, 0.14)
        d.line([(x, y), tip], fill=fill, width=max(1, round(h * 0.19)))
        _disc(d, *tip, h * 0.13, fill)


def draw_rock(
    d: ImageDraw.ImageDraw, x: float, y: float, s: float, colour: Colour, rng: np.random.Generator
) -> None:
    """Boulder of radius ``s`` pixels lying on (x, y), lit from the upper left."""
    angle = np.linspace(0, math.pi, 9)
    r = s * rng.uniform(0.85, 1.05, 9)
    px, py = x - r * np.cos(angle), y - 0.72 * r * np.sin(angle)
    d.polygon(list(zip(px, py, strict=True)), fill=mix(colour, _BLACK, 0.3))
    px, py = x + (px - x) * 0.74 - 0.08 * s, y + (py - y) * 0.78 - 0.04 * s
    d.polygon(list(zip(px, py, strict=True)), fill=mix(colour, _WHITE, 0.12))


def draw_starfish(
    d: ImageDraw.ImageDraw, x: float, y: float, s: float, colour: Colour, turn: float
) -> None:
    """Five-armed star of radius ``s`` pixels, seen at a slant."""
    angle = turn + np.arange(10) * math.pi / 5
    r = np.where(np.arange(10) % 2, 0.45 * s, s)
    points = zip(x + r * np.cos(angle), y + 0.7 * r * np.sin(angle), strict=True)
    d.polygon(list(points), fill=colour)


def draw_bubble(d: ImageDraw.ImageDraw, x: float, y: float, r: float, water: Colour) -> None:
    """Bubble of radius ``r`` pixels."""
    _disc(d, x, y, r, mix(water, _WHITE, 0.6))
    _disc(d, x, y, 0.7 * r, mix(water, _WHITE, 0.2))
    _disc(d, x - 0.3 * r, y - 0.3 * r, 0.3 * r, _WHITE)


@dataclass(frozen=True)
class _Content:
    """What one zoom level shows."""

    fish: int
    colour: str
    weed: bool
    coral: bool
    starfish: bool
    bubbles: bool


def _content(rng: np.random.Generator, floor: bool, nested: bool) -> _Content:
    odds = (0.1, 0.36, 0.3, 0.16, 0.08) if nested else (0.05, 0.35, 0.3, 0.2, 0.1)
    return _Content(
        fish=int(rng.choice(5, p=odds)),
        colour=str(rng.choice(list(FISH))),
        weed=floor and rng.random() < 0.5,
        coral=floor and rng.random() < 0.22,
        starfish=floor and rng.random() < 0.18,
        bubbles=rng.random() < 0.35,
    )


def caption(
    content: _Content, count: int, water: str, floor: str | None, rng: np.random.Generator
) -> str:
    """Sentence for a level with ``count`` fish; now and then it leaves the count open."""
    text = f"{water} water"
    if count:
        number = "" if count > 1 and rng.random() < 0.15 else f"{NUMBERS[count]} "
        text = f"{number}{content.colour} fish in {text}"
    if floor:
        text += f" over {floor}"
    named = (
        ("green weed", content.weed),
        ("pink coral", content.coral),
        ("a starfish", content.starfish),
        ("bubbles", content.bubbles),
    )
    extras = [name for name, there in named if there]
    return text + (" with " + " and ".join(extras) if extras else "")


class _Canvas:
    """The frame being drawn: colours of the world and the mapping from level to pixels."""

    def __init__(self, size: int, water: str, floor: str | None, rng: np.random.Generator) -> None:
        self.side = size * _SUPERSAMPLE
        self.water = WATERS[water]
        self.floor = FLOORS[floor] if floor else None
        self.weed = (28, 100, 60) if water == "dark" else (42, 152, 62)
        self.rock = (150, 140, 136) if floor == "sand" else (126, 126, 136)
        self.rng = rng
        self.d: ImageDraw.ImageDraw

    def background(self, horizon: float, extent: float) -> Image.Image:
        """Water over floor; ``extent`` is the share of the side the first picture shrank to."""
        rng, side = self.rng, self.side
        y = np.linspace(0, 1, side)[:, None]
        x = np.linspace(0, 1, side)[None, :]
        top = 0.5 - 0.5 * extent
        t = np.clip((y - top) / (horizon - top if self.floor else extent), 0, 1)
        # Beyond the first picture the water goes on a little brighter, never flat.
        t = t - 0.25 * np.clip((top - y) / 0.5, 0, 1)
        ends = np.array(self.water, np.float32)
        image = ends[0] + (ends[1] - ends[0]) * t[..., None] * np.ones((side, side, 1), np.float32)
        if self.floor:
            # Dunes grow with the distance from the centre: the same world at every zoom.
            far = np.hypot(x - 0.5, 0.3 * extent)
            turn = np.where(x < 0.5, -1, 1) * rng.uniform(3, 6) * (x - 0.5) / far
            line = horizon + 0.05 * far * np.sin(turn + 3 * np.log(far) + rng.uniform(0, 6.3))
            u = np.clip((y - horizon) / (0.5 * extent), 0, 1)
            ends = np.array(self.floor, np.float32)
            ground = ends[0] + (ends[1] - ends[0]) * u[..., None]
            image = np.where((y > line)[..., None], ground, image)
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        self.d = ImageDraw.Draw(picture)
        return picture

    def level(self, content: _Content, scale: float, inner: float, horizon: float) -> int:
        """Draw one level and return how many fish found a place.

        Args:
            content: what to draw.
            scale: share of the side that this level takes.
            inner: share of this level's side that its nested window takes; 0 without one.
            horizon: height of the floor line in this level's own coordinates.
        """
        rng = self.rng

        def at(u: float) -> float:
            return (0.5 + (u - 0.5) * scale) * self.side

        def clear(u: float, v: float, du: float, dv: float) -> bool:
            return max(abs(u - 0.5) - du, abs(v - 0.5) - dv) > inner / 2 - 0.03

        unit = scale * self.side
        lowest = max(horizon + 0.04, 1.0)
        if self.floor and horizon < 1.05:
            for _ in range(int(rng.integers(0, 4))):
                u, v, s = rng.uniform(0, 1), rng.uniform(horizon, lowest), rng.uniform(0.06, 0.13)
                if clear(u, v - 0.4 * s, s, 0.4 * s):
                    draw_rock(self.d, at(u), at(v), s * unit, self.rock, rng)
            plants = [("weed", int(rng.integers(3, 7)))] if content.weed else []
            plants += [("coral", 2)] if content.coral else []
            plants += [("starfish", 1)] if content.starfish else []
            for kind, count in plants:
                for _ in range(count):
                    for _ in range(8):
                        u, v = rng.uniform(0.02, 0.98), rng.uniform(horizon + 0.02, lowest)
                        h = rng.uniform(0.18, 0.36) if kind == "weed" else rng.uniform(0.12, 0.22)
                        if not clear(u, v - h / 2, 0.05, h / 2):
                            continue
                        if kind == "weed":
                            draw_weed(self.d, at(u), at(v), h * unit, self.weed, rng)
                        elif kind == "coral":
                            draw_coral(self.d, at(u), at(v), h * unit, (238, 110, 150), rng)
                        else:
                            turn = rng.uniform(0, 6.28)
                            y = at(max(v, horizon + 0.06))
                            draw_starfish(self.d, at(u), y, 0.5 * h * unit, (226, 96, 60), turn)
                        break
        if content.bubbles:
            for _ in range(int(rng.integers(1, 4))):
                u, v = rng.uniform(0.05, 0.95), rng.uniform(0.12, max(0.2, min(horizon, 0.9)))
                if clear(u, v, 0, 0.05):
                    for j in range(int(rng.integers(2, 4))):
                        r = rng.uniform(0.018, 0.032)
                        x = at(u + rng.uniform(-0.02, 0.02))
                        draw_bubble(self.d, x, at(v - 0.075 * j), r * unit, self.water[0])
        return self._shoal(content, at, clear, unit, inner, horizon)

    def _shoal(
        self,
        content: _Content,
        at: Callable[[float], float],
        clear: Callable[[float, float, float, float], bool],
        unit: float,
        inner: float,
        horizon: float,
    ) -> int:
        rng = self.rng
        ring = (1 - inner) / 2
        biggest = (0.42, 0.42, 0.36, 0.31, 0.28)[content.fish]
        if inner:
            biggest = min(biggest, 1.25 * ring)
        placed: list[tuple[float, float, float]] = []
        for _ in range(40 * content.fish):
            if len(placed) == content.fish:
                break
            s = rng.uniform(0.72, 1.0) * biggest
            edge = 0.1 if inner else 0.3 * s + 0.08
            u = rng.uniform(edge, 1 - edge)
            v = rng.uniform(0.32 * s, max(0.4 * s, min(1 - 0.3 * s, horizon - 0.05)))
            if not clear(u, v, 0.62 * s, 0.36 * s):
                continue
            if any(
                abs(u - a) < 0.75 * (s + q) and abs(v - b) < 0.42 * (s + q) for a, b, q in placed
            ):
                continue
            placed.append((u, v, s))
            colour = mix(FISH[content.colour], _BLACK, rng.uniform(0, 0.1))
            draw_fish(self.d, at(u), at(v), s * unit, colour, rng.random() < 0.5)
        return len(placed)


def draw(seed: int, index: int, size: int = 64) -> Picture:
    """Picture number ``index`` of the set ``seed``; the same every time.

    Args:
        seed: which set.
        index: which picture of it.
        size: side in pixels.
    """
    rng = np.random.default_rng((seed, index))
    water = str(rng.choice(list(WATERS), p=(0.4, 0.25, 0.2, 0.15)))
    floor = (None, "sand", "rock")[int(rng.choice(3, p=(0.22, 0.53, 0.25)))]
    nested = rng.random() < 0.62
    keep = float(rng.choice(KEEPS, p=(0.5, 0.3, 0.2))) if nested else 0.0
    # Levels whose window would be a few pixels wide show nothing.
    depth = int(rng.integers(1, int(math.log(8 / 64) / math.log(keep)) + 1)) if nested else 0
    # The first picture's floor line lies low; every zoom-out since has drawn it to the middle.
    first = rng.uniform(0.62, 0.9)
    ago = depth if rng.random() < 0.8 else int(rng.integers(0, depth + 1))
    extent = keep**ago if nested else 1.0
    horizon = 0.5 + (first - 0.5) * extent if floor else 1.2

    canvas = _Canvas(size, water, floor, rng)
    picture = canvas.background(horizon, extent)
    text = ""
    for k in range(depth, -1, -1):
        content = _content(rng, floor is not None, nested)
        scale = keep**k if nested else 1.0
        own = 0.5 + (horizon - 0.5) / scale if floor else 1.2
        count = canvas.level(content, scale, keep if k < depth else 0.0, own)
        if k == 0:
            text = caption(content, count, water, floor, rng)
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return Picture(np.asarray(picture), text, keep)
