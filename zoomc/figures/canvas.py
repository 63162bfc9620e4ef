"""A picture as data: rectangles, lines, dots and text, written as SVG or painted as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

#: Colours by name, on light and on dark paper.
PALETTE = {
    "paper": ("#ffffff", "#16181d"),
    "ink": ("#1b1f27", "#e9ebef"),
    "muted": ("#667080", "#98a1b0"),
    "grid": ("#e4e7ec", "#2b3038"),
    "blue": ("#2a78d6", "#4f96ea"),
    "orange": ("#e0622a", "#ee7d48"),
    "green": ("#15976a", "#2bb586"),
    "violet": ("#7a4fd0", "#9d7bea"),
    "yellow": ("#c98a00", "#e0a526"),
    "grey": ("#9aa3b0", "#6d7683"),
}

#: Pixels of a PNG per unit of a canvas, and how much finer it is painted before it is shrunk.
SCALE, FINER = 2, 2


@dataclass(frozen=True)
class Rect:
    """A filled rectangle; ``tip`` shows under the pointer, here and below."""

    x: float
    y: float
    width: float
    height: float
    color: str
    tip: str = ""


@dataclass(frozen=True)
class Line:
    """A polyline."""

    points: tuple[tuple[float, float], ...]
    color: str
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """A filled circle with an edge of paper."""

    x: float
    y: float
    radius: float
    color: str
    tip: str = ""


@dataclass(frozen=True)
class Text:
    """A line of text whose baseline is at ``y``; ``anchor`` is start, middle or end."""

    x: float
    y: float
    text: str
    size: float = 12.0
    color: str = "muted"
    anchor: str = "start"


Shape = Rect | Line | Dot | Text


@dataclass
class Canvas:
    """Shapes in the order they are drawn."""

    width: int
    height: int
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        """Draw on top."""
        self.shapes += shapes

    def svg(self, label: str) -> str:
        """An SVG element whose colours are CSS variables; ``label`` is read to who cannot see."""
        parts = [
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img"'
            f' aria-label="{escape(label, quote=True)}">'
        ]
        parts += map(_element, self.shapes)
        return "\n".join([*parts, "</svg>"])


def stylesheet() -> str:
    """The palette as CSS variables, dark where the reader prefers it."""

    def variables(index: int) -> str:
        return "".join(f"--{name}:{both[index]};" for name, both in PALETTE.items())

    dark = f"@media (prefers-color-scheme:dark){{:root{{{variables(1)}}}}}"
    return f":root{{color-scheme:light dark;{variables(0)}}}\n{dark}"


def _element(shape: Shape) -> str:
    if isinstance(shape, Text):
        return (
            f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}"'
            f' fill="var(--{shape.color})" text-anchor="{shape.anchor}">{escape(shape.text)}</text>'
        )
    if isinstance(shape, Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        dashes = ' stroke-dasharray="5 4"' if shape.dashed else ""
        return (
            f'<polyline points="{points}" fill="none" stroke="var(--{shape.color})"'
            f' stroke-width="{shape.width:g}"{dashes}/>'
        )
    tip = f"<title>{escape(shape.tip)}</title>" if shape.tip else ""
    if isinstance(shape, Dot):
        return (
            f'<circle cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:.1f}"'
            f' fill="var(--{shape.color})" stroke="var(--paper)">{tip}</circle>'
        )
    return (
        f'<rect x="{shape.x:.2f}" y="{shape.y:.2f}" width="{shape.width:.2f}"'
        f' height="{shape.height:.2f}" fill="var(--{shape.color})">{tip}</rect>'
    )


def paint(canvases: Sequence[Canvas]) -> Image:
    """Canvases one below the other as an RGB image, on light paper."""
    from PIL import Image, ImageDraw

    fine = SCALE * FINER
    width = max(c.width for c in canvases)
    height = sum(c.height for c in canvases)
    image = Image.new("RGB", (width * SCALE, height * SCALE), PALETTE["paper"][0])
    top = 0
    for canvas in canvases:
        size = (canvas.width * fine, canvas.height * fine)
        sheet = Image.new("RGB", size, PALETTE["paper"][0])
        draw = ImageDraw.Draw(sheet)
        for shape in canvas.shapes:
            _paint(draw, shape, fine)
        image.paste(
            sheet.resize((canvas.width * SCALE, canvas.height * SCALE), Image.Resampling.LANCZOS),
            (0, top * SCALE),
        )
        top += canvas.height
    return image


def _paint(draw: object, shape: Shape, k: int) -> None:
    """Paint one shape, ``k`` pixels a unit."""
    from PIL import ImageDraw, ImageFont

    assert isinstance(draw, ImageDraw.ImageDraw)
    color = PALETTE[shape.color][0]
    if isinstance(shape, Rect):
        right = shape.x + max(shape.width, 1 / k) - 1 / k
        bottom = shape.y + max(shape.height, 1 / k) - 1 / k
        draw.rectangle([shape.x * k, shape.y * k, right * k, bottom * k], fill=color)
    elif isinstance(shape, Dot):
        r = shape.radius
        edges = [(shape.x - r) * k, (shape.y - r) * k, (shape.x + r) * k, (shape.y + r) * k]
        draw.ellipse(edges, fill=color, outline=PALETTE["paper"][0], width=k)
    elif isinstance(shape, Text):
        font = ImageFont.load_default(size=shape.size * k)
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        draw.text((shape.x * k, shape.y * k), shape.text, fill=color, font=font, anchor=anchor)
    else:
        for start, end in _strokes(shape):
            ends = [(x * k, y * k) for x, y in (start, end)]
            draw.line(ends, fill=color, width=max(1, round(shape.width * k)))


def _strokes(line: Line) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """A line's pieces: its segments, or dashes of 5 units with gaps of 4."""
    segments = list(zip(line.points, line.points[1:], strict=False))
    if not line.dashed:
        return segments
    found = []
    for (x0, y0), (x1, y1) in segments:
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        for k in range(int(length // 9) + 1):
            a, b = 9 * k / length, min(1.0, (9 * k + 5) / length)
            found.append(
                (
                    (x0 + a * (x1 - x0), y0 + a * (y1 - y0)),
                    (x0 + b * (x1 - x0), y0 + b * (y1 - y0)),
                )
            )
    return found
