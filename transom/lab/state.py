"""Claim 11: does attention do all that a recurrence does? A state is followed, bit by bit.

Is the number of ones so far odd? Asked after each of up to 20 bits, then of twice as many. Two states suffice
a recurrence; attention of fixed depth keeps none, and has to count. Read next: tiny.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..insight.html import Markup
from ..intervals import Estimate
from ..model.losses import IGNORE
from .claim import Plant, Point, Points, Settings, mean_share, solved, values
from .plot import Series, figure, lines
from .tiny import Draw, Net, Seeds, rows_of, shape, thinned

VOCABULARY, LEARNED = 2, 20
ASKED = (5, 10, 20, 30, 40)
"""After how many bits; up to 20 are learned from."""
MEMBERS: dict[str, dict[str, Any]] = {
    "Transformer": {"cell": None, "layers": 2, "rate": 3e-3},
    "LSTM": {"cell": "lstm", "layers": 1, "rate": 5e-3},
    "GRU": {"cell": "gru", "layers": 1, "rate": 5e-3},
}


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    work = {"rows": 64, "asked": 500, "back": ASKED[-1], "steps": 1000 if quick else 6000}
    return {name: {**member, **work} for name, member in MEMBERS.items()}


def parity(length: int, rows: int, back: int, every: bool = True) -> Draw:
    """Bits (B, L), and at each whether the last `back` up to it hold an odd number of ones; not every: asked
    at the end alone.
    """

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        bits = torch.randint(2, (rows, length), generator=generator)
        ones = bits.cumsum(1)
        before = torch.zeros_like(ones)
        before[:, back:] = ones[:, : max(0, length - back)]
        odd = (ones - before) % 2
        if not every:
            odd[:, :-1] = IGNORE
        return bits, odd

    return draw


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    config = shape(VOCABULARY, ASKED[-1], cell=arm["cell"], n_layers=arm["layers"])
    nets = Seeds(lambda seed: Net(config, seed), seeds)
    losses = nets.train(parity(LEARNED, arm["rows"], arm["back"]), arm["steps"], arm["rate"])
    points: list[Point] = [{"asked": arm["asked"], "curve": thinned(loss)} for loss in losses]
    for bits in ASKED:
        asked = rows_of(parity(bits, arm["asked"], arm["back"], every=False), seeds, salt=7)
        for point, right in zip(points, nets.right(asked).mean(1).tolist(), strict=True):
            point[f"{bits} bits"] = right
    return points


def read(points: Points) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    for name, of in points.items():
        for bits in (LEARNED, ASKED[-1]):
            share = mean_share(values(of, f"{bits} bits"), of[0]["asked"])
            found[f"right after {bits} bits beyond chance, {name}"] = share.plus(-0.5)
        found[f"seeds that follow {ASKED[1]} bits, {name}"] = solved(of, f"{ASKED[1]} bits", 0.95)
    return found


def draw(points: Points) -> Markup:
    series = [Series(name, ASKED, [values(of, f"{n} bits").tolist() for n in ASKED])
              for name, of in points.items()]  # fmt: skip
    panel = lines(series, title="An odd number of ones?", across=f"bits (learned: up to {LEARNED})", top=1.0,
                  up="share right; dashed: a coin", marks=[0.5], bottom=0.4)  # fmt: skip
    return figure(panel, label="Share of parities that are right over the number of bits")


PLANT = Plant({"back": 2})
