"""Whether a classifier's probabilities mean what they say: of what it is 80% sure of, 80% should be right.

The expected calibration error uses bins of equal mass: each holds about as many items, so none is decided by
a handful. Chance alone makes it larger than 0, the more so the fewer items there are, and no resampling gives
it an honest interval; so it stands beside what a perfectly calibrated classifier would show on the same
items. Brier (1950) scores the whole distribution. One temperature for all logits repairs most networks (Guo
et al. 2017). Shapes: N items, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BINS, ITEMS = 15, 50
"""At most so many bins, and at least so many items in each."""
DRAWS = 1000
"""Times that a calibrated classifier is drawn."""
SMALLEST = 1e-12
"""Probabilities are taken to be at least this before their logarithm."""


def n_bins(n: int) -> int:
    """Bins for n items; under 2 there is nothing that an average would not show."""
    return min(BINS, n // ITEMS)


def bin_of(confidence: Array, bins: int) -> NDArray[np.int64]:
    """The bin of each item (N,), of about equal mass and in order; equal confidences stay together."""
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, confidence, side="left"), return_inverse=True)[1]


def expected_calibration_error(confidence: Array, correct: NDArray[Any], bins: int) -> float:
    """The mean gap between confidence (N,) and accuracy over bins of equal mass; 0 is perfect."""
    return _error(bin_of(confidence, bins), confidence - correct)


def error_by_chance(confidence: Array, bins: int, seed: int = 0) -> float:
    """What the calibration error of a perfectly calibrated classifier, as sure as this one (N,), stays below
    in 95 of 100 test sets.
    """
    rng, which = np.random.default_rng(seed), bin_of(confidence, bins)
    drawn = [_error(which, confidence - (rng.random(len(confidence)) < confidence)) for _ in range(DRAWS)]
    return float(np.quantile(drawn, 0.95))


def _error(which: NDArray[np.int64], gaps: Array) -> float:
    return float(np.abs(np.bincount(which, gaps)).sum() / len(gaps))


def squared_distances(probabilities: Array, truth: NDArray[np.int64]) -> Array:
    """Between probabilities (N, C) and the truth (N,) as one-hot, 0 to 2; their mean is Brier's score."""
    return ((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(axis=1)


def tempered(probabilities: Array, temperature: float) -> Array:
    """Probabilities (N, C) after their logits are divided by `temperature`: above 1 is less sure."""
    logits = np.log(np.maximum(probabilities, SMALLEST)) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def best_temperature(probabilities: Array, truth: NDArray[np.int64]) -> float:
    """The temperature, from 0.05 to 20, under which the truth (N,) is likeliest."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(truth))

    def surprise(log_temperature: float) -> float:
        likely = tempered(probabilities, float(np.exp(log_temperature)))[rows, truth]
        return float(-np.log(np.maximum(likely, SMALLEST)).mean())

    found = minimize_scalar(surprise, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))
