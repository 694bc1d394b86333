"""Calibration on cases whose answer is known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from transom.evaluation.calibration import (
    best_temperature,
    brier,
    expected_calibration_error,
    reliability,
    tempered,
)


def test_a_constant_confidence_that_is_right_as_often_has_no_error() -> None:
    correct = np.arange(1000) < 800  # in order: bins that cut through equal confidences would see 1 and 0
    assert expected_calibration_error(np.full(1000, 0.8), correct) == pytest.approx(0.0, abs=1e-12)
    assert len(reliability(np.full(1000, 0.8), correct)) == 1


def test_too_sure_by_thirty_points_is_an_error_of_thirty_points() -> None:
    assert expected_calibration_error(np.full(100, 0.9), np.arange(100) < 60) == pytest.approx(0.3)


def test_errors_of_two_groups_do_not_cancel() -> None:
    """Half is too sure by 0.2, half too shy by 0.2: right on average, and wrong everywhere."""
    confidence = np.repeat([0.6, 0.8], 500)
    correct = np.concatenate([np.arange(500) < 400, np.arange(500) < 300])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.2)


def test_bins_have_equal_mass_and_order() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.beta(8, 1, 3000)  # crowded near 1, where bins of equal width would pile up
    bins = reliability(confidence, rng.random(3000) < confidence, bins=15)
    assert [part.n for part in bins] == [200] * 15
    assert [part.confidence for part in bins] == sorted(part.confidence for part in bins)
    assert expected_calibration_error(confidence, rng.random(3000) < confidence) < 0.04


def test_brier_at_its_corners() -> None:
    truth = np.array([0, 1])
    assert brier(np.eye(2), truth) == 0
    assert brier(np.eye(2)[::-1], truth) == 2
    assert brier(np.full((2, 2), 0.5), truth) == 0.5


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
