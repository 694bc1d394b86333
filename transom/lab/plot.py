"""Figures of the claims as SVG: curves with their raw points, stacked bars, maps; nothing from outside.

Drawn 360 wide, so that the words are read on a phone as they stand; colours lie between those for light and
dark paper, and the ink follows the reader's. A line is told by its dashes too, never by its colour alone.
Read next: report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..insight.html import Markup, tag
from ..insight.svg import CURVES, Drawing

WIDTH, LEFT, RIGHT, ABOVE, BELOW = 360.0, 44.0, 18.0, 40.0, 34.0
ROW, HEIGHT = 16.0, 210.0
DASHES = ("", "6 3", "2 3", "9 3 2 3")
SHARE = 24.0
"""Width that a written share needs."""
CHARACTER = 6.6
"""Width in pixels of a character of a legend, at most."""
FEW = 8
"""So many places of a scale are named each; of more, round numbers."""
STYLE = """
.lab{--ink:#171a1d;--soft:#4f575d;--line:#d5dae1}
.lab.lab text{font:11.5px/1 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
fill:var(--soft)}
.lab text.title{fill:var(--ink);font-weight:600;font-size:12.5px}.lab text.end{text-anchor:end}
.lab text.mid,.lab text.on,.lab text.in{text-anchor:middle}.lab text.on{fill:var(--ink)}
.lab text.in{fill:#171a1d}
.lab .axis{stroke:var(--line);fill:none}.lab .mark{stroke:var(--soft);stroke-dasharray:3 3}
.lab .curve{fill:none;stroke-width:1.8;stroke-linejoin:round}
"""
ON_A_PAGE = """
svg.lab{color-scheme:light dark;width:100%;max-width:30rem;height:auto}
@media(prefers-color-scheme:dark){.lab{--ink:#e8eaeb;--soft:#a9b1b6;--line:#353b40}}
"""


@dataclass(frozen=True)
class Series:
    """One line: its places, and at each the values of all seeds."""

    name: str
    x: Sequence[float]
    y: Sequence[Sequence[float]]
    """Of each place the raw points; the line goes through their mean (of logarithms on a log scale)."""
    dots: bool = True
    """Whether the raw points are drawn; else a band from the least to the largest."""


@dataclass(frozen=True)
class Panel:
    """A piece of a figure."""

    parts: list[Markup] = field(default_factory=list)
    height: float = 0.0


def figure(*panels: Panel, label: str) -> Drawing:
    """Panels one below the other as one SVG; `label` is what a screen reader says."""
    placed, y = [], 0.0
    for panel in panels:
        placed.append(tag("g", *panel.parts, transform=f"translate(0 {y:.0f})"))
        y += panel.height + 14
    drawn = Drawing(tag(
        "svg", tag("title", label), tag("style", Markup(STYLE + ON_A_PAGE)), *placed,
        xmlns="http://www.w3.org/2000/svg", role="img", class_="lab", viewBox=f"0 0 {WIDTH:.0f} {y:.0f}",
    ))  # fmt: skip
    alone = tag("g", tag("style", Markup(STYLE)), *placed, class_="lab")
    drawn.width, drawn.height, drawn.parts, drawn.label = WIDTH, y, (alone,), label
    return drawn


def lines(
    series: Sequence[Series], *, title: str, across: str, up: str, log_x: bool = False, log_y: bool = False,
    floor: float = 1e-16, marks: Sequence[float] = (), top: float | None = None, bottom: float | None = None,
) -> Panel:  # fmt: skip
    """Curves over one frame. marks: values that a dashed line stands at. floor: what a log scale ends at."""

    def scale(v: float, log: bool) -> float:
        return math.log10(max(v, floor)) if log else v

    xs = [scale(x, log_x) for one in series for x in one.x]
    ys = [scale(v, log_y) for one in series for at in one.y for v in at if math.isfinite(v)]
    ys += [scale(v, log_y) for v in (*marks, *(b for b in (top, bottom) if b is not None))]
    ticks = _ticks(min(ys), max(ys), log_y)
    low, high, low_x, high_x = ticks[0], ticks[-1], min(xs), max(xs)
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - ABOVE - BELOW
    single = all(len(one.x) == 1 for one in series)
    if single:  # no line runs to the frame: dots stand clear of it
        low_x, high_x = (end + way * 0.08 * (high_x - low_x or 1) for end, way in ((low_x, -1), (high_x, 1)))

    def at(x: float, y: float) -> tuple[float, float]:
        return (LEFT + wide * (scale(x, log_x) - low_x) / (high_x - low_x or 1),
                ABOVE + tall * (1 - (scale(y, log_y) - low) / (high - low or 1)))  # fmt: skip

    parts = [tag("text", title, class_="title", x=0, y=12), tag("text", up, x=0, y=28)]
    for tick in ticks:
        y = ABOVE + tall * (1 - (tick - low) / (high - low or 1))
        parts.append(tag("path", class_="axis", d=f"M{LEFT} {y:.1f}h{wide}"))
        parts.append(tag("text", _number(10**tick if log_y else tick), class_="end", x=LEFT - 6, y=y + 4))
    parts += [tag("path", class_="mark", d=f"M{LEFT} {at(1, m)[1]:.1f}h{wide}") for m in marks]
    places = sorted({x for one in series for x in one.x})
    if len(places) > FEW and not log_x:
        places = [x for x in _ticks(places[0], places[-1], False) if places[0] <= x <= places[-1]]
    for x in _some(places, lambda x: at(x, floor)[0]):
        parts.append(tag("text", _number(x), class_="mid", x=at(x, 1)[0], y=HEIGHT - BELOW + 16))
    parts.append(tag("text", across, class_="end", x=WIDTH - RIGHT, y=HEIGHT - BELOW + 31))
    for i, one in enumerate(series):
        color, middle = CURVES[i % len(CURVES)], []
        for x, seeds in zip(one.x, one.y, strict=True):
            kept = [v for v in seeds if math.isfinite(v)]
            if kept:
                inner = sum(scale(v, log_y) for v in kept) / len(kept)
                middle.append(at(x, 10**inner if log_y else inner))
        if not one.dots:
            edge = [at(x, max(v)) for x, v in zip(one.x, one.y, strict=True)]
            edge += [at(x, min(v)) for x, v in reversed(list(zip(one.x, one.y, strict=True)))]
            parts.append(tag("path", d=f"M{_path(edge)}z", fill=color, fill_opacity="0.18"))
        parts.append(tag("polyline", tag("title", one.name), class_="curve", points=_path(middle),
                         stroke=color, stroke_dasharray=DASHES[i % len(DASHES)] or None))  # fmt: skip
        dots = [(x, v) for x, seeds in zip(one.x, one.y, strict=True) for v in seeds if math.isfinite(v)]
        if one.dots:
            parts += [tag("circle", cx=at(x, v)[0], cy=at(x, v)[1], r=2.0, fill=color) for x, v in dots]
    key, height = legend([one.name for one in series], HEIGHT + 16, dots=single)
    return Panel(parts + key, height)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def stacks(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], *, title: str) -> Panel:
    """A bar a row, of shares that add up to 1 and are named below. Those that have the room are written."""
    left = CHARACTER * max(len(name) for name, _ in rows) + 8
    wide, parts = WIDTH - left - RIGHT, [tag("text", title, class_="title", x=0, y=12)]
    for r, (name, shares) in enumerate(rows):
        x, y = left, 24 + r * 21.0
        parts.append(tag("text", name, class_="end", x=left - 6, y=y + 13))
        for i, share in enumerate(shares):
            color = CURVES[i % len(CURVES)]
            parts.append(tag("rect", tag("title", f"{names[i]}: {share:.0%}"), x=x, y=y,
                             width=wide * share, height=17, fill=color))  # fmt: skip
            if wide * share >= SHARE:
                parts.append(tag("text", f"{share:.0%}", class_="in", x=x + wide * share / 2, y=y + 13))
            x += wide * share
    key, height = legend(names, 24 + len(rows) * 21.0 + 12, dashes=DASHES[:1])
    return Panel(parts + key, height)


def grid(
    values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], *, title: str, across: str
) -> Panel:
    """A map of shares (R, C) from 0 to 1, each written into its cell."""
    left = CHARACTER * max(map(len, rows)) + 8
    wide, parts = (WIDTH - left - RIGHT) / len(columns), [tag("text", title, class_="title", x=0, y=12)]
    for r, name in enumerate(rows):
        y = 22 + r * 22.0
        parts.append(tag("text", name, class_="end", x=left - 6, y=y + 14))
        for c, value in enumerate(values[r]):
            x = left + c * wide
            parts.append(tag("rect", x=x, y=y, width=wide - 2, height=20, fill=CURVES[0],
                             fill_opacity=f"{0.08 + 0.8 * value:.2f}"))  # fmt: skip
            shown = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"
            on = "in" if value >= 0.7 else "on"  # dark ink on a full colour, whatever the paper
            parts.append(tag("text", shown, class_=on, x=x + wide / 2 - 1, y=y + 14))
    y = 22 + len(rows) * 22.0 + 12
    parts += [tag("text", n, class_="mid", x=left + (c + 0.5) * wide, y=y) for c, n in enumerate(columns)]
    parts.append(tag("text", across, class_="end", x=WIDTH - RIGHT, y=y + 16))
    return Panel(parts, y + 22)


def legend(
    names: Sequence[str], y: float, dashes: Sequence[str] = DASHES, dots: bool = False
) -> tuple[list[Markup], float]:
    """Names beside strokes as their lines have them, or dots, as many in a row as there is room for; and the
    end.
    """
    parts, x, stroke = [], 0.0, 8 if dots else 20
    for i, name in enumerate(names):
        wide = stroke + 10 + CHARACTER * len(name)
        if x and x + wide > WIDTH:
            x, y = 0.0, y + ROW
        dash = dashes[i % len(dashes)] or None
        color, at = CURVES[i % len(CURVES)], f"M{x:.0f} {y - 4:.0f}h{stroke}"
        parts.append(tag("circle", cx=x + 4, cy=y - 4, r=3, fill=color) if dots else
                     tag("path", d=at, stroke=color, stroke_width="3", stroke_dasharray=dash))  # fmt: skip
        parts.append(tag("text", name, x=x + stroke + 5, y=y))
        x += wide + 8
    return parts, y + 6


def _some(places: Sequence[float], across: Callable[[float], float]) -> list[float]:
    """Places whose numbers do not touch, the first and the last among them."""
    pixels = {x: across(x) for x in places}
    kept = [places[0]]
    for x in places[1:]:
        if pixels[x] - pixels[kept[-1]] >= 34 and (x == places[-1] or pixels[places[-1]] - pixels[x] >= 34):
            kept.append(x)
    return kept


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """A few round numbers from below the smallest to above the largest; of logarithms whole ones."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 3))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= span / 3 - 1e-12)
    if log:
        step = max(1, math.ceil(span / 4))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * k for k in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    if value and (abs(value) < 0.001 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
