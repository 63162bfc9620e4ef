"""Charts of plain values, each a canvas of one width: roofline, columns, bars, steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .canvas import Canvas, Dot, Line, Rect, Text

WIDTH = 920
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 30, 40


@dataclass(frozen=True)
class Scale:
    """Values to positions, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value."""
        low, high = self._f(self.low), self._f(self.high)
        share = (self._f(value) - low) / (high - low or 1.0)
        return self.start + share * (self.end - self.start)

    def _f(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the range."""
        if self.log:
            decades = range(math.ceil(math.log10(self.low)), int(math.log10(self.high)) + 1)
            every = -(-len(decades) // most) or 1
            return [10.0**d for d in decades if d % every == 0]
        return steps_of(self.high, most)


def steps_of(high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to ``high``."""
    if high <= 0:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(high / most))
    step = next(power * m for m in (1, 2, 5, 10, 20) if high / (power * m) <= most)
    return [step * k for k in range(int(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in at most five characters: 1.2k, 30M, 0.05."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Point:
    """Something that runs: operations a byte, billions of operations a second, what it is.

    Attributes:
        x: operations a byte.
        y: its height, as the chart says.
        series: what its colour says.
        share: of the whole, which its size says.
        tip: its name and figures.
    """

    x: float
    y: float
    series: str
    share: float
    tip: str


def roofline(
    points: Sequence[Point],
    colors: Mapping[str, str],
    y_title: str,
    roof: tuple[float, float, str] | None = None,
) -> Canvas:
    """Points over arithmetic intensity, both axes logarithmic.

    Args:
        points: at least one, of positive coordinates.
        colors: of each series, in the legend's order.
        y_title: what the heights are.
        roof: 10⁹ operations a second at most, GB/s at most, and what the two are.
    """
    xs, ys = [p.x for p in points], [p.y for p in points]
    if roof:
        ys.append(roof[0])
        xs.append(roof[0] / roof[1])
    canvas = Canvas(WIDTH, 380)
    x = Scale(min(xs) / 2, max(xs) * 2, LEFT, WIDTH - RIGHT, log=True)
    y = Scale(min(ys) / 2, max(ys) * 2, canvas.height - BOTTOM, TOP, log=True)
    _frame(canvas, y, y_title, "operations a byte moved")
    for tick in x.ticks(9):
        at = x(tick)
        canvas.add(
            Line(((at, y.start), (at, y.end)), "grid"),
            Text(at, y.start + 16, short(tick), 11, anchor="middle"),
        )
    if roof:
        peak, bandwidth, name = roof
        knee = peak / bandwidth
        low = max(x.low, y.low / bandwidth)
        corner = (x(knee), y(peak))
        canvas.add(
            Line(((x(low), y(low * bandwidth)), corner, (x.end, y(peak))), "ink", 1.5),
            Text(x.end, y(peak) - 7, name, 11, "ink", "end"),
        )
    for point in sorted(points, key=lambda p: -p.share):
        radius = 3.0 + 9.0 * math.sqrt(point.share)
        canvas.add(Dot(x(point.x), y(point.y), radius, colors[point.series], point.tip))
    _legend(canvas, {s: c for s, c in colors.items() if any(p.series == s for p in points)})
    return canvas


def columns(
    rows: Sequence[tuple[str, Sequence[float], float | None]],
    colors: Mapping[str, str],
    y_title: str,
    x_title: str,
    mark: str = "",
) -> Canvas:
    """Stacked columns side by side.

    Args:
        rows: a column's name, its parts, and the height of its mark, None without.
        colors: of each part, by name.
        y_title: unit of the heights.
        x_title: what the columns are.
        mark: what the marks are.
    """
    canvas = Canvas(WIDTH, 300)
    high = max(max(sum(parts), level or 0.0) for _, parts, level in rows) or 1.0
    y = Scale(0.0, high * 1.05, canvas.height - 24, TOP)
    _frame(canvas, y, y_title, x_title)
    pitch = (WIDTH - LEFT - RIGHT) / len(rows)
    gap = min(2.0, pitch * 0.15)
    wide = min(pitch - gap, 48.0)
    for index, (name, parts, level) in enumerate(rows):
        left = LEFT + pitch * index + (pitch - wide) / 2
        figures = ", ".join(f"{n} {short(v)}" for n, v in zip(colors, parts, strict=True))
        least = "" if level is None else f", {mark} {short(level)}"
        tip = f"{name}: {short(sum(parts))} {y_title} ({figures}{least})"
        base = 0.0
        for color, part in zip(colors.values(), parts, strict=True):
            top = y(base + part)
            canvas.add(Rect(left, top, wide, y(base) - top, color, tip))
            base += part
        if level is not None:
            canvas.add(Line(((left, y(level)), (left + wide, y(level))), "ink", 1.5))
    _legend(canvas, colors, mark)
    return canvas


def bars(rows: Sequence[tuple[str, float, str, str]]) -> Canvas:
    """Horizontal bars: name, value, the text at its end, colour."""
    canvas = Canvas(WIDTH, 16 + 26 * len(rows))
    wide = max(60.0, max(6.6 * len(name) for name, *_ in rows) + 14)
    x = Scale(0.0, max(value for _, value, *_ in rows) or 1.0, wide, WIDTH - 170)
    for index, (name, value, text, color) in enumerate(rows):
        top = 8 + 26 * index
        canvas.add(
            Text(wide - 10, top + 14, name, 12, "ink", "end"),
            Rect(wide, top + 2, max(1.0, x(value) - wide), 16, color, f"{name}: {text}"),
            Text(x(value) + 8, top + 14, text, 12, "muted"),
        )
    return canvas


def steps(
    segments: Sequence[tuple[str, float, float]],
    color: str,
    y_title: str,
    x_title: str,
    limit: tuple[float, str] | None = None,
    tip: Callable[[str, float, float], str] = "{}: {:.4g} for {:.4g}".format,
) -> Canvas:
    """A value over time.

    Args:
        segments: name, duration and value of each stretch.
        color: of the line.
        y_title: unit of the value.
        x_title: unit of the durations.
        limit: a value to draw across, and its name.
        tip: text under the pointer from a name, a value and a duration.
    """
    canvas = Canvas(WIDTH, 220)
    high = max([value for *_, value in segments] + ([limit[0]] if limit else [])) or 1.0
    y = Scale(0.0, high * 1.15, canvas.height - BOTTOM, TOP)
    whole = sum(duration for _, duration, _ in segments)
    x = Scale(0.0, whole or 1.0, LEFT, WIDTH - RIGHT)
    _frame(canvas, y, y_title, x_title, most=4)
    for tick in x.ticks(9):
        canvas.add(Text(x(tick), y.start + 16, short(tick), 11, anchor="middle"))
    now, outline = 0.0, []
    for name, duration, value in segments:
        ends = (x(now), x(now + duration))
        size = (min(ends[1] + 0.6, x.end) - ends[0], y.start - y(value))  # no seams between them
        canvas.add(Rect(ends[0], y(value), *size, color, tip(name, value, duration)))
        outline += [(ends[0], y(value)), (ends[1], y(value))]
        now += duration
    canvas.add(Line(tuple(outline), "ink", 1.0))
    if limit:
        at = y(limit[0])
        canvas.add(
            Line(((LEFT, at), (WIDTH - RIGHT, at)), "orange", 1.5, dashed=True),
            Text(WIDTH - RIGHT, at - 6, limit[1], 11, "ink", "end"),
        )
    return canvas


def _frame(canvas: Canvas, y: Scale, y_title: str, x_title: str, most: int = 6) -> None:
    """Horizontal lines with their values, and what both axes are."""
    canvas.add(Text(8, 14, y_title))
    for tick in y.ticks(most):
        at = y(tick)
        canvas.add(
            Line(((LEFT, at), (canvas.width - RIGHT, at)), "grid"),
            Text(LEFT - 8, at + 4, short(tick), 11, anchor="end"),
        )
    canvas.add(
        Line(((LEFT, y.start), (canvas.width - RIGHT, y.start)), "muted"),
        Text(canvas.width - RIGHT, canvas.height - 6, x_title, 12, "muted", "end"),
    )


def _legend(canvas: Canvas, colors: Mapping[str, str], mark: str = "") -> None:
    """Names beside their colours, in the upper right corner."""
    at = float(canvas.width - RIGHT)
    names = [*colors.items(), *([(mark, "")] if mark else [])]
    for name, color in reversed(names):
        at -= 6.4 * len(name)
        canvas.add(Text(at, 14, name, 12, "muted"))
        if color:
            canvas.add(Rect(at - 15, 5, 10, 10, color))
        else:
            canvas.add(Line(((at - 18, 10), (at - 5, 10)), "ink", 1.5))
        at -= 30
