"""`transom calibrate`: from which confidence on an index may answer, so that a promise about errors holds.

Learn then test (Angelopoulos 2021), by fixed-sequence testing: a fifth of the labelled questions only places
thresholds; on the others they are tried one after the other, the strictest first, as long as the exact
binomial bound on the share of wrong answers is within what was asked for. The last one that passes is kept.
With 95% confidence over the labelled questions, no more of the answers to questions like them are wrong.
Read next: judge, ask.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from transom.errors import Refused

from .ask import POOL, rank
from .evidence import candidates
from .judge import judge_of
from .places import shown, writing
from .questions import LabelledQuestion, read_labelled
from .search import KnowledgeBase
from .store import Changes
from .words import by_character

CONFIDENCE = 0.95
PLACING = 0.2
"""Of the labelled questions, so many only place thresholds."""
LEVELS = 20
"""Thresholds that are tried at most."""


@dataclass(frozen=True)
class Promise:
    """What a threshold does on questions that had no part in placing it."""

    threshold: float
    n: int
    answered: int
    wrong: int
    bound: float
    """Upper end of the share of wrong answers, at 95% confidence."""


@dataclass(frozen=True)
class Calibration:
    """What calibrating an index came to."""

    path: str
    max_error: float
    n: int
    """Questions that thresholds were tried on."""
    kept: Promise | None
    """None: no threshold can promise it."""
    strictest: Promise
    needed: int | None
    """About how many labelled questions more a promise takes; None: more of them do not help."""

    def __str__(self) -> str:
        if self.kept is not None:
            one = self.kept
            return (
                f"{self.path}: threshold {one.threshold:.3f}; it answers {one.answered:,} of {one.n:,}"
                " questions"
                f" ({one.answered / one.n:.0%}), {one.wrong:,} of these wrongly\n"
                f"{self.promise}"
            )
        one = self.strictest
        says = (
            f"{self.path}: no promise of at most {self.max_error:.1%} wrong answers: where it is surest"
            " it answers"
            f" {one.answered:,} of {one.n:,} questions, {one.wrong:,} wrongly, which may be up to"
            f" {one.bound:.1%}"
        )
        if self.needed is None:
            return (
                f"{says}; more questions do not help: the threshold is left as it was; allow more"
                " errors, or use a better encoder"
            )
        return (
            f"{says}; about {self.needed:,} labelled questions more are needed; the threshold is left"
            " as it was"
        )

    @property
    def promise(self) -> str:
        if self.kept is None:
            return ""
        return (
            f"of its answers to questions like these at most {self.max_error:.1%} are wrong, with"
            f" {CONFIDENCE:.0%} confidence"
        )

    def to_dict(self) -> dict[str, Any]:
        kept = None if self.kept is None else vars(self.kept)
        return {
            "path": self.path,
            "max_error": self.max_error,
            "n": self.n,
            "kept": kept,
            "promise": self.promise or None,
            "strictest": vars(self.strictest),
            "needed": self.needed,
        }


def calibrate(
    path: str | Path,
    labelled: str | Path,
    *,
    max_error: float = 0.05,
    embedder: str | None = None,
    seed: int = 0,
) -> Calibration:
    """Find the threshold of an index from labelled questions (JSON lines), and keep it with the index.

    Each line has a `question` and an `answer`, a text that a right answer holds, or null where the documents
    do not say; with `document`, it has to be cited from there. Raises Refused for what is no such line.
    """
    if not 0 < max_error < 1:
        raise Refused(
            f"--max-error is {max_error}; a share of wrong answers lies between 0 and 1, such as 0.05"
        )
    base = KnowledgeBase.open(path, embedder=embedder)
    rows = read_labelled(Path(labelled))
    random.Random(seed).shuffle(rows)
    scores, right = zip(*(_judged(base, row) for row in rows), strict=True)
    found = choose(np.array(scores), np.array(right), max_error)
    calibration = Calibration(shown(path), max_error, *found)
    if calibration.kept is not None:
        kept = {
            "threshold": calibration.kept.threshold,
            "promise": calibration.promise,
            **vars(calibration.kept),
        }
        with writing(path):
            base.current().store.write(Changes(calibration=kept))
    return calibration


def choose(
    scores: NDArray[np.float64], right: NDArray[np.bool_], max_error: float
) -> tuple[int, Promise | None, Promise, int | None]:
    """How many were tried on, the threshold that is kept, the strictest, and how many labels more it takes.

    scores (N,): confidences in an order by no rule; right (N,): whether the answer would be right.
    """
    placing = max(1, round(PLACING * len(scores)))
    place, test, ok = scores[:placing], scores[placing:], right[placing:]
    fewest = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - max_error))
    if not len(test):
        raise Refused("there is one labelled question; calibrating takes hundreds")
    # With half as many answers even no error at all would prove nothing; the first may not fail by chance.
    first = min(1.0, 2 * fewest / len(test))
    shares = np.linspace(first, 1.0, LEVELS if first < 1 else 1)
    thresholds = np.unique(np.quantile(place, 1 - shares))[::-1]
    kept = strictest = None
    for threshold in thresholds:
        one = _promise(float(threshold), test, ok)
        strictest = strictest or one
        if one.bound > max_error:
            break
        kept = one
    assert strictest is not None
    return len(test), kept, strictest, None if kept else _needed(strictest, max_error)


def bound(wrong: int, n: int) -> float:
    """The share that is exceeded with 5% probability at most, given so many wrong of n (Clopper and Pearson
    1934).
    """
    return 1.0 if wrong >= n else float(beta.ppf(CONFIDENCE, wrong + 1, n - wrong))


def plain(text: str) -> str:
    """A text as answers are compared: lower case, single spaces, no punctuation."""
    return " ".join(re.findall(r"\w+", by_character(text.lower())))


def _judged(base: KnowledgeBase, row: LabelledQuestion) -> tuple[float, bool]:
    """The confidence in the sentence that would be said, and whether it is right."""
    hits = base.search(row.question, POOL)
    ranked = rank(judge_of(base), candidates(base, row.question, hits))
    if not ranked:
        return 0.0, False
    confidence, best = ranked[0]
    right = row.answer is not None and f" {plain(row.answer)} " in f" {plain(best.text)} "
    return confidence, right and row.document in (None, best.hit.passage.document)


def _promise(threshold: float, scores: NDArray[np.float64], right: NDArray[np.bool_]) -> Promise:
    answered = scores >= threshold
    n, wrong = int(answered.sum()), int((answered & ~right).sum())
    return Promise(threshold, len(scores), n, wrong, bound(wrong, n))


def _needed(strictest: Promise, max_error: float) -> int | None:
    """About how many labelled questions more a promise takes, if as many are wrong as now."""
    if not strictest.answered:
        return None
    share = strictest.wrong / strictest.answered
    if share >= max_error:
        return None
    n = strictest.answered
    while bound(round(share * n), n) > max_error and n < 10_000_000:
        n = math.ceil(1.05 * n) + 1
    return math.ceil((n - strictest.answered) * strictest.n / strictest.answered / (1 - PLACING)) + 1
