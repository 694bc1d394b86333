"""How far a score can be trusted: the interval that would hold the true value in 95 of 100 such test sets.

A share has a closed form (Wilson 1927). Any other score is recomputed on test sets drawn from the real one
with replacement (Efron 1979); two systems are compared on the same drawn sets (Koehn 2004), since what is
hard for one is mostly hard for the other. It stands on the ground: the lab and the evaluation both use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
Z = 1.959963984540054
"""The normal distribution's quantile for 95%, both sides together."""

Rows = NDArray[np.number[Any]]
Statistic = Callable[[Rows], float]


@dataclass(frozen=True)
class Estimate:
    """A score with its 95% interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Estimate:
        """The same in another unit: `times(100)` makes percent or points of a share."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def percent(self) -> str:
        """A share as `86.0% (95% interval 83.1 to 88.4)`."""
        shown = self.times(100)
        return f"{shown.value:.1f}% (95% interval {shown.low:.1f} to {shown.high:.1f})"

    def __str__(self) -> str:
        return f"{self.value:.1f} (95% interval {self.low:.1f} to {self.high:.1f})"


def wilson(k: int, n: int) -> Estimate:
    """The share of k hits in n tries; sensible at 0 and n too, unlike k/n +- 1.96 standard errors."""
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} hits in {n} tries")
    share = k / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Estimate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def mean(rows: Rows) -> float:
    """The mean over all rows."""
    return float(np.mean(rows))


def bootstrap(rows: Rows, statistic: Statistic = mean, n: int = 1000, seed: int = 0) -> Estimate:
    """A statistic of test items with its interval, from `n` test sets drawn with replacement.

    rows (items, ...): one row for each item; statistic takes such rows and gives a number.
    """
    drawn = [statistic(rows[chosen]) for chosen in _draws(len(rows), n, seed)]
    return _estimate(statistic(rows), drawn)


def paired_bootstrap(a: Rows, b: Rows, statistic: Statistic = mean, n: int = 1000, seed: int = 0) -> Estimate:
    """The difference statistic(a) - statistic(b) of two systems on the same items, with its interval."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} items; both systems must have answered the same ones")
    drawn = [statistic(a[chosen]) - statistic(b[chosen]) for chosen in _draws(len(a), n, seed)]
    return _estimate(statistic(a) - statistic(b), drawn)


def verdict(difference: Estimate, baseline: str, unit: str) -> str:
    """One sentence: whether a model beats a baseline, from the difference of their scores in `unit`."""
    between = f"95% interval {difference.low:.1f} to {difference.high:.1f}"
    if difference.low > 0:
        return f"better than {baseline} by {difference.value:.1f} {unit} ({between})"
    if difference.high < 0:
        worse = difference.times(-1)
        return (
            f"not better than {baseline}: worse by {worse.value:.1f} {unit} "
            f"(95% interval {worse.high:.1f} to {worse.low:.1f})"
        )
    chance = f"a difference of {difference.value:+.1f} {unit} can be chance"
    return f"not better than {baseline}: {chance} ({between})"


def _draws(n_items: int, n: int, seed: int) -> list[NDArray[np.int64]]:
    if n_items < 1:
        raise ValueError("no items to draw from")
    rng = np.random.default_rng(seed)
    return [rng.integers(n_items, size=n_items) for _ in range(n)]


def _estimate(value: float, drawn: list[float]) -> Estimate:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
