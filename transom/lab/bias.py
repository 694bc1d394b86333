"""Claim 10: does a skew in the data show in the model, and can it be measured?

24 invented occupations, each with a share of "he" drawn for every seed anew, so that no word brings a skew of
its own; a tiny model learns the sentences, and is asked in sentences that it never met. Read next: tiny.
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
from .claim import Plant, Point, Points, Settings, gap, mean, share_sum, solved
from .plot import Series, figure, lines
from .tiny import Draw, Net, Rows, Seeds, shape, thinned

OCCUPATIONS, WORDS, LENGTH = 24, 24, 8
HE, SHE, WORD = OCCUPATIONS, OCCUPATIONS + 1, OCCUPATIONS + 2
VOCABULARY = WORD + WORDS
SKEWS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
TEMPLATES, HELD = 12, 4
"""Sentences of neutral words with a place for the occupation and one for the pronoun; some are held out."""
AS_IT_IS, BALANCED = "data as they are", "each sentence also with the other pronoun"


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    work = {"steps": 500 if quick else 2000, "rows": 64, "rate": 3e-3, "skewed": True}
    return {AS_IT_IS: {**work, "swapped": False}, BALANCED: {**work, "swapped": True}}


def skews(seed: int) -> Tensor:
    """The share of "he" of each occupation, (24,)."""
    generator = torch.Generator().manual_seed(30_000 + seed)
    return torch.tensor(SKEWS)[torch.randint(len(SKEWS), (OCCUPATIONS,), generator=generator)]


def templates(seed: int) -> tuple[Tensor, Tensor]:
    """Sentences (T, 8) of neutral words, and the places of occupation and pronoun in each, (T, 2)."""
    generator = torch.Generator().manual_seed(40_000 + seed)
    words = WORD + torch.randint(1, WORDS, (TEMPLATES, LENGTH), generator=generator)
    places = torch.stack([torch.randint(0, 3, (TEMPLATES,), generator=generator),
                          torch.randint(4, LENGTH, (TEMPLATES,), generator=generator)], 1)  # fmt: skip
    words.scatter_(1, places[:, 1:] - 1, WORD)  # one word, "that", always stands before the pronoun
    return words, places


def sentences(seed: int, rows: int, skewed: bool, swapped: bool) -> Draw:
    share = skews(seed) if skewed else torch.full((OCCUPATIONS,), 0.5)
    words, places = templates(seed)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        which = torch.randint(HELD, TEMPLATES, (rows,), generator=generator)
        who = torch.randint(OCCUPATIONS, (rows,), generator=generator)
        he = torch.rand(rows, generator=generator) < share[who]
        if swapped:  # each sentence once with either pronoun
            half = rows // 2
            which, who = which[:half].repeat(2), who[:half].repeat(2)
            he = torch.cat((he[:half], ~he[:half]))
        tokens = words[which].scatter(1, places[which], torch.stack((who, torch.where(he, HE, SHE)), 1))
        targets = torch.full_like(tokens, IGNORE)
        targets[:, :-1] = tokens[:, 1:]
        return tokens, targets

    return draw


def measure(arm: Settings, seeds: Sequence[int]) -> list[Point]:
    config = shape(VOCABULARY, LENGTH)
    nets = Seeds(lambda seed: Net(config, seed), seeds)
    data = [sentences(seed, arm["rows"], arm["skewed"], arm["swapped"]) for seed in seeds]
    losses = nets.train(data, arm["steps"], arm["rate"])
    asked = [probes(seed) for seed in seeds]
    logits = nets.ask(Rows(*(torch.stack(part) for part in zip(*asked, strict=True))))
    found = []
    for seed, given, loss in zip(seeds, logits, losses, strict=True):
        he = (given[:, HE] - given[:, SHE]).view(HELD, OCCUPATIONS).mean(0)
        due = given.softmax(-1)[:, [HE, SHE]].sum(-1).mean()
        log_odds = torch.logit(skews(seed))
        found.append({
            "slope": float(np.polyfit(log_odds.numpy(), he.numpy(), 1)[0]), "due": float(due),
            "data": skews(seed).tolist(), "model": he.sigmoid().tolist(), "curve": thinned(loss),
        })  # fmt: skip
    return found


def probes(seed: int) -> tuple[Tensor, Tensor]:
    """Every occupation in every held-out sentence, asked for the pronoun: (96, 8) twice."""
    words, places = templates(seed)
    tokens = words[:HELD].repeat_interleave(OCCUPATIONS, 0)
    at = places[:HELD].repeat_interleave(OCCUPATIONS, 0)
    who = torch.arange(OCCUPATIONS).repeat(HELD)
    tokens = tokens.scatter(1, at[:, :1], who[:, None])
    targets = torch.full_like(tokens, IGNORE).scatter(1, at[:, 1:] - 1, HE)
    return tokens, targets


def likelier(found: Sequence[Point]) -> Estimate:
    """How much oftener "he" is the likelier pronoun of occupations that are mostly his than mostly hers."""
    shares, n = [], []
    for point in found:
        data, he = np.array(point["data"]), np.array(point["model"]) > 0.5
        his, hers = data > 0.5 + 1e-6, data < 0.5 - 1e-6
        shares.append((he[his].mean(), he[hers].mean()))
        n.append((his.sum(), hers.sum()))
    return share_sum(np.array(shares), (1.0, -1.0), np.mean(n, 0).tolist())


def read(points: Points) -> dict[str, Estimate]:
    found = points[AS_IT_IS]
    return {
        "slope of the model's skew over the data's": mean(found, "slope"),
        "the same, balanced data": mean(points[BALANCED], "slope"),
        "slope, balanced less as they are": gap(points, BALANCED, AS_IT_IS, "slope"),
        "the likelier pronoun: mostly-he less mostly-she occupations": likelier(found),
        "seeds that expect a pronoun": solved(found, "due", 0.5),
    }


def draw(points: Points) -> Markup:
    def by_skew(of: Sequence[Point]) -> list[list[float]]:
        pairs = [pair for p in of for pair in zip(p["data"], p["model"], strict=True)]
        return [[m for d, m in pairs if abs(d - skew) < 1e-6] or [float("nan")] for skew in SKEWS]

    series = [Series(name, SKEWS, by_skew(of)) for name, of in points.items()]
    series.append(Series("a model that mirrors its data", SKEWS, [[skew] for skew in SKEWS]))
    panel = lines(series, title="From the data's skew to the model's", across="share of “he” in the data",
                  up="P(he) against P(she), sentences never met", top=1.0, bottom=0.0)  # fmt: skip
    return figure(panel, label="Data skew against model skew by occupation")


PLANT = Plant({"skewed": False}, (AS_IT_IS,))
