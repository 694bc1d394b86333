"""Does a passage carry an answer? The verifier of words and numbers, and how often it errs.

It is the one that `transom ask` uses: the sentence of the passage that carries most of an answer's words,
each by how rare it is, and none where a number is missing. Its threshold was chosen on one half of BEGIN's
development set (Dziri et al. 2022) and its errors counted on the other half; a share that it flags is
corrected for them. It reads words and not meaning: "not" and "no" are stop words to it. Read next: made_up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..intervals import Estimate, share
from ..retrieval.ask import best_quote
from ..retrieval.chunks import sentences
from ..retrieval.evidence import coverage, stems, weights
from ..retrieval.store import Passage


@dataclass(frozen=True)
class Errors:
    """How a verifier did on answers that people judged."""

    threshold: float
    sensitivity: tuple[int, int]
    """Of so many answers that the passage does not carry (second), so many it flags (first)."""
    specificity: tuple[int, int]
    """Of so many that it carries, so many it lets pass."""
    source: str

    def estimates(self) -> tuple[Estimate, Estimate]:
        """Sensitivity and specificity with their intervals."""
        return share(*self.sensitivity), share(*self.specificity)

    def __str__(self) -> str:
        sens, spec = (one.times(100) for one in self.estimates())
        return (
            f"verifier (threshold {self.threshold:.2f}): flags {sens.value:.0f}% [{sens.low:.0f}, "
            f"{sens.high:.0f}] of what the passage does not carry, lets {spec.value:.0f}% [{spec.low:.0f}, "
            f"{spec.high:.0f}] of the rest pass ({self.source})"
        )


def support(answer: str, passage: str) -> float:
    """How much of the weakest sentence of an answer the passage carries, from 0 to 1; 1 of nothing said."""
    read = Passage("passage", 0, len(passage), passage)
    rare = weights(answer, [passage])
    said = [answer[start:end] for start, end in sentences(answer) if stems(answer[start:end])]
    return min((best_quote(one, read, rare).support for one in said), default=1.0)


def overlap(answer: str, passage: str) -> float:
    """The baseline: the share of an answer's words that occur in the passage, all alike, wherever."""
    return coverage(dict.fromkeys(stems(answer), 1.0), passage) if stems(answer) else 1.0


def measured(scores: Sequence[float], carried: Sequence[bool], source: str, seed: int = 0) -> Errors:
    """Choose the threshold on one half of judged answers (N,), by both shares together; count on the rest."""
    values, truth = np.array(scores), np.array(carried)
    half = np.random.default_rng(seed).permutation(len(values)) % 2 == 0
    tried = np.unique(values[half])

    def gain(limit: float) -> float:
        flagged = values[half] < limit
        return float(flagged[~truth[half]].mean() - flagged[truth[half]].mean())

    limit = max(tried.tolist(), key=gain)
    flagged, ill = values[~half] < limit, ~truth[~half]
    return Errors(
        limit,
        (int((flagged & ill).sum()), int(ill.sum())),
        (int((~flagged & ~ill).sum()), int((~ill).sum())),
        source,
    )


CHECKED = Errors(0.65, (388, 419), (120, 155), "half of BEGIN's development set, the other half chose")
"""What is known of `support` where nobody gives judged answers of their own."""
