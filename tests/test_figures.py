"""A report's pictures: what they show is what was counted, and they need nothing but themselves."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from torch import nn

import zoomc
from zoomc.figures.canvas import Canvas, Dot, Line, Rect, Text
from zoomc.figures.charts import LEFT, Scale, bars, columns, roofline, short, steps_of
from zoomc.figures.charts import Point as ChartPoint
from zoomc.figures.content import figures

VOID = {"meta", "br", "img", "link"}


class Layers(nn.Module):
    """Two products and something in eager."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.conv = nn.Conv2d(32, 32, 3, padding=1)
        self.linear = nn.Linear(32, 48)

    def forward(self, x):
        y = self.conv(torch.relu(self.first(x)))
        return self.linear(y.flatten(2).transpose(1, 2)).sort(-1)[0]


class Page(HTMLParser):
    """Checks that every element is closed; collects attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.attributes, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def npu_report():
    torch.manual_seed(0)
    options = {"target": "npu", "npu": "eyeriss", "weights": "int8"}
    return zoomc.explain(Layers().eval(), torch.randn(1, 16, 10, 10), options=options)


def by_title(graph):
    return {figure.title: figure for figure in figures(graph)}


def test_a_page_needs_nothing_else_and_shows_every_layer(npu_report, tmp_path):
    npu_report.save_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    page = Page(text)
    assert not {"src", "href"} & {name for _, name, _ in page.attributes}
    shown = "".join(page.text)
    for name in ("first", "conv", "linear"):
        assert f"{name}: " in shown
    for title in by_title(npu_report.to_dict()["graphs"][0]):
        assert title in shown


def test_charts_draw_what_was_counted(npu_report):
    graph = npu_report.to_dict()["graphs"][0]
    rows, charts = graph["npu"]["layers"], by_title(graph)
    assert len(rows) == 3
    dots = [s for s in charts["Roofline of the NPU"].canvas.shapes if isinstance(s, Dot)]
    assert len(dots) == len(rows)
    traffic = charts["Off-chip traffic of each layer against its lower bound"].canvas.shapes
    heights: dict[str, float] = {}
    for s in traffic:
        if isinstance(s, Rect) and s.tip:
            heights[s.tip] = heights.get(s.tip, 0.0) + s.height
    tallest = max(row["bytes"] for row in rows)
    shares = sorted(h / max(heights.values()) for h in heights.values())
    assert shares == pytest.approx(sorted(row["bytes"] / tallest for row in rows), rel=1e-3)
    joules = sum(sum(row["counted"]["nanojoules"].values()) for row in rows)
    assert f"{joules / 1e6:.3f} mJ" in charts["Energy of a step by component"].note
    (clock,) = {row["mhz"] for row in rows}
    tips = [s.tip for s in charts["Clock over a step"].canvas.shapes if isinstance(s, Rect)]
    assert [f" {clock} MHz" in tip for tip in tips] == [True] * 3


def test_the_same_as_a_picture(npu_report, tmp_path):
    npu_report.save_png(tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as image:
        assert image.format == "PNG"
        assert image.width == 1840 and image.height > 2000
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 24)}
    assert {(0x2A, 0x78, 0xD6), (0x15, 0x97, 0x6A)} <= colors


def test_a_cpu_report_has_its_kernels_times(tmp_path):
    model, x = Layers().eval(), torch.randn(1, 16, 10, 10)
    report = zoomc.explain(model, x, profile=True)
    graph = report.to_dict()["graphs"][0]
    charts = by_title(graph)
    assert {"Kernels: roofline", "Where the time goes"} <= set(charts)
    kernels = {k["symbol"] for k in graph["kernels"] if k["flops"] and k["bytes"]}
    dots = [s for s in charts["Kernels: roofline"].canvas.shapes if isinstance(s, Dot)]
    assert len(dots) == len(kernels & set(graph["kernel_seconds"]))
    report.save_html(tmp_path / "report.html")
    untimed = dict(graph, kernel_seconds={})
    titles = by_title(untimed)
    assert "Kernels: arithmetic by intensity" in titles and "Where the time goes" not in titles


def test_a_place_that_cannot_be_written_is_named(npu_report, tmp_path):
    with pytest.raises(zoomc.ZoomcError, match="none"):
        npu_report.save_html(tmp_path / "none" / "report.html")
    with pytest.raises(zoomc.ZoomcError, match="cannot be written"):
        npu_report.save_png(tmp_path)


@pytest.mark.parametrize(
    ("high", "ticks"), [(1.0, 6), (0.37, 5), (7e6, 5), (3.0, 5), (0.0, 1), (1e-9, 5)]
)
def test_ticks_are_round_and_within(high, ticks):
    found = steps_of(high)
    assert 2 <= len(found) <= 7 or high == 0
    assert found[0] == 0 and found[-1] <= high * 1.000001
    if high:
        step = found[1] / 10.0 ** torch.tensor(found[1]).log10().floor().item()
        assert min(abs(step - m) for m in (1, 2, 5, 10)) < 1e-5


def test_scales_put_ends_where_they_belong():
    assert Scale(0, 10, 100, 0)(5) == 50
    assert Scale(1, 1000, 0, 3, log=True)(10) == pytest.approx(1)
    assert Scale(1, 1000, 0, 3, log=True).ticks() == [1, 10, 100, 1000]
    assert Scale(2, 2, 0, 9)(2) == 0  # one value alone


def test_odd_charts():
    lone = roofline([ChartPoint(1, 1, "a", 1, "<b>")], {"a": "blue"}, "y")
    assert "&lt;b&gt;" in lone.svg('quo"te') and 'aria-label="quo&quot;te"' in lone.svg('quo"te')
    flat = columns([("none", [0.0], None)], {"part": "blue"}, "MB", "x")
    assert all(s.height == 0 for s in flat.shapes if isinstance(s, Rect) and s.tip)
    (bar,) = [s for s in bars([("a", 0.0, "0", "blue")]).shapes if isinstance(s, Rect)]
    assert bar.width == 1
    assert short(0) == "0" and short(1234) == "1.23k" and short(3e7) == "30M"
    assert lone.width > LEFT


def test_painted_shapes_are_where_the_svg_has_them():
    from zoomc.figures.canvas import paint

    canvas = Canvas(40, 20, [Rect(0, 0, 20, 20, "blue"), Line(((20, 4), (40, 4)), "ink", 4)])
    canvas.add(Text(22, 18, "i", 5, "ink"), Dot(30, 15, 4, "orange"))
    image = paint([canvas, canvas])
    assert image.size == (80, 80)
    for top in (0, 40):
        assert image.getpixel((20, top + 20)) == (0x2A, 0x78, 0xD6)
        assert image.getpixel((70, top + 8)) == (0x1B, 0x1F, 0x27)
        assert image.getpixel((60, top + 30)) == (0xE0, 0x62, 0x2A)
        assert image.getpixel((70, top + 18)) == (255, 255, 255)
