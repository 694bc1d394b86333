"""distance.png: what is left of the gradient after so many tokens, each line named where it ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compare_figure import COLORS, GAP, GRID, INK, SOFT, spread

if TYPE_CHECKING:
    from .distance import Distances

FLOOR = 1e-16
"""What is drawn at the least: less than one part in so many is nothing."""
NAMED = 1e-13
"""Where a line that falls to the floor is named."""


def draw_distance(found: Distances, path: Path) -> None:
    """Draw all lines into a PNG, the share of the gradient on a logarithmic scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.2), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for line, color in zip(found.lines, COLORS * len(found.lines), strict=False):
        x = range(len(line.norms))
        low = [max(norm, FLOOR) for norm in line.low]
        axes.fill_between(x, low, _drawn(line.high), color=color, alpha=0.15, linewidth=0)
        axes.plot(x, _drawn(line.norms), color=color, linewidth=1.8)
    axes.set_yscale("log")
    top = max(max(line.high) for line in found.lines)
    axes.set_ylim(FLOOR / 3, 10 ** math.ceil(math.log10(top)))
    axes.set_xlim(0, len(found.lines[0].norms) - 1)
    axes.set_xlabel("tokens back", color=SOFT)
    axes.set_ylabel("gradient, as a share of the newest token's", color=SOFT)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=SOFT, length=0, which="both")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9ced3")
    axes.set_title("How far back the gradient reaches", loc="left", color=INK, fontsize=11, fontweight="bold")
    figure.suptitle(found.protocol, x=0.008, ha="left", color=SOFT, fontsize=9)
    figure.draw_without_rendering()
    _name_lines(axes, found)
    temporary = path.with_name(f".tmp-{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _drawn(norms: list[float]) -> list[float]:
    """A line ends where it meets the floor, and a band is cut off there."""
    return [norm if norm > FLOOR else math.nan for norm in norms]


def _reached(norms: list[float]) -> int:
    """Where a line falls below the height at which it is named; past its end where it never does."""
    return next((i for i, norm in enumerate(norms) if norm <= NAMED), len(norms))


def _name_lines(axes: Any, found: Distances) -> None:
    """Names beside the ends; of a line that has reached the floor, where it reaches it."""
    from matplotlib.patheffects import withStroke

    points = 72 / axes.figure.dpi
    halo = [withStroke(linewidth=3, foreground="white")]
    style: dict[str, Any] = dict(textcoords="offset points", fontsize=9, fontweight="bold",
                                 annotation_clip=False, path_effects=halo)  # fmt: skip
    ends = []
    for line, color in zip(found.lines, COLORS * len(found.lines), strict=False):
        last = len(line.norms) - 1
        if line.norms[-1] > FLOOR:
            ends.append((line.norms[-1], last, line.name, color))
            continue
        reached = _reached(line.norms)
        first = reached == min(_reached(line.norms) for line in found.lines)  # left of it is nothing
        at = (reached, line.norms[reached])
        side, beside = ("right", (-6, -5)) if first else ("left", (6, 0))
        axes.annotate(line.name, at, xytext=beside, ha=side, color=color, **style)
    ends.sort()
    natural = [axes.transData.transform((x, y))[1] * points for y, x, _, _ in ends]
    for (y, x, name, color), at, wanted in zip(ends, natural, spread(natural, GAP), strict=True):
        axes.annotate(name, (x, y), xytext=(7, wanted - at), color=color, va="center", **style)
