"""The judge: how likely a sentence answers the question, and from which likelihood on it is said.

The weights are those of a logistic regression on XQuAD's English questions, half of its articles, each with
its paragraph in the index and without it; what they do on the other half is in docs/performance.md. The
threshold is 0.5 until `transom calibrate` finds the index's own. Read next: calibrate, ask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .evidence import Features
from .search import KnowledgeBase

DEFAULT = 0.5


@dataclass(frozen=True)
class Judge:
    """Weights of the features (evidence.FEATURES), a bias, and the threshold."""

    weights: tuple[float, ...]
    bias: float
    threshold: float = DEFAULT
    promise: str = ""

    def confidence(self, features: Features) -> float:
        """The probability that a sentence with these features answers."""
        return 1 / (1 + math.exp(-float(np.dot(self.weights, features) + self.bias)))


WITH_VECTORS = Judge((6.54, 0.0, 6.25, 0.26), -7.10)
WORDS_ALONE = Judge((7.23, 1.76, 0.0, 0.27), -5.21)


def judge_of(base: KnowledgeBase) -> Judge:
    """The judge of an index, with its own threshold where it was calibrated."""
    usual = WITH_VECTORS if base.encoder is not None else WORDS_ALONE
    found = base.store.calibration
    if found is None:
        return usual
    return Judge(usual.weights, usual.bias, float(found["threshold"]), str(found["promise"]))
