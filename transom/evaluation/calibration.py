"""Whether a classifier's probabilities mean what they say: of what it is 80% sure of, 80% should be right.

The expected calibration error uses bins of equal mass: each holds about as many items, so none is decided by
a handful. Brier (1950) scores the whole distribution. One temperature for all logits repairs most networks
(Guo et al. 2017). Shapes: N items, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BINS = 15
SMALLEST = 1e-12
"""Probabilities are taken to be at least this before their logarithm."""


@dataclass(frozen=True)
class Bin:
    """Items of about the same confidence."""

    confidence: float
    """What the model said, on average."""
    accuracy: float
    """How often it was right."""
    n: int


def reliability(confidence: Array, correct: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """Items (N,) sorted by confidence into bins of about equal mass; equal confidences stay together."""
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1]))
    which = np.searchsorted(edges, confidence, side="left")
    return [
        Bin(float(confidence[which == i].mean()), float(correct[which == i].mean()), int((which == i).sum()))
        for i in np.unique(which)
    ]


def expected_calibration_error(confidence: Array, correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """The mean gap between confidence (N,) and accuracy over bins of equal mass; 0 is perfect."""
    parts = reliability(confidence, correct, bins)
    return sum(part.n * abs(part.confidence - part.accuracy) for part in parts) / len(confidence)


def brier(probabilities: Array, truth: NDArray[np.int64]) -> float:
    """Mean squared distance between probabilities (N, C) and the truth (N,) as one-hot: 0 to 2."""
    return float(((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(axis=1).mean())


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
