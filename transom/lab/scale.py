"""Claim 4: what the square root of d_k in attention is for.

By itself: entropy, Jacobian and dead rows of softmax(q k * scale) over random unit queries and keys. In
training: a byte model with one head of d_k, scores divided by the root, or not. Read next: tiny.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..insight.html import Markup
from ..insight.look import look
from ..intervals import Estimate
from .claim import Plant, Point, Points, Settings, gap, mean_share, solved, values
from .plot import Series, figure, lines
from .texts import byte_rows, code, frequencies
from .tiny import Net, Seeds, rows_of, shape, thinned

WIDTHS = (4, 16, 64, 128, 256, 1024)
TRAINED = (16, 64, 256)
KEYS, DEAD = 64, 1e-3
LENGTH, LAYERS, WATCHED = 64, 2, 4
"""Of the byte models; and how many texts are looked at for dead rows, over the later half of positions."""


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for scaled in (True, False):
        name = "divided" if scaled else "not divided"
        found |= {
            f"{name}, d_k {k}": {"part": "random", "d_k": k, "scaled": scaled, "rows": 500} for k in WIDTHS
        }
        found |= {
            f"{name}, trained, d_k {k}": {
                "part": "trained", "d_k": k, "scaled": scaled, "steps": 150 if quick else 600, "rate": 3e-3,
                "rows": 16, "length": LENGTH,
            }
            for k in TRAINED
        }  # fmt: skip
    return found


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    return _trained(arm, seeds) if arm["part"] == "trained" else [_random(arm, seed) for seed in seeds]


def _random(arm: Settings, seed: int) -> Point:
    """Queries against 64 keys each, all unit normal."""
    generator, width = torch.Generator().manual_seed(seed), arm["d_k"]
    query = torch.randn(arm["rows"], width, generator=generator)
    keys = torch.randn(arm["rows"], KEYS, width, generator=generator)
    weights = torch.softmax(torch.einsum("nk,nmk->nm", query, keys) * _scale(arm), -1)
    steep = jacobian(weights)
    to_query = torch.einsum("nm,nmk->nk", weights * (1 - weights), keys).norm(dim=-1) * _scale(arm)
    spread = torch.quantile(to_query, torch.tensor([0.1, 0.9])).clamp(min=1e-30)
    return {"entropy": entropy(weights), "steep": float(steep.median()),
            "uneven": float(spread[1] / spread[0]), "dead": float((steep < DEAD).float().mean()),
            "rows": arm["rows"]}  # fmt: skip


def _trained(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    config = shape(256, arm["length"], dim=64, n_layers=LAYERS, n_heads=1, head_dim=arm["d_k"], ffn_dim=128,
                   attn_scale=_scale(arm))  # fmt: skip
    nets = Seeds(lambda seed: Net(config, seed), seeds)
    learned, held = code()
    asked = rows_of(byte_rows(held, 4 * arm["rows"], arm["length"]), [0] * len(seeds), salt=7)
    dead_first = [dead_rows(net.model, asked.tokens[0, :WATCHED]) for net in nets.nets()]
    curves = nets.train(byte_rows(learned, arm["rows"], arm["length"]), arm["steps"], arm["rate"])
    dead_last = [dead_rows(net.model, asked.tokens[0, :WATCHED]) for net in nets.nets()]
    blind = frequencies(learned, held)
    return [
        {"loss": loss, "ahead": blind - loss, "dead at first": first, "dead at last": last,
         "curve": thinned(curve)}
        for loss, first, last, curve in zip(nets.loss(asked), dead_first, dead_last, curves, strict=True)
    ]  # fmt: skip


@torch.no_grad()
def dead_rows(model: Any, tokens: Tensor) -> float:
    """The share of attention rows with no slope left, of tokens (B, L), over the later half of positions."""
    model, found = model.double(), []  # scores of hundreds: float32 fails the check of recomputed maps
    for row in tokens:
        with look(model) as seen:
            model(row[None])
        for layer in range(len(model.layers)):
            found.append(jacobian(seen.attention(layer).weights[:, len(row) // 2 :].flatten(0, 1)) < DEAD)
    return float(torch.cat(found).float().mean())


def _scale(arm: Settings) -> float:
    return arm["d_k"] ** -0.5 if arm["scaled"] else 1.0


def entropy(weights: Tensor) -> float:
    """The mean entropy of rows of weights (N, M), in nats."""
    return float(-(weights * weights.clamp(min=1e-30).log()).sum(-1).mean())


def jacobian(weights: Tensor) -> Tensor:
    """The norm of diag(a) - a a^T of each row of weights (N, M): how far the row can still be moved."""
    square = weights.square()
    return ((square * (1 - 2 * weights)).sum(-1) + square.sum(-1).square()).clamp(min=0).sqrt()


def read(points: Points) -> dict[str, Estimate]:
    wide = {k: (f"divided, trained, d_k {k}", f"not divided, trained, d_k {k}") for k in TRAINED}

    def watched(when: str) -> Estimate:
        return mean_share(values(points[wide[256][1]], when), WATCHED * LAYERS * LENGTH / 2)

    return {
        "dead rows, d_k 256, not divided": _dead(points["not divided, d_k 256"]),
        "dead rows, d_k 1024, divided": _dead(points["divided, d_k 1024"]),
        "median slope, d_k 64, not divided less divided":
            gap(points, "not divided, d_k 64", "divided, d_k 64", "steep"),
        **{f"loss, d_k {k}, not divided less divided": gap(points, undivided, divided, "loss")
           for k, (divided, undivided) in wide.items()},
        "dead rows of the untrained model, d_k 256, not divided": watched("dead at first"),
        "dead rows of the trained model, d_k 256, not divided": watched("dead at last"),
        "seeds half a nat ahead of byte frequencies": solved(points[wide[16][0]], "ahead", 0.5),
    }  # fmt: skip


def _dead(found: Sequence[Point]) -> Estimate:
    return mean_share(values(found, "dead"), found[0]["rows"])


def draw(points: Points) -> Markup:
    def over(part: str, key: str, widths: Sequence[int]) -> list[Series]:
        return [Series(name, widths, [list(values(points[f"{name}{part}, d_k {k}"], key)) for k in widths])
                for name in ("divided", "not divided")]  # fmt: skip

    return figure(
        lines(over("", "dead", WIDTHS), title="Rows of attention without a slope", across="d_k",
              up="share of rows", log_x=True, top=1.0),
        lines(over("", "entropy", WIDTHS), title="How evenly a row looks", across="d_k",
              up="entropy in nats; dashed: even", log_x=True, marks=[math.log(KEYS)], bottom=0.0),
        lines(over(", trained", "loss", TRAINED), title="What a byte model has learned", across="d_k",
              up="held-out loss, nats per byte", log_x=True),
        label="Dead rows, entropy and loss over d_k, with and without the root",
    )  # fmt: skip


PLANT = Plant({"scaled": False})
