"""Claim 3: recall over distance and over the number of facts, by a Transformer and by recurrences.

Pairs of a key and a value, each pair one position; fillers; then the keys again: which value was it? Since a
pair is one position, one layer of attention suffices: tested is memory, not the making of a circuit (the idea
is Zoology's, Arora et al. 2023). Read next: tiny.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..insight.html import Markup
from ..intervals import Estimate
from ..model.losses import IGNORE
from ..units import counted
from .claim import Plant, Point, Points, Settings, Shares, mean_share, share_sum, solved
from .distance import remember_long
from .plot import Series, figure, grid, lines
from .tiny import Draw, Net, Seeds, rows_of, shape, thinned

KEYS, VALUES, FILLERS = 32, 32, 8
VALUE, FILLER, ASK = KEYS, KEYS + VALUES, KEYS + VALUES + FILLERS
VOCABULARY = ASK + 1
FACTS, AWAY = (1, 4, 8, 16), (4, 16, 64, 128)
LEARNED, LONGEST = 64, 256
"""The farthest that is learned from; what a chrono LSTM is set to remember."""
QUERIES, ASKED = 4, 250
"""The most that a row asks; rows that are asked of each number of facts and distance."""
# Recurrences leave the plateau later, and their steps cost less: they are given more of them.
MEMBERS: dict[str, dict[str, Any]] = {
    "Transformer": {"cell": None, "init": "ours", "rate": 3e-3},
    "LSTM, chrono": {"cell": "lstm", "init": "chrono", "rate": 5e-3},
    "LSTM": {"cell": "lstm", "init": "ours", "rate": 5e-3},
    "GRU": {"cell": "gru", "init": "ours", "rate": 5e-3},
}


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    work = {"rows": 24, "asked": ASKED, "position": "rotary"}
    return {name: {**member, **work, "steps": (4000 if member["cell"] else 1500) * (1 if quick else 3)}
            for name, member in MEMBERS.items()}  # fmt: skip


def task(rows: int, facts: Sequence[int], away: Sequence[int]) -> Draw:
    """Pairs, fillers and the keys of up to four of them again, (B, L, 2): how many pairs and how many fillers
    is drawn for each row, fillers before the pairs make rows equally long.
    """
    most, farthest = max(facts), max(away)
    length = most + farthest + QUERIES

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = (FILLER + torch.randint(FILLERS, (rows, length, 1), generator=generator)).repeat(1, 1, 2)
        targets = torch.full((rows, length), IGNORE)
        keys = torch.rand(rows, KEYS, generator=generator).argsort(1)
        worth = VALUE + torch.randint(VALUES, (rows, most), generator=generator)
        asked = torch.rand(rows, most, generator=generator)
        for row in range(rows):
            n, far = (one_of(some, generator) for some in (facts, away))
            end = length - QUERIES - far
            tokens[row, end - n : end] = torch.stack((keys[row, :n], worth[row, :n]), 1)
            which = asked[row, :n].argsort()[:QUERIES]
            place = length - QUERIES + torch.arange(len(which))
            tokens[row, place] = torch.stack((keys[row, which], torch.full_like(which, ASK)), 1)
            targets[row, place] = worth[row, which]
        return tokens, targets

    return draw


def one_of(some: Sequence[int], generator: torch.Generator) -> int:
    return some[int(torch.randint(len(some), (1,), generator=generator))]


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    layers = 1 if arm["cell"] else 2
    config = shape(VOCABULARY, 512, cell=arm["cell"], n_layers=layers, position=arm["position"])

    def make(seed: int) -> Net:
        net = Net(config, seed)
        if arm["init"] == "chrono":
            remember_long(net.model, LONGEST, torch.Generator().manual_seed(seed))
        return net

    nets = Seeds(make, seeds)
    learn = task(arm["rows"], FACTS, range(4, LEARNED + 1, 4))
    losses = nets.train(learn, arm["steps"], arm["rate"])
    points: list[Point] = [{"curve": thinned(loss)} for loss in losses]
    for n in FACTS:
        for far in AWAY:
            right = nets.right(rows_of(task(arm["asked"], [n], [far]), seeds, salt=7)).mean(1).tolist()
            for point, share in zip(points, right, strict=True):
                point[f"{n} at {far}"] = share
    return points


def per_doubling(of: Sequence[Point], cells: Sequence[tuple[int, int]], over: Sequence[int]) -> Estimate:
    """How much accuracy is lost for each doubling of what changes over cells (facts, distance)."""
    doublings = np.log2(over) - np.log2(over).mean()
    return share_sum(recalled(of, cells), (-doublings / (doublings**2).sum()).tolist(), [ASKED] * len(cells))


def recalled(of: Sequence[Point], cells: Sequence[tuple[int, int]]) -> Shares:
    """The accuracy of every seed in every cell, (S, C); what a row asks hangs together, and counts as one."""
    return np.array([[point[f"{n} at {far}"] for n, far in cells] for point in of])


def read(points: Points) -> dict[str, Estimate]:
    within = [far for far in AWAY if far <= LEARNED]
    found: dict[str, Estimate] = {}
    for name, of in points.items():
        far, many = [(1, d) for d in within], [(n, AWAY[0]) for n in FACTS]
        found[f"accuracy lost per doubling of distance, {name}"] = per_doubling(of, far, within)
        found[f"accuracy lost per doubling of facts, {name}"] = per_doubling(of, many, FACTS)
        beyond = mean_share(recalled(of, [(1, AWAY[-1])])[:, 0], ASKED)
        found[f"accuracy at twice the learned distance, {name}"] = beyond
        found[f"seeds that recall one near fact, {name}"] = solved(of, f"1 at {AWAY[0]}", 0.95)
    return found


def draw(points: Points) -> Markup:
    panels = [
        grid([[float(np.mean([p[f"{n} at {far}"] for p in of])) for far in AWAY] for n in FACTS],
             [counted(n, "fact") for n in FACTS], [str(far) for far in AWAY],
             title=f"{name}: share recalled", across=f"tokens between (learned: up to {LEARNED})")
        for name, of in points.items()
    ]  # fmt: skip
    near = [Series(name, FACTS, [[p[f"{n} at {AWAY[0]}"] for p in of] for n in FACTS])
            for name, of in points.items()]  # fmt: skip
    curves = lines(near, title="Recall by the number of facts", across="facts", log_x=True, top=1.0,
                   up=f"share recalled, {AWAY[0]} tokens on", bottom=0.0)  # fmt: skip
    return figure(curves, *panels, label="Recall over distance and number of facts")


PLANT = Plant({"cell": "lstm", "init": "ours", "rate": 5e-3}, ("Transformer",))
