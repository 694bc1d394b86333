"""A claim of the textbooks as data: what it says, what would refute it, and how it is measured and judged.

`claims.toml` holds the words and the falsifier, bounds for intervals, which stand in `result.json` before the
first number is measured; the verdict is computed from them by code and by nothing else. Where a control fails
the models have not learned enough to say anything. Read next: claims, claim_run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np

from ..insight.html import Markup
from ..intervals import FEWEST, TAIL, Estimate, mover, share, student

Settings = Mapping[str, Any]
"""What an arm is made of: plain values, which decide all that it measures but for its seed."""
Point = dict[str, Any]
"""What one arm measured with one seed: plain values."""
Points = Mapping[str, Sequence[Point]]
"""Of every arm, one point a seed, the same seeds in the same order: those of two arms are pairs."""
Readings = Mapping[str, Estimate]
Shares = np.ndarray[Any, np.dtype[np.float64]]
"""Of every seed, how many of its questions, (S,); or of several kinds, (S, C)."""
ONE_ERROR = 0.16
"""What lies beyond each end of an interval of one standard error."""
Outcome = Literal["holds", "refuted", "undecided"]


@dataclass(frozen=True)
class Prediction:
    """A sentence that follows from the claim, and the interval that carries or refutes it."""

    says: str
    """The sentence, as it is read where it holds."""
    reading: str
    """Which of the readings is held against the bound."""
    side: Literal["above", "below", "within"]
    """Where the whole interval must lie: beyond the bound, or within it on both sides of 0."""
    bound: float

    def outcome(self, readings: Readings) -> Outcome:
        """Holds where the whole interval is on the right side, refuted where all is on the other."""
        found = readings[self.reading]
        low, high = (found.low, found.high) if self.side != "below" else (-found.high, -found.low)
        bound = -self.bound if self.side == "below" else self.bound
        if self.side == "within":
            inside, outside = -bound < low and high < bound, low > bound or high < -bound
        else:
            inside, outside = low > bound, high < bound
        return "holds" if inside else "refuted" if outside else "undecided"

    @property
    def falsifier(self) -> str:
        """In words: what would refute the sentence."""
        other = {"above": "below ", "below": "above ", "within": "beyond ±"}[self.side]
        return f"all of the 95% interval of “{self.reading}” lies {other}{self.bound:g}"

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "refuted_if": self.falsifier}


@dataclass(frozen=True)
class Control:
    """What must have been learned, or the run says nothing: at least so much of a reading."""

    says: str
    reading: str
    least: float

    def passed(self, readings: Readings) -> bool:
        """Whether its value is there; not a number is not."""
        return readings[self.reading].value >= self.least


@dataclass(frozen=True)
class Plant:
    """The cause of what is claimed taken away: the verdict must flip, or it does not hang on that cause."""

    change: Settings
    arms: tuple[str, ...] | None = None
    """Which arms are changed; None: all."""


@dataclass(frozen=True)
class Claim:
    """One experiment: what is claimed, how it is put to the test, and what the test cannot show."""

    name: str
    """Its verb in `transom lab`, and its module."""
    number: int
    statement: str
    textbook: str
    """What is written, and by whom."""
    expected: str
    """What we expected before the run, and why."""
    protocol: str
    not_shown: str
    predictions: tuple[Prediction, ...]
    controls: tuple[Control, ...]
    arms: Callable[[bool], Mapping[str, Settings]]
    """The arms, quick or not."""
    measure: Callable[[Settings, Sequence[int]], list[Point]]
    """All seeds of one arm, in one program."""
    read: Callable[[Points], dict[str, Estimate]]
    draw: Callable[[Points], Markup]
    plant: Plant | None = None
    planted: str = ""
    """What the plant does, in words."""
    n_seeds: tuple[int, int] = (3, 6)
    """Quick and full: a two-sided test of 6 pairs can reach p = 0.03, of 3 only 0.25."""

    def settings(self, quick: bool, planted: bool = False) -> dict[str, dict[str, Any]]:
        """Every arm's settings; `planted`: with the cause taken away."""
        arms = {name: dict(settings) for name, settings in self.arms(quick).items()}
        if planted and self.plant is not None:
            for name in arms if self.plant.arms is None else self.plant.arms:
                arms[name] |= self.plant.change
        return arms


UNDERTRAINED = "inconclusive: undertrained"


