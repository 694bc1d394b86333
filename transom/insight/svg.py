"""Drawings on plain arrays: maps, arcs, panes of heads, bars and curves as SVG that needs nothing else.

Large maps are one small PNG inside the SVG (a map of 64 x 64 is 2 KB, as rectangles it is 200 KB); its colour
is light, its alpha the value, so it reads on paper and on black. Nothing here knows a model. Read next:
figures.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .html import SVG_RULES, Child, Markup, tag

Array = NDArray[np.floating]
LIGHT = (224, 140, 8)
"""The accent as PNG: between its shades on light and on dark paper."""
CHARACTER = 7.3
"""Width in pixels of a character of `word`."""
CURVES = ("#e8a020", "#3b6ea5", "#7b8f3c", "#b0563f", "#6d5aa8", "#2f8f8b", "#a0713a", "#8a8f94")
NUMBERED = 40
"""A map of more rows than this names no tokens: they would not be readable."""
EDGE = 12
"""Paper around a drawing that stands alone."""
ALONE = (
    ".transom-drawing{--ink:#171a1d;--soft:#4f575d;--faint:#666e74;--line:#dde1e3;--pane:#e6e9ea;"
    "--accent:#e8a020;--deep:#8a5300}" + SVG_RULES.replace("SVG", ".transom-drawing")
)


def png(values: Array) -> str:
    """Values (R, C) from 0 to 1 as a data URI: one pixel each, alpha as the value (by its square root, since
    most weights are small)."""
    levels = np.nan_to_num(np.clip(np.asarray(values, dtype=np.float64), 0, 1)) ** 0.5
    rows, columns = levels.shape
    lines = np.zeros((rows, columns + 1), dtype=np.uint8)  # each begins with its filter, none
    lines[:, 1:] = np.round(levels * 255)
    parts = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        _chunk(b"PLTE", bytes(LIGHT) * 256),
        _chunk(b"tRNS", bytes(range(256))),
        _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
        _chunk(b"IEND", b""),
    ]
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Drawing(Markup):
    """An SVG as a part of a page, which styles it; alone, in a notebook, it has paper and colours itself."""

    width: float = 0.0
    height: float = 0.0
    parts: tuple[Child, ...] = ()
    label: str = ""

    def alone(self) -> Markup:
        """It as an image of its own, the same on light and on dark pages."""
        wide, high = self.width + 2 * EDGE, self.height + 2 * EDGE
        paper = tag("rect", x=-EDGE, y=-EDGE, width=wide, height=high, rx=8, fill="#fff")
        style = tag("style", Markup(ALONE))
        return tag("svg", tag("title", self.label), style, paper, *self.parts, class_="transom-drawing",
                   xmlns="http://www.w3.org/2000/svg", role="img", width=f"{wide:.0f}",
                   viewBox=f"-{EDGE} -{EDGE} {wide:.0f} {high:.0f}")  # fmt: skip

    def _repr_svg_(self) -> str:
        return self.alone()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.label)


def drawing(width: float, height: float, *parts: Child, label: str) -> Drawing:
    """An SVG of this size; `label` is what a screen reader says."""
    drawn = Drawing(tag(
        "svg", tag("title", label), *parts, xmlns="http://www.w3.org/2000/svg", role="img",
        viewBox=f"0 0 {width:.0f} {height:.0f}", width=f"{width:.0f}",
    ))  # fmt: skip
    drawn.width, drawn.height, drawn.parts, drawn.label = width, height, parts, label
    return drawn


def shrunk(values: Array, most: int) -> Array:
    """Values (R, C) averaged into at most `most` rows and columns, none of them lost."""
    for axis in (0, 1):
        n = values.shape[axis]
        if n > most:
            edges = np.linspace(0, n, most + 1).round().astype(int)
            totals = np.add.reduceat(values, edges[:-1], axis=axis)
            counts = np.diff(edges).reshape((-1, 1) if axis == 0 else (1, -1))
            values = totals / counts
    return values


def heat(
    values: Array, rows: Sequence[str], columns: Sequence[str], *, label: str, top: float | None = None,
    size: float = 460, word: str = "", written: bool = False,
) -> Drawing:  # fmt: skip
    """A map (R, C), from 0 to `top` (by default its largest), its rows and columns named where there is room.

    `word`: what a value is called when the pointer rests on it (maps of up to 24 x 24). `written`: cells are
    large enough for their values, and have them.
    """
    values = np.asarray(values, dtype=np.float64)
    n_rows, n_columns = values.shape
    top = top or float(np.nanmax(values, initial=0.0)) or 1.0
    cell = max(1.0, min(44.0 if written else 22.0, size / max(n_rows, n_columns)))
    named = [n_rows <= NUMBERED, n_columns <= NUMBERED]
    left = 12 + CHARACTER * max((len(_short(name)) for name in rows), default=0) if named[0] else 34.0
    above = 12 + 5.2 * max((len(_short(name)) for name in columns), default=0) if named[1] else 20.0
    width, height = n_columns * cell, n_rows * cell
    small = shrunk(values / top, 512)
    parts: list[Markup] = [
        tag("rect", class_="pane", x=left, y=above, width=width, height=height),
        tag("image", href=png(small), x=left, y=above, width=width, height=height,
            preserveAspectRatio="none"),
    ]  # fmt: skip
    parts += _row_names(rows, cell, left, above) if named[0] else _numbers(n_rows, cell, left, above, "y")
    parts += (
        _column_names(columns, cell, left, above) if named[1] else _numbers(n_columns, cell, left, above, "x")
    )
    if max(n_rows, n_columns) <= 24 and word:
        parts += [
            tag("rect", tag("title", f"{rows[r]} → {columns[c]}: {values[r, c]:.3g} {word}"),
                x=left + c * cell, y=above + r * cell, width=cell, height=cell, fill="transparent")
            for r in range(n_rows) for c in range(n_columns) if values[r, c] > top / 200
        ]  # fmt: skip
    if written:
        parts += [
            tag("text", f"{value:.2f}", class_="mid", x=left + (c + 0.5) * cell,
                y=above + (r + 0.5) * cell + 4, style="fill:#171a1d" if value > top / 4 else None)
            for (r, c), value in np.ndenumerate(values)
        ]  # fmt: skip
    return drawing(left + width + 40, above + height + 4, *parts, label=label)


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _row_names(names: Sequence[str], cell: float, left: float, above: float) -> list[Markup]:
    return [
        tag("text", _short(name), class_="end", x=left - 6, y=above + (r + 0.5) * cell + 4)
        for r, name in enumerate(names)
    ]


def _column_names(names: Sequence[str], cell: float, left: float, above: float) -> list[Markup]:
    places = [(left + (c + 0.5) * cell, above - 6.0) for c in range(len(names))]
    return [
        tag("text", _short(name), transform=f"translate({x + 3:.1f} {y:.1f}) rotate(-45)")
        for (x, y), name in zip(places, names, strict=True)
    ]


def _numbers(n: int, cell: float, left: float, above: float, axis: str) -> list[Markup]:
    """The numbers of a few rows or columns."""
    step = max(1, round(n / 4))
    at = range(0, n, step)
    if axis == "y":
        return [tag("text", str(i), class_="end", x=left - 6, y=above + (i + 0.5) * cell + 4) for i in at]
    return [tag("text", str(i), class_="mid", x=left + (i + 0.5) * cell, y=above - 6) for i in at]


def arcs(
    tokens: Sequence[str], query: int, weights: Sequence[float], *, label: str, most: int = 12
) -> Drawing:
    """Which keys a query's weight goes to: the heaviest as arcs over the tokens, as thick as they weigh.

    The first token is drawn in grey: what rests there is mostly weight that has nowhere to go.
    """
    widths = [CHARACTER * len(_short(token)) + 12 for token in tokens]
    starts = np.concatenate([[0.0], np.cumsum(widths)])
    middle = [float(starts[i] + widths[i] / 2) for i in range(len(tokens))]
    order = sorted(range(len(weights)), key=lambda key: -weights[key])[:most]
    heavy = [key for key in order if weights[key] >= 0.01]
    spans = [abs(middle[query] - middle[key]) for key in heavy]
    rise = min(130.0, max([28.0, *(16 + span * 0.34 for span in spans)]))
    parts: list[Markup] = []
    for key, span in sorted(zip(heavy, spans, strict=True), key=lambda pair: weights[pair[0]]):
        weight, height = float(weights[key]), min(rise - 6, 14 + span * 0.34)
        x0, x1 = middle[query], middle[key]
        if key == query:
            x0, x1 = x0 - 7, x0 + 7
        top = rise - height * 1.3
        path = f"M{x0:.1f} {rise:.1f}C{x0:.1f} {top:.1f} {x1:.1f} {top:.1f} {x1:.1f} {rise:.1f}"
        style = "stroke:var(--faint)" if key == 0 and query else None
        parts.append(
            tag("path", tag("title", f"{tokens[query]} → {tokens[key]}: {weight:.3f}"),
                class_="arc", d=path, stroke_width=0.8 + 9 * weight, stroke_opacity=0.35 + 0.65 * weight,
                style=style)
        )  # fmt: skip
    for i, token in enumerate(tokens):
        lit = weights[i] if i < len(weights) else 0.0
        if i == query:
            parts.append(tag("rect", class_="pane", x=middle[i] - widths[i] / 2 + 1, y=rise + 4,
                             width=widths[i] - 2, height=20, rx=3))  # fmt: skip
        kind = "word mid" if lit >= 0.01 or i == query else "mid faint"
        parts.append(tag("text", _short(token), class_=kind,
                         x=middle[i], y=rise + 18))  # fmt: skip
        if lit >= 0.01:
            parts.append(tag("text", f"{lit:.2f}".removeprefix("0"), class_="mid", x=middle[i], y=rise + 36))
    return drawing(float(starts[-1]), rise + 42, *parts, label=label)


def panes(
    thumbnails: Sequence[Sequence[Array]], titles: Sequence[Sequence[str]], apart: Sequence[Sequence[bool]],
    *, label: str, first: int = 0,
) -> Drawing:  # fmt: skip
    """The heads of a model as a window: a row of panes for each layer, the last layer on top.

    thumbnails[layer][head] (R, C) from 0 to 1; apart: whether it rests on the first token, drawn dim.
    """
    n_layers, n_heads = len(thumbnails), max(map(len, thumbnails))
    cell = max(14.0, min(72.0, 720.0 / n_heads, 1200.0 / n_layers))
    left, gap = 30.0, 2.0 if cell < 24 else 3.0
    parts: list[Markup] = []
    for layer in range(n_layers):
        y = (n_layers - 1 - layer) * (cell + gap)
        parts.append(tag("text", str(first + layer), class_="end", x=left - 8, y=y + cell / 2 + 4))
        for head, values in enumerate(thumbnails[layer]):
            x, scale = left + head * (cell + gap), float(np.max(values)) or 1.0
            parts.append(
                tag("g", tag("title", titles[layer][head]),
                    tag("rect", class_="pane", x=x, y=y, width=cell, height=cell, rx=2),
                    tag("image", href=png(shrunk(np.asarray(values) / scale, 24)), x=x, y=y, width=cell,
                        height=cell, opacity=0.3 if apart[layer][head] else None))
            )  # fmt: skip
    height = n_layers * (cell + gap)
    step = max(1, round(n_heads / 12))
    parts += [
        tag("text", str(head), class_="mid", x=left + head * (cell + gap) + cell / 2, y=height + 12)
        for head in range(0, n_heads, step)
    ]
    return drawing(left + n_heads * (cell + gap), height + 18, *parts, label=label)


def curves(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, label: str, across: str, up: str,
    log: bool = False, width: float = 420, height: float = 200,
) -> Drawing:  # fmt: skip
    """Curves (name, places, values) in one frame with round numbers at its sides, several with their names
    below; `log`: powers of ten.
    """
    marks = [(x, y) for _, xs, ys in series for x, y in zip(xs, ys, strict=True) if _shown(y, log)]
    if not marks:
        return Drawing("")
    low_x, high_x = min(x for x, _ in marks), max(x for x, _ in marks)
    ticks = _ticks([y for _, y in marks], log)
    low, high = (math.log10(ticks[0]), math.log10(ticks[-1])) if log else (ticks[0], ticks[-1])
    left, above, below, right = 54.0, 22.0, 34.0, 16.0
    inner_x, inner_y = width - left - right, height - above - below

    def place(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if log else y
        across_x = (x - low_x) / (high_x - low_x or 1)
        return left + inner_x * across_x, above + inner_y * (1 - (y - low) / (high - low or 1))

    parts: list[Markup] = [tag("text", up, x=0, y=10)]
    for tick in ticks:
        _, y = place(low_x, tick)
        parts.append(tag("path", class_="axis", d=f"M{left} {y:.1f}h{inner_x}"))
        parts.append(tag("text", _number(tick), class_="end", x=left - 8, y=y + 4))
    parts.append(tag("text", _number(low_x), x=left, y=height - 14))
    parts.append(tag("text", f"{_number(high_x)} {across}", class_="end", x=width - right, y=height - 14))
    for i, (name, xs, ys) in enumerate(series):
        points = [place(x, y) for x, y in zip(xs, ys, strict=True) if _shown(y, log)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        color = CURVES[i % len(CURVES)]
        if len(points) == 1:
            x, y = points[0]
            parts.append(tag("circle", tag("title", name), cx=x, cy=y, r=3, fill=color))
        elif points:
            parts.append(tag("polyline", tag("title", name), class_="curve", points=line, stroke=color))
    if len(series) > 1:
        keys, height = _legend([name for name, *_ in series], width, height)
        parts += keys
    return drawing(width, height, *parts, label=label)


def _shown(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _ticks(values: Sequence[float], log: bool) -> list[float]:
    """A few round numbers from below the smallest to above the largest."""
    low, high = min(values), max(values)
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        last = max(last, first + 1)
        step = max(1, -(-(last - first) // 4))
        return [10.0**k for k in range(last, first - step, -step)][::-1]  # no empty decades on top
    span = (high - low) or abs(high) or 1.0
    rough = span / 3
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough)
    first = math.floor(low / step)
    return [step * k for k in range(first, max(math.ceil(high / step), first + 1) + 1)]


def _number(value: float) -> str:
    if value and (abs(value) < 0.001 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _legend(names: Sequence[str], width: float, y: float) -> tuple[list[Markup], float]:
    """Names beside the colours of their curves, as many in a row as there is room for; and where they end."""
    parts: list[Markup] = []
    x, y = 0.0, y + 8
    for i, name in enumerate(names):
        wide = 40 + CHARACTER * len(name)
        if x and x + wide > width:
            x, y = 0.0, y + 18
        color = CURVES[i % len(CURVES)]
        parts.append(tag("path", d=f"M{x:.0f} {y - 4:.0f}h14", stroke=color, stroke_width=3))
        parts.append(tag("text", name, x=x + 20, y=y))
        x += wide
    return parts, y + 6
