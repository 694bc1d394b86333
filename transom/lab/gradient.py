"""Claim 1: the gradient over distance, in recurrences and in Transformers, with and without what carries it.

The lens of `lab distance`, over initialisations, depths and the residual path. Read next: distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..insight.html import Markup
from .claim import Plant, Point, Points, Settings, gap, mean, over_seeds
from .distance import Member, curve_of, maker
from .plot import Series, figure, lines

NEAR = slice(1, 9)
"""Distances over which the gradient of near tokens is averaged."""
TINY = 1e-300
RECURRENT = {"RNN": ("rnn", "torch"), "GRU": ("gru", "torch"), "LSTM": ("lstm", "torch"),
             "LSTM, open forget gate": ("lstm", "ours"), "LSTM, chrono": ("lstm", "chrono")}  # fmt: skip
SHALLOW, DEEP, CUT = "Transformer, 2 layers", "Transformer, 8 layers", "8 layers, no residual"


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    length = 64 if quick else 256
    found: dict[str, dict[str, Any]] = {
        name: {"cell": cell, "init": init, "layers": 1, "residual": True, "length": length}
        for name, (cell, init) in RECURRENT.items()
    }
    stacks = ((SHALLOW, 2, True), (DEEP, 8, True), (CUT, 8, False))
    return found | {
        name: {"cell": None, "init": "ours", "layers": layers, "residual": residual, "length": length}
        for name, layers, residual in stacks
    }


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    member = Member("", maker(arm["cell"], arm["layers"], arm["init"]), cut_residual=not arm["residual"])
    return [_point(member, arm["length"], seed) for seed in seeds]


def _point(member: Member, length: int, seed: int) -> Point:
    norms = np.maximum(curve_of(member, length, seed).mean.numpy(), TINY)
    away = np.arange(1, length + 1)
    slope = np.polyfit(away, np.log10(norms[1 : length + 1]), 1)[0]
    step = max(1, length // 16)
    return {"slope": float(slope), "near": float(np.log10(norms[NEAR]).mean()),
            "distance": list(range(1, length + 1, step)),
            "norms": norms[1 : length + 1 : step].tolist()}  # fmt: skip


def read(points: Points) -> dict[str, Any]:
    slopes = {f"decades per token, {name}": mean(found, "slope") for name, found in points.items()}
    return slopes | {
        "decades that near tokens lose from 2 to 8 layers": gap(points, SHALLOW, DEEP, "near"),
        "decades that near tokens lose without the residual path": gap(points, DEEP, CUT, "near"),
    }


def draw(points: Points) -> Markup:
    series = [Series(name, found[0]["distance"], over_seeds(found, "norms"), dots=False)
              for name, found in points.items()]  # fmt: skip
    panel = lines(series, title="How far back the gradient reaches", across="tokens back", log_y=True,
                  up="gradient at the embedding", floor=1e-20)  # fmt: skip
    return figure(panel, label="Gradient over distance for recurrences and Transformers")


PLANT = Plant({"residual": False}, (DEEP,))
N_SEEDS = (3, 10)