@dataclass(frozen=True)
class Verdict:
    """What the falsifier says of what was measured."""

    outcomes: tuple[Outcome, ...]
    """Of each prediction."""
    failed: tuple[str, ...]
    """What the controls that were not passed ask for."""

    @property
    def word(self) -> str:
        """Holds (every prediction), refuted, holds in part, undecided, or inconclusive: undertrained."""
        if self.failed:
            return UNDERTRAINED
        found = set(self.outcomes)
        if "refuted" in found:
            return "holds in part" if "holds" in found else "refuted"
        return "undecided" if "undecided" in found else "holds"

    def sentence(self, claim: Claim, quick: bool) -> str:
        """In words, from the predictions' own sentences."""
        if self.failed:
            return f"The models have not learned enough to tell: not reached: {'; '.join(self.failed)}."
        words = (
            {"holds": "consistent with", "refuted": "not consistent with", "undecided": "cannot tell"}
            if quick
            else {"holds": "holds", "refuted": "refuted", "undecided": "undecided"}
        )
        parts = [
            f"{words[outcome]}: {one.says}"
            for outcome, one in zip(self.outcomes, claim.predictions, strict=True)
        ]
        return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def judge(claim: Claim, readings: Readings) -> Verdict:
    """The verdict that follows from the readings."""
    failed = tuple(control.says for control in claim.controls if not control.passed(readings))
    return Verdict(tuple(one.outcome(readings) for one in claim.predictions), failed)


def values(points: Sequence[Point], key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One value of every seed: (S,)."""
    return np.array([point[key] for point in points], np.float64)


def mean(points: Sequence[Point], key: str) -> Estimate:
    """The mean over seeds, by Student's t."""
    return student(values(points, key))


def mean_share(shares: Shares, n: float) -> Estimate:
    """The mean of every seed's share of n questions of its own, as sure as `share_sum`."""
    return share_sum(shares[:, None], [1.0], [n])


def share_gap(a: Shares, b: Shares, n: float) -> Estimate:
    """What the shares a have more than the shares b, seed by seed, as sure as `share_sum`."""
    return share_sum(np.column_stack((a, b)), [1.0, -1.0], [n, n])


def share_sum(shares: Shares, weights: Sequence[float], n: Sequence[float]) -> Estimate:
    """Shares (S, C) times weights (C,), added up: the mean over seeds, by Student's t.

    n: questions behind each share of a seed, (C,). Few seeds may agree by chance: it is never surer than one
    standard error of all their questions, nor than their own 95% interval where too few were right or wrong
    for shares to differ. So 95 of 100 hold the truth, whether seeds differ or only their questions do.
    """
    seeds = student(shares @ np.asarray(weights))
    if not seeds.known:
        return seeds
    each = [_together(of, many).times(w) for of, many, w in zip(shares.T, n, weights, strict=True)]
    all_ = reduce(lambda a, b: mover(a, b.times(-1)), each)
    least, most = (sum(end(w, 0.0) for w in weights) for end in (min, max))
    low, high = min(seeds.low, all_.low), max(seeds.high, all_.high)
    return Estimate(seeds.value, max(low, least), min(high, most))


def _together(shares: Shares, n: float) -> Estimate:
    """What the questions of all seeds, n each, say of a share."""
    right, asked = min(float(shares.sum()), len(shares)) * n, len(shares) * n
    return share(right, asked, TAIL if min(right, asked - right) < FEWEST else ONE_ERROR)


def gap(points: Points, a: str, b: str, key: str) -> Estimate:
    """What arm `a` has more than arm `b`, seed by seed."""
    return student(values(points[a], key) - values(points[b], key))


def solved(points: Sequence[Point], key: str, least: float) -> Estimate:
    """The share of seeds with at least so much of it; a control asks for no interval."""
    return Estimate(float((values(points, key) >= least).mean()), math.nan, math.nan)


def over_seeds(points: Sequence[Point], key: str) -> list[list[float]]:
    """A list that every seed has, place by place: what all seeds have at each."""
    return [list(place) for place in zip(*(point[key] for point in points), strict=True)]


def curve(points: Sequence[Point]) -> tuple[list[float], list[list[float]]]:
    """The losses of all seeds while learning, over the share of the steps that were taken."""
    losses = over_seeds(points, "curve")
    return [(i + 1) / len(losses) for i in range(len(losses))], losses
