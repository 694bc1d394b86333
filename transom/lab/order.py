"""Claim 5: do Transformers need to be told where a token stands?

Exactly: an encoder without positions gives a shuffled text its own answers, shuffled. In training: which of
two letters came first, by encoders and causal models, with every kind of position and with none.
Read next: tiny.
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
from .claim import Plant, Point, Points, Settings, curve, mean, mean_share, values
from .plot import Series, figure, grid, lines
from .tiny import Draw, Net, Seeds, rows_of, shape, thinned

FIRST, SECOND, ASK, FILLER = 0, 1, 2, 8
VOCABULARY = 3 + FILLER
KINDS = {
    "encoder": ("none", "sinusoidal", "learned", "rotary"),
    "decoder": ("none", "rotary", "relative"),
}
NAME = {"encoder": "encoder", "decoder": "causal"}


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    return {
        f"{NAME[kind]}, {position}": {
            "kind": kind, "position": position, "length": 16 if quick else 32, "rows": 32,
            "steps": 400 if quick else 1500, "rate": 3e-3, "asked": 1000, "shuffles": 20,
        }
        for kind, positions in KINDS.items() for position in positions
    }  # fmt: skip


def which_first(length: int, rows: int) -> Draw:
    """Fillers with one A and one B among them, then a question: which came first?"""

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
        places = torch.rand(rows, length - 1, generator=generator).argsort(1)[:, :2].sort(1).values
        first = torch.randint(2, (rows,), generator=generator)
        tokens.scatter_(1, places, torch.stack((first, 1 - first), 1))
        tokens[:, -1] = ASK
        targets = torch.full_like(tokens, IGNORE)
        targets[:, -1] = first
        return tokens, targets

    return draw


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    config = shape(VOCABULARY, arm["length"], kind=arm["kind"], position=arm["position"])
    nets = Seeds(lambda seed: Net(config, seed), seeds)
    draw = which_first(arm["length"], arm["rows"])
    losses = nets.train(draw, arm["steps"], arm["rate"])
    asked = rows_of(which_first(arm["length"], arm["asked"]), seeds, salt=7)
    right = nets.right(asked).mean(1).tolist()
    moved = [shuffled(net.model, asked.tokens[i, :1], arm["shuffles"]) for i, net in enumerate(nets.nets())]
    return [
        {"accuracy": hit, "asked": arm["asked"], "moved": far, "curve": thinned(loss)}
        for hit, far, loss in zip(right, moved, losses, strict=True)
    ]


@torch.no_grad()
def shuffled(model: Any, tokens: Tensor, n: int) -> float:
    """How far a model's states of shuffled tokens (1, L) are from its states, shuffled, at the most."""
    generator, states, far = torch.Generator().manual_seed(0), model(tokens), 0.0
    for _ in range(n):
        order = torch.randperm(tokens.shape[1], generator=generator)
        far = max(far, float((model(tokens[:, order]) - states[:, order]).abs().max()))
    return far


def read(points: Points) -> dict[str, Estimate]:
    able = [name for name in points if not name.endswith("none")]
    reached = np.mean([values(points[name], "accuracy") >= 0.95 for name in able])
    return {
        **{f"accuracy beyond chance, {name}":
           mean_share(values(found, "accuracy"), found[0]["asked"]).plus(-0.5)
           for name, found in points.items()},
        "largest change under shuffling, encoder, none": mean(points["encoder, none"], "moved"),
        "models with positions that are 95% right": Estimate(float(reached)),
    }  # fmt: skip


def draw(points: Points) -> Markup:
    hits = [values(found, "accuracy").tolist() for found in points.values()]
    seeds = [f"seed {point['seed']}" for point in points["encoder, none"]]
    found = grid(hits, list(points), seeds, title="Right answers in the end (a coin: .50)", across="")
    learning = lines(
        [Series(name, *curve(of), dots=False) for name, of in points.items()],
        title="While learning", across="share of the steps", up="loss in nats", bottom=0.0,
    )  # fmt: skip
    return figure(found, learning, label="Accuracy and loss by kind of position")


PLANT = Plant({"position": "rotary"}, ("encoder, none",))
