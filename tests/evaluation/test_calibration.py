"""Calibration on cases whose answer is known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from transom.evaluation.calibration import (
    best_temperature,
    bin_of,
    error_by_chance,
    expected_calibration_error,
    n_bins,
    squared_distances,
    tempered,
)


def test_a_constant_confidence_that_is_right_as_often_has_no_error() -> None:
    correct = np.arange(1000) < 800  # in order: bins that cut through equal confidences would see 1 and 0
    assert expected_calibration_error(np.full(1000, 0.8), correct, 15) == pytest.approx(0.0, abs=1e-12)
    assert not bin_of(np.full(1000, 0.8), 15).any()


def test_too_sure_by_thirty_points_is_an_error_of_thirty_points() -> None:
    assert expected_calibration_error(np.full(100, 0.9), np.arange(100) < 60, 2) == pytest.approx(0.3)


def test_errors_of_two_groups_do_not_cancel() -> None:
    """Half is too sure by 0.2, half too shy by 0.2: right on average, and wrong everywhere."""
    confidence = np.repeat([0.6, 0.8], 500)
    correct = np.concatenate([np.arange(500) < 400, np.arange(500) < 300])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.2)


def test_bins_have_equal_mass_and_order() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.beta(8, 1, 3000)  # crowded near 1, where bins of equal width would pile up
    bins = bin_of(confidence, 15)
    assert np.bincount(bins).tolist() == [200] * 15
    assert (np.diff(bins[confidence.argsort()]) >= 0).all()
    assert [n_bins(n) for n in (49, 100, 310, 749, 3000)] == [0, 2, 6, 14, 15]


@pytest.mark.parametrize("n", [100, 1000])
def test_a_calibrated_classifier_is_told_apart_from_chance_as_seldom_as_it_says(n: int) -> None:
    """100 test sets, of which 5 may lie beyond; 12 or more come once in 300 times."""
    rng = np.random.default_rng(n)
    beyond = 0
    for seed in range(100):
        confidence = 0.5 + 0.5 / (1 + np.exp(-rng.normal(1.5, 1.3, n)))
        correct = rng.random(n) < confidence
        found = expected_calibration_error(confidence, correct, n_bins(n))
        beyond += found > error_by_chance(confidence, n_bins(n), seed)
    assert beyond < 12


def test_brier_at_its_corners() -> None:
    truth = np.array([0, 1])
    assert squared_distances(np.eye(2), truth).tolist() == [0, 0]
    assert squared_distances(np.eye(2)[::-1], truth).tolist() == [2, 2]
    assert squared_distances(np.full((2, 2), 0.5), truth).tolist() == [0.5, 0.5]


def test_the_temperature_that_was_put_in_is_found() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4000, 4)) * 1.5
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(4, p=row) for row in honest])
    too_sure = np.exp(3 * logits) / np.exp(3 * logits).sum(axis=1, keepdims=True)
    found = best_temperature(too_sure, truth)
    assert found == pytest.approx(3.0, rel=0.08)
    mended = tempered(too_sure, found)
    assert (mended.argmax(axis=1) == too_sure.argmax(axis=1)).all()
    assert np.abs(mended - honest).max() < 0.05


def test_probabilities_of_zero_are_no_obstacle() -> None:
    hard = np.eye(3)[np.array([0, 1, 2, 0])]
    found = best_temperature(hard, np.array([0, 1, 2, 1]))
    assert np.isfinite(found) and np.isfinite(tempered(hard, found)).all()
