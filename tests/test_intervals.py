"""Intervals against published values, closed forms and the definitions of their tests.

How often they hold the truth is in test_coverage.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, ttest_1samp

from tests.scale import scaled
from transom.intervals import (
    Estimate,
    Rows,
    bootstrap,
    clustered,
    corrected,
    detectable,
    holm,
    lead,
    mover,
    paired_bootstrap,
    rarity,
    share,
    spread,
    student,
    verdict,
)


def mean_of(sums: Rows) -> float:
    """Of rows (1, value)."""
    return float(sums[1] / sums[0])


def with_ones(values: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(values), values], axis=1)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),  # Newcombe 1998, table I, method 6
    [(81, 263, 0.2544, 0.3658), (15, 148, 0.0601, 0.1581), (0, 20, 0.0000, 0.1391), (1, 29, 0.0017, 0.1585)],
)
def test_a_share_has_the_published_intervals(k: int, n: int, low: float, high: float) -> None:
    found = share(k, n)
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (k / n, low, high)


@given(st.integers(1, 500), st.data())
@settings(deadline=None)
def test_ends_of_a_share_are_where_the_hits_become_too_rare_and_it_is_symmetric(
    n: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, n))
    found, mirrored = share(k, n), share(n - k, n)
    if k > 0:
        rarer = binom.sf(k, n, found.low) + binom.pmf(k, n, found.low) / 2
        assert rarer == pytest.approx(0.025, abs=1e-8)
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 200))
@settings(deadline=None)
def test_a_lead_is_one_exactly_where_the_sign_test_says_so(wins: int, losses: int, ties: int) -> None:
    n = wins + losses + ties
    found, mirrored = lead(wins, losses, n), lead(losses, wins, n)
    assert found.value == pytest.approx((wins - losses) / n)
    assert found.low == pytest.approx(-mirrored.high, abs=1e-12)
    assert -1 <= found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high <= 1
    as_many = binom.sf(wins, wins + losses, 0.5) + binom.pmf(wins, wins + losses, 0.5) / 2
    if abs(as_many - 0.025) > 1e-6:
        assert (found.low > 0) == (as_many < 0.025)


def test_of_one_item_nothing_follows() -> None:
    found = lead(1, 0, 1)
    assert found.value == 1 and found.low < -0.8 and found.high == 1


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30).filter(lambda v: np.std(v) > 1e-3))
@settings(deadline=None)
def test_the_interval_of_a_mean_is_scipys(values: list[float]) -> None:
    found = student(np.array(values))
    theirs = ttest_1samp(values, 0).confidence_interval(0.95)
    assert type(found.high) is float  # so that what follows from it is a plain bool, which JSON takes
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-6, abs=1e-6)


def test_bootstrap_agrees_with_the_closed_form_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found, closed = bootstrap(with_ones(values), mean_of, draws=4000), student(values)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((closed.low, closed.high), abs=0.02)


def test_pairs_make_a_difference_visible_that_apart_would_drown() -> None:
    """Two systems that find the same items hard: the interval of the difference is that of the difference."""
    rng = np.random.default_rng(2)
    hardness = rng.normal(0, 10, 200)
    a, b = (with_ones(hardness + rng.normal(by, 1, 200)) for by in (0.5, 0))
    together, apart = paired_bootstrap(a, b, mean_of), bootstrap(a, mean_of)
    assert together.value == pytest.approx(mean_of(a.sum(0)) - mean_of(b.sum(0)))
    assert together.low > 0
    assert together.high - together.low < 0.2 * (apart.high - apart.low)


@given(st.integers(0, 100))
@settings(max_examples=scaled(10))
def test_equal_systems_differ_by_exactly_nothing(seed: int) -> None:
    rows = with_ones(np.random.default_rng(seed).random(30))
    assert paired_bootstrap(rows, rows, mean_of, draws=50, seed=seed) == Estimate(0.0, 0.0, 0.0)


def test_bootstrap_is_a_function_of_its_seed_and_not_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = with_ones(np.random.default_rng(3).random(50))
    once = bootstrap(rows, mean_of, draws=100, seed=7)
    assert once != bootstrap(rows, mean_of, draws=100, seed=8)
    monkeypatch.setattr("transom.intervals.BLOCK", 120)
    again = bootstrap(rows, mean_of, draws=100, seed=7)
    assert (again.low, again.high) == pytest.approx((once.low, once.high), rel=1e-12)


def test_where_few_items_tell_anything_the_interval_is_wider_and_then_there_is_none() -> None:
    rows = with_ones(np.arange(200) < 12.0)
    of_all, of_few, of_fewer = (bootstrap(rows, mean_of, telling) for telling in (None, 12, 9))
    assert of_few.high - of_few.low > 1.05 * (of_all.high - of_all.low)
    assert not of_fewer.known and of_fewer.value == of_all.value
    assert not student(rows[:, 1], 9).known and not student(rows[:1, 1]).known
    assert of_fewer.to_dict() == {"value": of_all.value, "low": None, "high": None}
    assert of_fewer.percent() == "6.0% (too few for an interval)"


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Estimate(3.1, 1.2, 5.0), "better than X by 3.1 points (95% interval 1.2 to 5.0)"),
        (Estimate(0.4, -1.1, 1.9), "not better than X: a difference of +0.4 points can be chance"),
        (Estimate(-2.0, -3.0, -1.0), "not better than X: worse by 2.0 points (95% interval 1.0 to 3.0)"),
        (Estimate(0.0, 0.0, 0.0), "not better than X: a difference of +0.0 points can be chance"),
        (Estimate(9.0), "no verdict on points beside X: too few texts tell the two apart"),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(difference: Estimate, words: str) -> None:
    assert verdict(difference, "X", "points").startswith(words)


def test_an_estimate_in_another_unit_keeps_its_order() -> None:
    assert Estimate(0.2, 0.1, 0.4).times(-100) == Estimate(-20.0, -40.0, -10.0)
    assert Estimate(0.2, 0.1, 0.4).plus(1) == Estimate(1.2, 1.1, 1.4)
    assert math.isnan(Estimate(0.2).times(100).low)


def test_what_cannot_be_is_an_error() -> None:
    for k, n in ((3, 2), (-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="tries"):
            share(k, n)
    with pytest.raises(ValueError, match="same"):
        paired_bootstrap(np.zeros((3, 2)), np.zeros((4, 2)), mean_of)


def test_clusters_of_one_are_no_clusters() -> None:
    values = np.random.default_rng(0).normal(1, 2, 30)
    found, plain = clustered(values, range(30)), student(values)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))
    yes = np.arange(40) < 30
    assert clustered(yes.astype(float), range(40)).low == pytest.approx(share(30, 40).low, abs=0.01)


def test_items_told_twice_tell_no_more() -> None:
    values = np.random.default_rng(1).normal(0, 1, 25)
    once, twice = clustered(values, range(25)), clustered(np.tile(values, 2), list(range(25)) * 2)
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high))


def test_of_few_clusters_there_is_no_interval_and_of_all_alike_one_that_is_not_certain() -> None:
    assert not clustered(np.ones(90), [i % 9 for i in range(90)]).known
    assert rarity(spread(np.ones(5), [0] * 5).estimate) == 1.0
    none = clustered(np.zeros(60), [i % 20 for i in range(60)])
    assert (none.low, none.high) == (0.0, share(0, 20).high)


def test_a_detector_is_corrected_as_published() -> None:
    """Rogan and Gladen's formula on the example that the report names: 18% flagged are 14.3%."""
    found = corrected(0.18, 400, (390, 500), (460, 500))
    assert found.value == pytest.approx((0.18 + 0.92 - 1) / (0.78 + 0.92 - 1))
    assert found.low < found.value < found.high
    assert math.isnan(corrected(0.5, 100, (55, 100), (50, 100)).value)  # no better than a coin
    assert corrected(0.0, 100, (90, 100), (90, 100)).value == 0.0


def test_holm_asks_the_surest_first() -> None:
    assert holm([0.001, 0.5, 0.02]) == pytest.approx([0.05 / 3, 0.05, 0.05 / 2])
    assert holm([0.9, 0.8]) == pytest.approx([0.025, 0.025])
    assert detectable(Estimate(0.0, -1.96, 1.96)) == pytest.approx(2.80, abs=0.01)


def test_a_difference_of_two_shares_is_newcombes_and_its_rarity_is_that_of_its_interval() -> None:
    def apart(tail: float) -> Estimate:
        return mover(share(56, 70, tail), share(48, 80, tail))

    found = apart(0.025)  # Newcombe 1998, example (a), method 10: 0.0524 to 0.3339
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=0.005)
    p = rarity(apart)
    assert apart(p / 2).low == pytest.approx(0, abs=1e-3) and p < 0.05
    assert rarity(apart, 0.3) == 1.0 or rarity(apart, 0.3) > 0.5
