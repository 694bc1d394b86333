"""Claim 7: how much less it takes to fine-tune a model than to train one from nothing.

A byte model that has learned code learns prose, from little and from more of it, beside one from nothing and
one that has learned shuffled code. Read next: tiny.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..insight.html import Markup
from ..intervals import Estimate, student
from .claim import Plant, Point, Points, Settings, solved
from .plot import Series, figure, lines
from .texts import byte_rows, code, frequencies, prose
from .tiny import Net, Seeds, rows_of, shape

SCRATCH, TUNED, SHUFFLED = "from nothing", "fine-tuned from code", "fine-tuned from shuffled code"
BYTES = (3_000, 30_000, 300_000)
"""How much prose there is to learn from."""
LOOKS = 24
"""How often held-out prose is asked while learning."""


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    work = {"steps": 300 if quick else 1500, "rows": 8, "length": 64, "rate": 2e-3}
    before = 800 if quick else 6000
    return {
        SCRATCH: {**work, "before": 0, "shuffled": False},
        TUNED: {**work, "before": before, "shuffled": False},
        SHUFFLED: {**work, "before": before, "shuffled": True},
    }


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    config = shape(256, arm["length"], dim=40, ffn_dim=80)
    nets = Seeds(lambda seed: Net(config, seed), seeds)
    learned, (target, held) = code()[0], prose()
    if arm["shuffled"]:
        learned = learned[torch.randperm(len(learned), generator=torch.Generator().manual_seed(0))]
    nets.train(byte_rows(learned, arm["rows"], arm["length"]), arm["before"], 2 * arm["rate"], salt=3)
    base = {name: weight.detach().clone() for name, weight in nets.weights.items()}
    asked = rows_of(byte_rows(held, 16 * arm["rows"], arm["length"]), [0] * len(seeds), salt=7)
    every, blind = max(1, arm["steps"] // LOOKS), frequencies(target, held)
    points: list[Point] = [{"blind": blind, "before": arm["before"]} for _ in seeds]
    for amount in BYTES:
        with torch.no_grad():
            for name, weight in nets.weights.items():
                weight.copy_(base[name])
        looks = [(0, nets.loss(asked))]

        def after(step: int, looks: list[tuple[int, list[float]]] = looks) -> None:
            if step % every == 0:
                looks.append((step, nets.loss(asked)))

        nets.train(
            byte_rows(target[:amount], arm["rows"], arm["length"]), arm["steps"], arm["rate"], after=after
        )
        for i, point in enumerate(points):
            point[f"{amount}"] = [loss[i] for _, loss in looks]
            point["steps"] = [step for step, _ in looks]
    return points


def steps_to(point: Point, amount: int, loss: float) -> float:
    """After how many steps, at least one, the held-out loss was there first; the last where it never was.

    Between two looks it falls in a straight line: whole looks alone would let all seeds agree.
    """
    steps, losses = point["steps"], point[f"{amount}"]
    at = next((i for i, found in enumerate(losses) if found <= loss), None)
    if not at:
        return float(steps[-1]) if at is None else 1.0
    share = (losses[at - 1] - loss) / (losses[at - 1] - losses[at])
    return max(1.0, steps[at - 1] + share * (steps[at] - steps[at - 1]))


def saved(points: Points, arm: str, amount: int) -> list[float]:
    """By how many doublings fewer steps an arm reaches what training from nothing does at best; each seed."""
    found = []
    for scratch, other in zip(points[SCRATCH], points[arm], strict=True):
        best = min(scratch[f"{amount}"])
        found.append(float(np.log2(steps_to(scratch, amount, best) / steps_to(other, amount, best))))
    return found


def read(points: Points) -> dict[str, Estimate]:
    found = {
        f"doublings of steps saved, {arm}, {amount:,} bytes": student(np.array(saved(points, arm, amount)))
        for arm in (TUNED, SHUFFLED) for amount in BYTES
    }  # fmt: skip
    ahead = [{"ahead": p["blind"] - min(p[f"{BYTES[-1]}"])} for p in points[SCRATCH]]
    paid = [
        tuned["before"] / max(1, steps_to(scratch, BYTES[1], best) - steps_to(tuned, BYTES[1], best))
        for scratch, tuned in zip(points[SCRATCH], points[TUNED], strict=True)
        for best in [min(scratch[f"{BYTES[1]}"])]
    ]
    return found | {
        f"tasks of {BYTES[1]:,} bytes after which learning code has paid": student(np.array(paid)),
        "seeds a fifth of a nat ahead of byte frequencies": solved(ahead, "ahead", 0.2),
    }


def draw(points: Points) -> Markup:
    panels = []
    for amount in BYTES:
        series = [
            Series(
                arm,
                of[0]["steps"],
                [list(at) for at in zip(*(p[f"{amount}"] for p in of), strict=True)],
                dots=False,
            )
            for arm, of in points.items()
        ]
        panels.append(
            lines(
                series, title=f"{amount:,} bytes of prose", across="steps", up="held-out loss, nats per byte"
            )
        )
    return figure(*panels, label="Held-out loss on prose over steps, by what was learned before")


PLANT = Plant({"shuffled": True}, (TUNED,))
