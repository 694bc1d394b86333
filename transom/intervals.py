"""How far a score can be trusted: the interval that would hold the true value in 95 of 100 such test sets.

Each by the method that is right for its kind and size: a share by the binomial distribution (mid-P, Lancaster
1961), a lead of one system over another on the same items by those items that tell the two apart (the sign
test, McNemar 1947), a mean by Student's t, a score of sums by test sets drawn with replacement (Efron 1979;
of two systems the same sets, Koehn 2004). Where there is too little for an interval, there is none. It stands
on the ground: the lab and the evaluation both use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, ndtr, stdtrit

TAIL = 0.025
"""What lies beyond each end of a 95% interval."""
FEWEST = 10
"""Items that tell something, below which there is no interval of what only they can tell."""
BLOCK = 1 << 20
"""Drawn items that are held at once."""

Rows = NDArray[np.number[Any]]


@dataclass(frozen=True)
class Estimate:
    """A score with its 95% interval; both ends are nan where there is too little for one."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    def times(self, factor: float) -> Estimate:
        """The same in another unit: `times(100)` makes percent or points of a share."""
        return Estimate(self.value * factor, *sorted((self.low * factor, self.high * factor)))

    def plus(self, amount: float) -> Estimate:
        """The same from another zero."""
        return Estimate(self.value + amount, self.low + amount, self.high + amount)

    def to_dict(self) -> dict[str, float | None]:
        """Plain values; an interval that is not there is None."""
        return {"value": self.value, "low": self.low if self.known else None,
                "high": self.high if self.known else None}  # fmt: skip

    def percent(self) -> str:
        """A share as `86.0% (95% interval 83.1 to 88.4)`."""
        shown = self.times(100)
        return f"{shown.value:.1f}% ({shown.interval()})"

    def interval(self, digits: int = 1) -> str:
        """The interval in words."""
        if not self.known:
            return "too few for an interval"
        return f"95% interval {self.low:.{digits}f} to {self.high:.{digits}f}"

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.interval()})"


def share(k: int, n: int) -> Estimate:
    """The share of k hits in n tries: all shares under which as few or as many hits are not too rare."""
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} hits in {n} tries")

    def below(p: float) -> float:
        return (float(bdtr(k - 1, n, p) if k else 0.0) + float(bdtr(k, n, p))) / 2

    low = brentq(lambda p: 1 - below(p) - TAIL, 0.0, 1.0) if k > 0 else 0.0
    high = brentq(lambda p: below(p) - TAIL, 0.0, 1.0) if k < n else 1.0
    return Estimate(k / n, float(low), float(high))  # type: ignore[arg-type]


def lead(wins: int, losses: int, n: int) -> Estimate:
    """Wins less losses as a share of n items, on the others of which nobody wins.

    Above 0 as a whole only where the sign test over wins and losses says so: that share of wins has an exact
    interval, the share of items that tell anything has one, and the two are put together (Zou 2009).
    """
    telling = wins + losses
    some = share(telling, n)
    won = share(wins, telling).times(2).plus(-1) if telling else Estimate(0.0, -1.0, 1.0)

    def low(of: Estimate) -> float:
        edge = some.low if of.low > 0 else some.high
        far = math.hypot(some.value * (of.value - of.low), of.low * (some.value - edge))
        return some.value * of.value - far

    return Estimate(some.value * won.value, low(won), -low(won.times(-1)))


def student(values: Rows, telling: int | None = None) -> Estimate:
    """The mean of independent values (N,), by Student's t.

    telling: how many of the values an error could rest on, where most say nothing (the mistakes, say).
    """
    n, middle = len(values), float(np.mean(values))
    if n < 2 or (telling is not None and telling < FEWEST):
        return Estimate(middle)
    half = float(-stdtrit((telling or n) - 1, TAIL) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(middle, middle - half, middle + half)


def bootstrap(
    rows: Rows, score: Callable[[Rows], float], telling: int | None = None, draws: int = 1000, seed: int = 0
) -> Estimate:
    """A score that is made of sums over items, rows (N, F): score takes their sums (F,).

    telling: as of `student`; fewer widen the interval, as fewer degrees of freedom do (Hesterberg 2015).
    """
    value, n = score(rows.sum(axis=0)), len(rows) if telling is None else telling
    if n < 2 or (telling is not None and n < FEWEST):
        return Estimate(value)
    tail = float(ndtr(stdtrit(n - 1, TAIL) * math.sqrt(n / (n - 1))))
    drawn = [score(sums) for sums in _drawn_sums(rows, draws, seed)]
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def paired_bootstrap(
    a: Rows, b: Rows, score: Callable[[Rows], float], telling: int | None = None, draws: int = 1000,
    seed: int = 0,
) -> Estimate:  # fmt: skip
    """The score of a less that of b on the same items, rows (N, F) each; the same items are drawn of both."""
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape}; both systems must have answered the same items")
    width, both = a.shape[1], np.concatenate([a, b], axis=1)
    return bootstrap(both, lambda sums: score(sums[:width]) - score(sums[width:]), telling, draws, seed)


def verdict(difference: Estimate, baseline: str, unit: str) -> str:
    """One sentence: whether a model beats a baseline, from the difference of their scores in `unit`."""
    if not difference.known:
        return f"no verdict on {unit} beside {baseline}: too few texts tell the two apart"
    between = difference.interval()
    if difference.low > 0:
        return f"better than {baseline} by {difference.value:.1f} {unit} ({between})"
    if difference.high < 0:
        worse = difference.times(-1)
        return f"not better than {baseline}: worse by {worse.value:.1f} {unit} ({worse.interval()})"
    chance = f"a difference of {difference.value:+.1f} {unit} can be chance"
    return f"not better than {baseline}: {chance} ({between})"


def _drawn_sums(rows: Rows, draws: int, seed: int) -> Iterator[Rows]:
    """The sums (F,) of as many items as there are, drawn with replacement, again and again."""
    n, rng = len(rows), np.random.default_rng(seed)
    at_once = max(1, min(draws, BLOCK // n))
    for start in range(0, draws, at_once):
        many = min(at_once, draws - start)
        drawn = rng.integers(n, size=(many, n)) + n * np.arange(many)[:, None]
        yield from np.bincount(drawn.ravel(), minlength=many * n).reshape(many, n) @ rows
