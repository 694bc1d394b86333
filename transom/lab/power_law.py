"""Claim 6: does the loss fall as a power law of size and data, so that one can be told from others?

Byte models of growing size, their losses taken at growing amounts of data; a law is fitted to all but the
largest, whose loss it has to foretell. Read next: tiny.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from ..insight.html import Markup
from ..intervals import Estimate, student
from ..units import counted
from .claim import Plant, Point, Points, Settings, solved
from .plot import Series, figure, lines
from .texts import byte_rows, code
from .tiny import Net, Seeds, rows_of, shape

SIZES = ((1, 16), (2, 24), (2, 40), (3, 56), (4, 72))
"""Layers and width."""
MARKS = (0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the steps at which the loss is taken."""
AVERAGE = 0.03
"""How fast the averaged weights follow; what a cool-down would bring, at every mark."""
HUBER = 1e-3
Floats = NDArray[np.float64]


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    work = {"steps": 400 if quick else 2000, "rows": 16, "length": 64, "rate": 3e-3}
    sizes = SIZES[:-1] if quick else SIZES
    learned = {name(size): {**work, "size": list(size), "shuffled": False} for size in sizes}
    ends = {
        f"{name(size)}, shuffled": {**work, "size": list(size), "shuffled": True}
        for size in (sizes[0], sizes[-1])
    }
    return learned | ends


def name(size: tuple[int, int]) -> str:
    return f"{counted(size[0], 'layer')} of {size[1]}"


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    layers, width = arm["size"]
    config = shape(
        256, arm["length"], dim=width, n_layers=layers, n_heads=1, head_dim=width, ffn_dim=2 * width
    )
    learned, held = code()
    if arm["shuffled"]:
        orders = (
            torch.randperm(len(part), generator=torch.Generator().manual_seed(0)) for part in (learned, held)
        )
        learned, held = (part[order] for part, order in zip((learned, held), orders, strict=True))
    nets = Seeds(lambda seed: Net(config, seed), seeds)
    asked = rows_of(byte_rows(held, 8 * arm["rows"], arm["length"]), [0] * len(seeds), salt=7)
    averages = {name: weight.detach().clone() for name, weight in nets.weights.items()}
    marks = {max(1, round(share * arm["steps"])) for share in MARKS}
    losses: list[list[float]] = []

    @torch.no_grad()
    def after(step: int) -> None:
        for name, weight in nets.weights.items():
            averages[name].lerp_(weight, max(AVERAGE, 1 / step))
        if step in marks:
            kept, nets.weights = nets.weights, averages
            losses.append(nets.loss(asked))
            nets.weights = kept

    nets.train(
        byte_rows(learned, arm["rows"], arm["length"]), arm["steps"], arm["rate"], cool_down=0.0, after=after
    )
    size = sum(weight.numel() for weight in nets.weights.values()) // len(seeds)
    data = [step * arm["rows"] * arm["length"] for step in sorted(marks)]
    return [{"weights": size, "bytes": data, "losses": [at[i] for at in losses]} for i in range(len(seeds))]


def table(points: Points, seed: int) -> Floats:
    """Size, data and loss of every mark of one seed, (M, 3), the largest model's last."""
    rows = [
        (of[seed]["weights"], data, loss)
        for key, of in points.items() if not key.endswith("shuffled")
        for data, loss in zip(of[seed]["bytes"], of[seed]["losses"], strict=True)
    ]  # fmt: skip
    return np.array(sorted(rows), np.float64)


def fitted(rows: Floats) -> Floats:
    """E, A, alpha, B, beta of L = E + A / N^alpha + B / D^beta, by Huber's loss of log L (Hoffmann 2022)."""
    size, data, loss = np.log(rows).T

    def terms(p: Floats) -> Floats:
        return np.logaddexp(np.logaddexp(p[0], p[1] - p[2] * size), p[3] - p[4] * data)

    def cost(p: Floats) -> float:
        off = np.abs(terms(p) - loss)
        return float(np.where(off < HUBER, off**2 / 2, HUBER * (off - HUBER / 2)).sum() / HUBER)

    starts = [(e, *start) for e in (-0.5, 0.5) for start in ((1, 0.2, 2, 0.3), (4, 0.6, 6, 0.7))]
    tight = {"maxiter": 4000, "fatol": 1e-9, "xatol": 1e-6}
    found = [minimize(cost, start, method="Nelder-Mead", options=tight) for start in starts]
    return np.asarray(min(found, key=lambda one: one.fun).x)


def foretold(p: Floats, size: float, data: float) -> float:
    return float(np.exp(p[0]) + np.exp(p[1] - p[2] * np.log(size)) + np.exp(p[3] - p[4] * np.log(data)))


def akaike(errors: Floats, n_free: int) -> float:
    return len(errors) * float(np.log(np.mean(errors**2) + 1e-12)) + 2 * n_free


def read(points: Points) -> dict[str, Estimate]:
    n_seeds = len(next(iter(points.values())))
    misses, straight, gains, alpha, beta = [], [], [], [], []
    for seed in range(n_seeds):
        rows = table(points, seed)
        known, (size, data, loss) = rows[rows[:, 0] < rows[-1, 0]], rows[-1]
        law = fitted(known)
        misses.append(np.log(loss / foretold(law, size, data)))
        logs = np.log(known)
        line = np.column_stack((np.ones(len(known)), logs[:, :2]))
        off_line = known[:, 2] - line @ np.linalg.lstsq(line, known[:, 2], rcond=None)[0]
        off_law = known[:, 2] - [foretold(law, n, d) for n, d, _ in known]
        straight.append(akaike(off_line, 3) - akaike(off_law, 5))
        gains.append(float(rows[rows[:, 0] == rows[0, 0]][-1, 2] - loss))
        alpha.append(law[2])
        beta.append(law[4])
    noise = [key for key in points if key.endswith("shuffled")]
    gained = [{"flat": small["losses"][-1] - large["losses"][-1] < 0.05}
              for small, large in zip(*(points[key] for key in noise), strict=True)]  # fmt: skip
    return {
        "the largest model's loss beside what was foretold, in logarithms": student(np.array(misses)),
        "AIC of a line in logarithms less that of the power law": student(np.array(straight)),
        "loss gained from the smallest to the largest": student(np.array(gains)),
        "exponent of size": student(np.array(alpha)),
        "exponent of data": student(np.array(beta)),
        "seeds in which size does not help on shuffled bytes": solved(gained, "flat", 1),
    }


def draw(points: Points) -> Markup:
    series = [Series(key, of[0]["bytes"], [list(at) for at in zip(*(p["losses"] for p in of), strict=True)])
              for key, of in points.items() if not key.endswith("shuffled")]  # fmt: skip
    largest = series[-1]
    laws = [
        fitted(rows[rows[:, 0] < rows[-1, 0]])
        for rows in (table(points, i) for i in range(len(largest.y[0])))
    ]
    size = max(of[0]["weights"] for of in points.values())
    told = [[foretold(law, size, data) for law in laws] for data in largest.x]
    series.append(Series("the largest, foretold from the others", largest.x, told, dots=False))
    panel = lines(series, title="Loss by size and data", across="bytes learned from", log_x=True, log_y=True,
                  up="held-out loss, nats per byte")  # fmt: skip
    return figure(panel, label="Loss over data for each size, and the foretold loss of the largest")


PLANT = Plant({"shuffled": True})
