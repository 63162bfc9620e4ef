"""A report as pictures: charts drawn once, as SVG in one HTML file and as PNG."""

from .page import html, png

__all__ = ["html", "png"]
