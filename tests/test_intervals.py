"""Intervals against published values and closed forms, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.intervals import Estimate, bootstrap, mean, paired_bootstrap, verdict, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),  # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(k: int, n: int, low: float, high: float) -> None:
    found = wilson(k, n)
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (k / n, low, high)


@given(st.integers(1, 500), st.data())
def test_wilson_solves_its_own_equation_and_is_symmetric(n: int, data: st.DataObject) -> None:
    """Its ends are the shares p at which k is 1.96 standard errors of p away."""
    k = data.draw(st.integers(0, n))
    found, mirrored = wilson(k, n), wilson(n - k, n)
    for end in (found.low, found.high):
        assert (k / n - end) ** 2 * n == pytest.approx(1.959963984540054**2 * end * (1 - end), abs=1e-9)
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_wilson_holds_the_true_share_about_as_often_as_it_says(share: float) -> None:
    n = 200
    held = sum(
        math.comb(n, k) * share**k * (1 - share) ** (n - k)
        for k in range(n + 1)
        if wilson(k, n).low <= share <= wilson(k, n).high
    )
    assert 0.93 < held < 0.97


def test_bootstrap_agrees_with_the_closed_form_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap(values, n=4000)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_holds_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [bootstrap(rng.exponential(1.0, 80), n=300, seed=i) for i in range(300)]
    held = np.mean([one.low <= 1.0 <= one.high for one in found])
    assert 0.90 <= held <= 0.98


def test_pairs_make_a_difference_visible_that_apart_would_drown() -> None:
    """Two systems that find the same items hard: the interval of the difference is that of the difference."""
    rng = np.random.default_rng(2)
    hardness = rng.normal(0, 10, 200)
    a, b = hardness + rng.normal(0.5, 1, 200), hardness + rng.normal(0, 1, 200)
    together = paired_bootstrap(a, b)
    assert together.value == pytest.approx(mean(a) - mean(b))
    assert together.low > 0
    assert together.high - together.low < 0.2 * (bootstrap(a).high - bootstrap(a).low)


@given(st.integers(0, 100))
@settings(deadline=None, max_examples=10)
def test_equal_systems_differ_by_exactly_nothing(seed: int) -> None:
    values = np.random.default_rng(seed).random(30)
    assert paired_bootstrap(values, values, n=50, seed=seed) == Estimate(0.0, 0.0, 0.0)


def test_bootstrap_is_a_function_of_its_seed() -> None:
    values = np.random.default_rng(3).random(50)
    assert bootstrap(values, n=100, seed=7) == bootstrap(values, n=100, seed=7)
    assert bootstrap(values, n=100, seed=7) != bootstrap(values, n=100, seed=8)


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Estimate(3.1, 1.2, 5.0), "better than X by 3.1 points (95% interval 1.2 to 5.0)"),
        (Estimate(0.4, -1.1, 1.9), "not better than X: a difference of +0.4 points can be chance"),
        (Estimate(-2.0, -3.0, -1.0), "not better than X: worse by 2.0 points (95% interval 1.0 to 3.0)"),
        (Estimate(0.0, 0.0, 0.0), "not better than X: a difference of +0.0 points can be chance"),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(difference: Estimate, words: str) -> None:
    assert verdict(difference, "X", "points").startswith(words)


def test_what_cannot_be_is_an_error() -> None:
    for k, n in ((3, 2), (-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="tries"):
            wilson(k, n)
    with pytest.raises(ValueError, match="same"):
        paired_bootstrap(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="no items"):
        bootstrap(np.zeros(0))
