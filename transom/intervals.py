"""How far a score can be trusted: the interval that would hold the true value in 95 of 100 such test sets.

Each by the method that is right for its kind and size: a share by the binomial distribution (mid-P, Lancaster
1961), a lead of one system over another on the same items by those items that tell the two apart (the sign
test, McNemar 1947), a mean by Student's t, a score of sums by test sets drawn with replacement (Efron 1979;
of two systems the same sets, Koehn 2004). Items that belong together (sentences of one template) count as
clusters; a share that an erring detector counted is corrected for its errors; several questions at once are
asked by Holm's procedure. Where there is too little for an interval, there is none. It stands on the ground:
the lab and the evaluation both use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincc, ndtr, ndtri, stdtrit

TAIL = 0.025
"""What lies beyond each end of a 95% interval."""
FEWEST = 10
"""Items that tell something, below which there is no interval of what only they can tell."""
LEAST = 30
"""Texts under which there is no verdict: a difference that is not chance would have to be enormous."""
BLOCK = 1 << 20
"""Drawn items that are held at once."""

Rows = NDArray[np.number[Any]]


@dataclass(frozen=True)
class Estimate:
    """A score with its 95% interval; both ends are nan where there is too little for one."""

    value: float
    """The score itself, in the unit of what it is of."""
    low: float = math.nan
    """The lower end."""
    high: float = math.nan
    """The upper end."""

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


def share(k: float, n: float, tail: float = TAIL) -> Estimate:
    """The share of k hits in n tries: all shares under which as few or as many hits are not too rare.

    Tries that count for less than one each may come to no whole number. tail: as TAIL.
    """
    if not 0 <= k <= n * (1 + 1e-12) or n <= 0:
        raise ValueError(f"{k} hits in {n} tries")

    k = min(k, n)

    def below(p: float) -> float:
        fewer = float(betaincc(k, n - k + 1, p)) if k > 0 else 0.0
        return (fewer + (float(betaincc(k + 1, n - k, p)) if k < n else 1.0)) / 2

    low = brentq(lambda p: 1 - below(p) - tail, 0.0, 1.0) if k > 0 else 0.0
    high = brentq(lambda p: below(p) - tail, 0.0, 1.0) if k < n else 1.0
    return Estimate(k / n, float(low), float(high))  # type: ignore[arg-type]


def lead(wins: float, losses: float, n: float, tail: float = TAIL) -> Estimate:
    """Wins less losses as a share of n items, on the others of which nobody wins.

    Above 0 as a whole only where the sign test over wins and losses says so: that share of wins has an exact
    interval, the share of items that tell anything has one, and the two are put together (Zou 2009).
    """
    telling = wins + losses
    some = share(telling, n, tail)
    won = share(wins, telling, tail).times(2).plus(-1) if telling else Estimate(0.0, -1.0, 1.0)

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


@dataclass(frozen=True)
class Spread:
    """The mean of values in clusters, with what its interval is made of."""

    mean: float
    error: float
    """Standard error; nan where there is one cluster alone."""
    freedom: float
    """Degrees of freedom of its t."""
    n: int
    n_clusters: int

    def estimate(self, tail: float = TAIL) -> Estimate:
        """The mean by Student's t; no interval of fewer than FEWEST clusters."""
        if self.n_clusters < FEWEST or math.isnan(self.error):
            return Estimate(self.mean)
        half = -float(stdtrit(self.freedom, tail)) * self.error
        return Estimate(self.mean, self.mean - half, self.mean + half)

    def tries(self, values: Rows, tail: float = TAIL) -> float:
        """How many independent values would tell as much as these; each cluster counts once where all are
        equal.
        """
        if self.error == 0 or math.isnan(self.error):
            return float(self.n_clusters)
        wide = float(stdtrit(self.freedom, tail) / ndtri(tail)) ** 2
        return max(1.0, min(float(self.n), float(np.var(values)) / (self.error**2 * wide)))


