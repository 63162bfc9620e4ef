"""Reports as one self-contained HTML file, or as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .canvas import Canvas, Line, Text, paint, stylesheet
from .charts import WIDTH
from .content import Figure, energy_facts, facts, figures

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..report import Report

_STYLE = """
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
main{max-width:960px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:26px;margin:0 0 4px}
h2{font-size:20px;margin:36px 0 8px;border-top:1px solid var(--grid);padding-top:20px}
h3{font-size:16px;margin:32px 0 2px}
p{margin:0 0 10px;color:var(--muted);max-width:80ch}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:10px;margin:14px 0}
dl div{border:1px solid var(--grid);border-radius:8px;padding:8px 12px}
dt{color:var(--muted);font-size:13px}
dd{margin:0;font-size:17px;font-variant-numeric:tabular-nums}
svg{display:block;width:100%;height:auto;font-family:inherit}
svg circle:hover,svg rect:hover{opacity:.7}
details{margin:18px 0}
summary{cursor:pointer;color:var(--muted)}
pre{overflow-x:auto;font-size:12px;line-height:1.4;border:1px solid var(--grid);
border-radius:8px;padding:12px}
"""


def html(sections: Sequence[tuple[str, Report]]) -> str:
    """A page that needs nothing else: no script, no link, no font.

    Args:
        sections: reports with their titles.
    """
    body = []
    for title, report in sections:
        for name, graph in _graphs(title, report):
            body.append(f"<h2>{escape(name)}</h2>" if name else "")
            pairs = _facts(report, graph)
            body.append("<dl>")
            body += [f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs]
            body.append("</dl>")
            for figure in figures(graph):
                body += [
                    f"<section><h3>{escape(figure.title)}</h3>",
                    f"<p>{escape(figure.note)}</p>",
                    figure.canvas.svg(f"{figure.title}. {figure.note}"),
                    "</section>",
                ]
        body.append(
            "<details><summary>Everything in words</summary>"
            f"<pre>{escape(report.text(level=3))}</pre></details>"
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>zoomc report</title>\n<style>{stylesheet()}{_STYLE}</style></head>\n"
        "<body><main><h1>zoomc report</h1>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def png(sections: Sequence[tuple[str, Report]]) -> Image:
    """The same charts, one below the other."""
    sheets = [Canvas(WIDTH, 44, [Text(8, 30, "zoomc report", 22, "ink")])]
    for title, report in sections:
        for name, graph in _graphs(title, report):
            sheets.append(_header(name, _facts(report, graph)))
            for figure in figures(graph):
                sheets += [_heading(figure), figure.canvas]
    return paint(sheets)


def _graphs(title: str, report: Report) -> list[tuple[str, dict[str, object]]]:
    """Each graph of a report with its heading."""
    graphs = report.to_dict()["graphs"]
    if len(graphs) == 1:
        return [(title, graphs[0])]
    start = f"{title}, graph" if title else "graph"
    return [(f"{start} {index}", graph) for index, graph in enumerate(graphs)]


def _facts(report: Report, graph: dict[str, object]) -> list[tuple[str, str]]:
    error = [] if report.error is None else [("error against eager", f"{report.error:.1e}")]
    energy = energy_facts(report.energy) if report.energy else []
    return facts(graph) + energy + error


def _header(name: str, pairs: Sequence[tuple[str, str]]) -> Canvas:
    """A graph's name and headline figures, four in a row."""
    start = 34 if name else 8
    canvas = Canvas(WIDTH, start + 44 * -(-len(pairs) // 4) + 8)
    canvas.add(Line(((0, 1), (WIDTH, 1)), "grid"))
    if name:
        canvas.add(Text(8, 26, name, 17, "ink"))
    for index, (key, value) in enumerate(pairs):
        x, y = 8 + 228 * (index % 4), start + 44 * (index // 4)
        canvas.add(Text(x, y + 14, key), Text(x, y + 32, value, 15, "ink"))
    return canvas


def _heading(figure: Figure) -> Canvas:
    """A chart's title and note, the note in lines that fit."""
    lines, line = [], ""
    for word in figure.note.split():
        if len(line) + len(word) > 135:
            lines.append(line)
            line = ""
        line += f"{word} "
    lines.append(line)
    canvas = Canvas(WIDTH, 44 + 16 * len(lines))
    canvas.add(Text(8, 28, figure.title, 16, "ink"))
    canvas.add(*(Text(8, 46 + 16 * k, text.strip(), 12) for k, text in enumerate(lines)))
    return canvas
