"""loss.png: how a run learned, beside the baselines that give its numbers a meaning.

Training and held-out loss over tokens; uniform, unigram and bigram as labelled lines, so that a glance says
what the model knows more than counting words would.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

from ..output import write_whole
from .report import Event

INK, TRAIN, HELD_OUT, LINES = "#22262b", "#9db8d2", "#c2410c", "#7c8791"
POINTS = 2000
"""More than this many points of a curve are thinned out: a picture has no more columns."""


def draw_loss(
    events: list[Event], baselines: dict[str, float], title: str, path: Path, unit: str = "token"
) -> None:
    """Draw train and held-out loss of `events` over tokens, with `baselines` {name: nats per unit}."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [(e["tokens"], e["loss"]) for e in events if e["event"] == "step" and _is_number(e["loss"])]
    scored = [(e["tokens"], e["loss"]) for e in events if e["event"] == "held_out" and _is_number(e["loss"])]
    if not steps:
        return

    # Of training the losses themselves, pale, and a running average; of the held-out side every score.
    figure = Figure(figsize=(8.5, 4.8), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    tokens = [t / 1e6 for t, _ in steps]
    smoothed = smooth([loss for _, loss in steps])
    thin = max(1, len(steps) // POINTS)
    axes.plot(tokens[::thin], [loss for _, loss in steps[::thin]], color=TRAIN, linewidth=0.8, alpha=0.55)
    axes.plot(tokens[::thin], smoothed[::thin], color="#3b6ea5", linewidth=1.6, label="training")
    if scored:
        axes.plot([t / 1e6 for t, _ in scored], [loss for _, loss in scored], color=HELD_OUT, linewidth=1.6,
                  marker="o", markersize=3.5, label="held-out")  # fmt: skip
        axes.annotate(f"{scored[-1][1]:.2f}", (scored[-1][0] / 1e6, scored[-1][1]), xytext=(0, -13),
                      textcoords="offset points", color=HELD_OUT, ha="center", fontsize=9)  # fmt: skip

    # A baseline is a dashed line with its name at the right; the axes stay quiet.
    for name, nats in baselines.items():
        axes.axhline(nats, color=LINES, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(f" {name} {nats:.2f}", (1.0, nats), xycoords=("axes fraction", "data"), color=LINES,
                      va="center", fontsize=8.5, annotation_clip=False)  # fmt: skip
    axes.set_xlim(0, max(tokens))
    axes.set_xlabel("million tokens", color=INK)
    axes.set_ylabel(f"loss, nats per {unit}", color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.grid(axis="y", color="#e7e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9ced3")
    axes.legend(loc="upper right", labelcolor=INK, edgecolor="none", framealpha=1.0)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())


def smooth(values: list[float], share: float = 0.02) -> list[float]:
    """Average as values come, the weight falling off over `share` of the points, without a bias at first."""
    keep = 1 - 1 / max(1.0, share * len(values))
    total, weight, smoothed = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(total / weight)
    return smoothed


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