def spread(values: Rows, clusters: Sequence[Hashable]) -> Spread:
    """The mean of values (N,) of which those of one cluster (N,) may say much the same.

    The error is that of the clusters' sums, each widened by its own weight, the degrees of freedom those of
    their spread of sizes (Bell and McCaffrey 2002, CR2, for a mean alone).
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values in {len(clusters)} clusters")
    numbers: dict[Hashable, int] = {}
    which = np.array([numbers.setdefault(one, len(numbers)) for one in clusters])
    n, n_clusters, mean = len(values), len(numbers), float(np.mean(values))
    if n_clusters < 2:
        return Spread(mean, math.nan, math.nan, n, n_clusters)
    weight = np.bincount(which) / n
    residuals = np.bincount(which, values - mean) / n
    variance = float((residuals**2 / (1 - weight)).sum())
    # Of the sums of whole clusters: their covariance were all items independent, each divided as above.
    root = np.sqrt(1 - weight)
    cross = (np.diag(weight) - np.outer(weight, weight)) / np.outer(root, root)
    freedom = float(np.trace(cross) ** 2 / (cross**2).sum())
    return Spread(mean, math.sqrt(variance), freedom, n, n_clusters)


def clustered(values: Rows, clusters: Sequence[Hashable], tail: float = TAIL) -> Estimate:
    """The mean of values (N,) in clusters (N,), no interval of fewer than FEWEST clusters.

    Of yes and no (1, 0) it is a share, of won, lost and neither (1, -1, 0) a lead, each of so many tries as
    tell as much alone (Korn and Graubard 1998).
    """
    found = spread(values, clusters)
    if not np.isin(values, (-1, 0, 1)).all() or found.n_clusters < FEWEST:
        return found.estimate(tail)
    tries, won, lost = found.tries(values, tail), float((values == 1).mean()), float((values == -1).mean())
    exact = lead(won * tries, lost * tries, tries, tail) if lost else share(won * tries, tries, tail)
    return Estimate(found.mean, exact.low, exact.high)


def corrected(
    flagged: float, tries: float, sensitivity: tuple[int, int], specificity: tuple[int, int]
) -> Estimate:
    """The true share behind the share that a detector flagged of so many tries, where it errs both ways.

    sensitivity: of so many that are (second), so many it flags (first); specificity: of so many that are not,
    so many it lets pass. The estimate is Rogan's and Gladen's (1978), the interval, in which the errors of
    all three shares are, Lang's and Reiczigel's (2014); both are kept within 0 and 1. Without either where
    the detector may be no better than a coin.
    """
    (hits, ill), (passed, well) = sensitivity, specificity
    if share(hits, ill).low + share(passed, well).low <= 1:
        return Estimate(math.nan)
    z = -float(ndtri(TAIL))
    sens, spec, seen = (hits + 1) / (ill + 2), (passed + 1) / (well + 2), (tries * flagged + z * z / 2)
    seen /= tries + z * z
    rate = (seen + spec - 1) / (sens + spec - 1)
    of_ill, of_well = sens * (1 - sens) / (ill + 2), spec * (1 - spec) / (well + 2)
    shift = 2 * z * z * (rate * of_ill - (1 - rate) * of_well)
    inside = seen * (1 - seen) / (tries + z * z) + rate**2 * of_ill + (1 - rate) ** 2 * of_well
    half = z * math.sqrt(inside) / (sens + spec - 1)
    best = (flagged + passed / well - 1) / (hits / ill + passed / well - 1)
    value, low, high = (min(1.0, max(0.0, one)) for one in (best, rate + shift - half, rate + shift + half))
    return Estimate(value, low, high)


def mover(a: Estimate, b: Estimate) -> Estimate:
    """The score of a less that of b, of items that have nothing to do with each other (Newcombe 1998)."""
    gap = a.value - b.value
    low = gap - math.hypot(a.value - a.low, b.high - b.value)
    return Estimate(gap, low, gap + math.hypot(a.high - a.value, b.value - b.low))


def rarity(interval: Callable[[float], Estimate], tolerance: float = 0.0) -> float:
    """How rare what was seen is where the truth is within `tolerance` of 0: the smallest error (twice the
    tail that `interval` takes) at which its interval still lies beyond; 1.0 where it never does.
    """

    def beyond(log_tail: float) -> bool:
        found = interval(math.exp(log_tail))
        return found.known and (found.low > tolerance or found.high < -tolerance)

    low, high = math.log(1e-9), math.log(0.499)
    if not beyond(high):
        return 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return 2 * math.exp(high)


def holm(p: Sequence[float]) -> list[float]:
    """For each of several questions the error that it may be asked at, so that 95 of 100 times none of those
    whose answer is no is answered yes (Holm 1979): 0.05 over how many were still open, the surest first.
    """
    order, levels, open_ = np.argsort(p, kind="stable"), [0.0] * len(p), len(p)
    for place in order.tolist():
        levels[place] = 2 * TAIL / open_
        if p[place] <= levels[place]:
            open_ -= 1
    return levels


def detectable(found: Estimate) -> float:
    """How large a difference is found 4 times of 5 by a test as wide as this interval."""
    z = -float(ndtri(TAIL))
    return (found.high - found.low) / 2 * (z + float(ndtri(0.8))) / z


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
