"""compare.png: held-out loss of every member, over time and over tokens, each line named where it ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import Comparison

INK, SOFT, GRID = "#22262b", "#667080", "#e7e9ec"
COLORS = ("#2364aa", "#c8501e", "#2e8b57", "#8a4fb0", "#a67c00", "#0f8b8d", "#c2185b", "#555e68")
GAP = 11.5
"""Points between two names."""


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the curves of a comparison into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.6), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    longest = max((point[0] for outcome in comparison.outcomes for point in outcome.curve), default=1.0)
    minutes = longest >= 180
    most = max((point[1] for outcome in comparison.outcomes for point in outcome.curve), default=1)
    by_tokens = ("million tokens", 1, 1e6) if most >= 2e6 else ("thousand tokens", 1, 1e3)
    scales = (("minutes", 0, 60.0) if minutes else ("seconds", 0, 1.0), by_tokens)
    for axes, (label, column, scale) in zip(panels, scales, strict=True):
        _draw_panel(axes, comparison, column, scale)
        axes.set_xlabel(label, color=SOFT)
    figure.suptitle(comparison.protocol, x=0.008, ha="left", color=SOFT, fontsize=9)
    panels[0].set_ylabel(f"held-out loss, nats per {comparison.unit}", color=SOFT)
    panels[0].set_title("by time", loc="left", color=INK, fontsize=11, fontweight="bold")
    panels[1].set_title("by tokens", loc="left", color=INK, fontsize=11, fontweight="bold")
    figure.draw_without_rendering()
    for axes, (_, column, scale) in zip(panels, scales, strict=True):
        _name_lines(axes, comparison, column, scale)
    temporary = path.with_name(f".tmp-{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _draw_panel(axes: Any, comparison: Comparison, column: int, scale: float) -> None:
    for outcome, color in zip(comparison.outcomes, COLORS * len(comparison.outcomes), strict=False):
        if outcome.curve:
            x = [point[column] / scale for point in outcome.curve]
            axes.plot(x, [point[2] for point in outcome.curve], color=color, linewidth=1.8, zorder=2)
            axes.plot(x[-1], outcome.curve[-1][2], "o", color=color, markersize=4.5, zorder=3)
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6)
    axes.tick_params(colors=SOFT, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9ced3")


def _name_lines(axes: Any, comparison: Comparison, column: int, scale: float) -> None:
    """Write each member's name and last loss beside the end of its line, apart from each other."""
    from matplotlib.patheffects import withStroke

    ends = sorted(
        (outcome.curve[-1][2], outcome.curve[-1][column] / scale, outcome.name, color)
        for outcome, color in zip(comparison.outcomes, COLORS * len(comparison.outcomes), strict=False)
        if outcome.curve
    )
    points = 72 / axes.figure.dpi
    natural = [axes.transData.transform((x, loss))[1] * points for loss, x, _, _ in ends]
    for (loss, x, name, color), at, wanted in zip(ends, natural, spread(natural, GAP), strict=True):
        axes.annotate(f"{name} {loss:.2f}", (x, loss), xytext=(7, wanted - at), textcoords="offset points",
                      color=color, fontsize=9, va="center", fontweight="bold",
                      annotation_clip=False, path_effects=[withStroke(linewidth=3, foreground="white")],
                      zorder=4)  # fmt: skip


def spread(places: list[float], gap: float) -> list[float]:
    """Sorted places moved as little as need be, so that neighbours are at least `gap` apart."""
    groups: list[list[float]] = []  # each a run of neighbours that touch: its places
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _first(groups[-1], gap) < _first(groups[-2], gap) + gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    return [_first(group, gap) + gap * i for group in groups for i in range(len(group))]


def _first(group: list[float], gap: float) -> float:
    """Where a run of touching names begins, when it is centred on the places that they want."""
    return sum(group) / len(group) - gap * (len(group) - 1) / 2
