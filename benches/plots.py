"""Plots as SVG, without a plotting library: bars of ratios, lines of how time grows, strips of what became of disks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from .common import Record, Series

WIDTH, ROW, LEFT, RIGHT = 760, 22, 400, 70  # pixels
COLOURS = ("#2f6f9f", "#c0652a", "#4d8b4d", "#8a5a9e", "#777777", "#b03a48")
GOOD, SHORT, PLAIN = "#4d8b4d", "#c0652a", "#2f6f9f"


def bars(title: str, records: Sequence[Record]) -> str:
    """Ratios on a logarithmic scale, one bar each; a goal is a mark across its bar."""
    values = [v for r in records for v in (r.figure, r.goal) if v is not None and v > 0]
    low, high = 10 ** math.floor(math.log10(min(*values, 0.5))), 10 ** math.ceil(math.log10(max(*values, 1.5)))
    room = WIDTH - LEFT - RIGHT

    def x(value: float) -> float:
        return LEFT + room * (math.log10(max(value, low)) - math.log10(low)) / (math.log10(high) - math.log10(low))

    height = 56 + ROW * len(records)
    out = []
    decade = low
    while decade <= high:
        out.append(_line(x(decade), 34, x(decade), height - 18, "#dddddd"))
        out.append(_text(x(decade), height - 4, f"{decade:g}×", "middle"))
        decade *= 10
    for i, r in enumerate(records):
        top = 38 + i * ROW
        out.append(_text(LEFT - 8, top + 13, _short(r.name), "end"))
        if r.figure is None:
            continue
        colour = {"ok": GOOD, "short": SHORT}.get(r.verdict, PLAIN)
        start, end = sorted((x(1), x(r.figure)))
        out.append(f'<rect x="{start:.1f}" y="{top + 3}" width="{max(end - start, 1):.1f}" height="{ROW - 8}" '
                   f'fill="{colour}"/>')
        out.append(_text(max(end, x(1)) + 5, top + 13, f"{r.figure:.2f}", "start"))
        if r.goal is not None:
            out.append(_line(x(r.goal), top, x(r.goal), top + ROW - 2, "#000000", 2))
    return _svg(title, height, out)


def lines(title: str, series: Sequence[Series]) -> str:
    """How y grows with x, both from zero; one line a series."""
    left, bottom, top, right, height = 70, 44, 40, 20, 360
    far = max(p[0] for s in series for p in s.points) or 1
    tall = max(p[1] for s in series for p in s.points) or 1

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (left + (WIDTH - left - right) * point[0] / far,
                height - bottom - (height - bottom - top) * point[1] / tall)

    out = []
    for step in range(6):
        px, py = place((far * step / 5, tall * step / 5))
        out += [_line(left, py, WIDTH - right, py, "#e4e4e4"), _text(left - 6, py + 4, f"{tall * step / 5:.3g}", "end"),
                _text(px, height - bottom + 16, f"{far * step / 5:.3g}", "middle")]
    for i, s in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        points = [place(p) for p in sorted(s.points)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in points]
        out.append(f'<rect x="{left + 12}" y="{top + 4 + i * 18}" width="10" height="10" fill="{colour}"/>')
        out.append(_text(left + 28, top + 13 + i * 18, s.line, "start"))
    out.append(_text((left + WIDTH - right) / 2, height - 8, series[0].x_label, "middle"))
    out.append(_text(left, top - 8, series[0].y_label, "start"))
    return _svg(title, height, out)


def strips(title: str, rows: Sequence[tuple[str, str]], colours: Mapping[str, tuple[str, str]]) -> str:
    """Rows of (name, letters), each a strip of cells from left to right. colours: letter -> (colour, what it means);
    letters that have none stay blank.
    """
    tall, top, left = 13, 52, 260
    room = WIDTH - left - 16
    out: list[str] = []
    at = 12.0
    for colour, meaning in colours.values():
        out.append(f'<rect x="{at:.0f}" y="31" width="10" height="10" fill="{colour}"/>')
        out.append(_text(at + 15, 40, meaning, "start"))
        at += 32 + 6.5 * len(meaning)
    for i, (name, letters) in enumerate(rows):
        y = top + i * tall
        out.append(_text(left - 6, y + 9, _short(name), "end", 9))
        out.append(f'<rect x="{left}" y="{y}" width="{room}" height="{tall - 3}" fill="#f4f4f4"/>')
        for start, end in _runs(letters):
            if letters[start] in colours:
                x, wide = (room * v / len(letters) for v in (start, end - start))
                out.append(f'<rect x="{left + x:.1f}" y="{y}" width="{wide:.1f}" height="{tall - 3}" '
                           f'fill="{colours[letters[start]][0]}"/>')
    return _svg(title, top + tall * len(rows) + 8, out)


def _runs(letters: str) -> list[tuple[int, int]]:
    """(start, end) of the runs of equal letters."""
    edges = [0, *(i for i in range(1, len(letters)) if letters[i] != letters[i - 1]), len(letters)]
    return list(zip(edges, edges[1:], strict=False)) if letters else []


def _short(name: str) -> str:
    return name if len(name) <= 62 else name[:61] + "…"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"/>')


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    body = "\n".join([_text(12, 20, title, "start", 15), *parts])
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" font-family="sans-serif">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
            f"{body}\n</svg>\n")
