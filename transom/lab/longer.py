"""Claim 12: which positions carry a model into texts longer than it learned from?

A byte model learns rows of 64; then the same 32 bytes are foretold from the 64 before their end, and from all
256: who can use positions that it never met loses nothing by the longer text. Read next: tiny.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..insight.html import Markup
from ..intervals import Estimate
from ..model.losses import IGNORE
from .claim import Plant, Point, Points, Settings, mean, solved, values
from .plot import Series, figure, lines
from .texts import byte_rows, code, frequencies
from .tiny import Net, Rows, Seeds, rows_of, shape, thinned

LEARNED, LONGEST, JUDGED = 64, 256, 32
"""Bytes of a row that is learned from, of the longest that is read, and those at its end that are judged."""
LENGTHS = (64, 96, 128, 192, 256)
KINDS = ("rotary", "learned", "relative", "none")
NEAR = {"relative_buckets": 16, "relative_max_distance": 32}
"""All tokens that are farther share a bias, which is learned, as T5's do past a quarter of its length."""


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    work = {"steps": 500 if quick else 3000, "rows": 16, "rate": 3e-3, "asked": 48, "learned": LEARNED}
    return {kind: {**work, "position": kind} for kind in KINDS}


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    config = shape(256, LONGEST, dim=48, ffn_dim=96, position=arm["position"], **NEAR)
    nets, (learned, held) = Seeds(lambda seed: Net(config, seed), seeds), code()
    rows = byte_rows(learned, arm["rows"] * LEARNED // arm["learned"], arm["learned"])
    curves = nets.train(rows, arm["steps"], arm["rate"])
    asked = rows_of(byte_rows(held, arm["asked"], LONGEST), [0] * len(seeds), salt=7)
    blind = frequencies(learned, held)
    points: list[Point] = [{"curve": thinned(curve)} for curve in curves]
    for length in LENGTHS:
        targets = asked.targets[..., -length:].clone()
        targets[..., :-JUDGED] = IGNORE
        losses = nets.loss(Rows(asked.tokens[..., -length:], targets))
        for point, loss in zip(points, losses, strict=True):
            point[f"{length}"] = loss
    return [{**point, "ahead": blind - point[f"{LEARNED}"],
             "lost": point[f"{LONGEST}"] - point[f"{LEARNED}"]} for point in points]  # fmt: skip


def read(points: Points) -> dict[str, Estimate]:
    found = {
        f"nats lost in texts four times as long, {kind}": mean(of, "lost") for kind, of in points.items()
    }
    return found | {"seeds half a nat ahead of byte frequencies": solved(points["rotary"], "ahead", 0.5)}


def draw(points: Points) -> Markup:
    series = [Series(kind, LENGTHS, [values(of, f"{n}").tolist() for n in LENGTHS])
              for kind, of in points.items()]  # fmt: skip
    panel = lines(series, title="The same bytes, at the end of longer texts", log_x=True,
                  across=f"bytes that are read (learned: {LEARNED})", up="loss, nats per byte")  # fmt: skip
    return figure(panel, label="Loss of the same bytes over the length of the text before them")


PLANT = Plant({"learned": LONGEST})
