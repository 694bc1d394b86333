"""Claim 8: experts, at equal compute and at equal size.

Byte models of one shape but for the feed-forward: four experts of which a token meets two, a dense one as
wide as those two, and one as wide as all four. A router's choices have no batching rule, so that the seeds
are trained one after the other, the dense ones too. Read next: tiny.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..insight.html import Markup
from ..intervals import Estimate, student
from ..model.build import build
from ..model.config import Experts
from .claim import Plant, Point, Points, Settings, curve, gap, solved, values
from .plot import Series, figure, lines
from .texts import byte_rows, code, frequencies
from .tiny import COOL_DOWN, WARM_UP, rows_of, shape, thinned

WIDE = 64
"""The width of an expert."""
MIXED, ACTIVE, WHOLE = "4 experts, 2 active", "dense, equal compute", "dense, equal size"


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    work = {"steps": 500 if quick else 3000, "rows": 16, "length": 64, "rate": 3e-3}
    return {
        MIXED: {**work, "experts": 4, "width": WIDE},
        ACTIVE: {**work, "experts": 0, "width": 2 * WIDE},
        WHOLE: {**work, "experts": 0, "width": 4 * WIDE},
    }


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    return [_trained(arm, seed) for seed in seeds]


def _trained(arm: Settings, seed: int) -> Point:
    mixture = Experts(arm["experts"], 2, arm["width"], balance="loss", balance_rate=0.01, score="softmax")
    config = shape(256, arm["length"], dim=48, n_heads=2, ffn_dim=arm["width"],
                   experts=mixture if arm["experts"] else None)  # fmt: skip
    model, (learned, held) = build(config, seed).train(), code()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arm["rate"], weight_decay=0.01, betas=(0.9, 0.98))
    draw, generator = byte_rows(learned, arm["rows"], arm["length"]), torch.Generator().manual_seed(seed)
    steps, losses, spent = arm["steps"], [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            rising, falling = (step + 1) / (WARM_UP * steps + 1), (steps - step) / (COOL_DOWN * steps + 1)
            group["lr"] = arm["rate"] * min(1.0, rising, falling)
        started = time.perf_counter()
        tokens, targets = draw(generator)
        optimizer.zero_grad()
        loss = model.loss(_batch(tokens, targets)) / tokens.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spent.append(time.perf_counter() - started)
        losses.append(float(loss.detach()))
    asked = rows_of(byte_rows(held, 8 * arm["rows"], arm["length"]), [0], salt=7)
    with torch.no_grad():
        found = float(model.eval().loss(_batch(asked.tokens[0], asked.targets[0]))) / asked.tokens.numel()
    return {"loss": found, "ahead": frequencies(learned, held) - found, "curve": thinned(losses),
            "ms": 1e3 * float(np.median(spent)) / tokens.numel(), "weights": model.n_parameters,
            "active": model.n_active_parameters}  # fmt: skip


def _batch(tokens: torch.Tensor, targets: torch.Tensor) -> Any:
    return SimpleNamespace(tokens=tokens, targets=targets, documents=None, positions=None)


def read(points: Points) -> dict[str, Estimate]:
    def slower(than: str) -> Estimate:
        return student(np.log2(values(points[MIXED], "ms") / values(points[than], "ms")))

    return {
        "loss, dense of equal compute less experts": gap(points, ACTIVE, MIXED, "loss"),
        "loss, experts less dense of equal size": gap(points, MIXED, WHOLE, "loss"),
        "doublings of time per token, experts over dense of equal size": slower(WHOLE),
        "doublings of time per token, experts over dense of equal compute": slower(ACTIVE),
        "seeds half a nat ahead of byte frequencies": solved(points[ACTIVE], "ahead", 0.5),
    }


def draw(points: Points) -> Markup:
    drawn = [(name, *curve(of)) for name, of in points.items()]
    early = len(drawn[0][1]) // 5  # what all learn first is larger than what sets them apart
    learning = [Series(name, x[early:], y[early:], dots=False) for name, x, y in drawn]
    in_the_end = [Series(name, [of[0]["active"] / 1e3], [values(of, "loss").tolist()])
                  for name, of in points.items()]  # fmt: skip
    return figure(
        lines(in_the_end, title="Held-out loss by compute", across="thousand weights a token meets",
              up="nats per byte"),
        lines(learning, title="While learning, after the first fifth", across="share of the steps",
              up="loss in nats"),
        label="Loss of experts and of dense models of equal compute and equal size",
    )  # fmt: skip


PLANT = Plant({"experts": 2}, (MIXED,))
