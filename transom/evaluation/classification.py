"""How well texts are sorted into classes: accuracy, macro-F1, where it errs, and whether it knows when.

Each score has its 95% interval. The confusion matrix is printed whole up to 12 classes; beyond that, the
pairs that are confused most. Shapes: N items, C classes. Read next: calibration, baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Refused, nearest
from ..intervals import Estimate, Rows, bootstrap, wilson
from .calibration import best_temperature, brier, expected_calibration_error, tempered

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
MOST_COLUMNS, SHOWN_PAIRS, NAME = 12, 10, 24
ENOUGH = 40
"""From so many items on, a temperature is tried: half of them fit it, the other half judge it."""


@dataclass(frozen=True)
class PerClass:
    """How one class fares; a share is None where there was nothing to take it of."""

    label: str
    precision: float | None
    """Of what was given this label, so much is right."""
    recall: float | None
    """Of what has this label, so much was found."""
    f1: float
    n: int


@dataclass(frozen=True)
class Answered:
    """What is left when a model may say nothing below a confidence."""

    threshold: float
    coverage: float
    accuracy: float | None


@dataclass(frozen=True)
class ClassScore:
    """The scores of a classifier on a test set. It prints itself."""

    labels: tuple[str, ...]
    accuracy: Estimate
    macro_f1: Estimate
    per_class: tuple[PerClass, ...]
    confusion: NDArray[np.int64]
    """(C, C): how often truth (row) was called something (column)."""
    ece: float
    brier: float
    temperature: float | None
    """What logits should be divided by; None where there are too few items to tell."""
    ece_tempered: float | None
    answered: tuple[Answered, ...]

    @property
    def n(self) -> int:
        """Items."""
        return int(self.confusion.sum())

    def headline(self) -> dict[str, float]:
        """The two scores that are read first, in percent."""
        return {"accuracy %": 100 * self.accuracy.value, "macro-F1 %": 100 * self.macro_f1.value}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "n": self.n, "labels": list(self.labels), "accuracy": self.accuracy.to_dict(),
            "macro_f1": self.macro_f1.to_dict(), "per_class": [vars(part) for part in self.per_class],
            "confusion": self.confusion.tolist(), "ece": self.ece, "brier": self.brier,
            "temperature": self.temperature, "ece_tempered": self.ece_tempered,
            "answered": [vars(part) for part in self.answered],
        }  # fmt: skip

    def __str__(self) -> str:
        right = int(np.trace(self.confusion))
        lines = [
            f"accuracy   {self.accuracy.percent()}, {right:,} of {self.n:,}",
            f"macro-F1   {self.macro_f1.percent()}, the mean over classes",
            f"sureness   {self._sureness()}",
        ]
        return "\n".join([*lines, "", *self._classes(), "", *self._confusion(), "", *self._answered()])

    def _sureness(self) -> str:
        says = f"off by {100 * self.ece:.1f} points (ECE), Brier {self.brier:.3f}"
        if self.temperature is None or self.ece_tempered is None:
            return says
        way = "too sure" if self.temperature > 1 else "too shy"
        if self.ece_tempered > self.ece - 0.005:
            return f"{says}; no temperature would mend half a point"
        return (
            f"{says}; {way}: logits divided by {self.temperature:.2f} would be off by "
            f"{100 * self.ece_tempered:.1f}"
        )

    def _classes(self) -> list[str]:
        names = [short(label) for label in self.labels]
        wide = max(len("class"), *map(len, names))
        lines = [f"{'class':<{wide}}  precision  recall      F1  items"]
        for name, part in zip(names, self.per_class, strict=True):
            shares = f"{_percent(part.precision):>9}  {_percent(part.recall):>6}  {_percent(part.f1):>6}"
            lines.append(f"{name:<{wide}}  {shares}  {part.n:>5,}")
        return lines

    def _confusion(self) -> list[str]:
        if len(self.labels) > MOST_COLUMNS:
            return self._confused_pairs()
        names = [short(label) for label in self.labels]
        left = max(len("truth"), *map(len, names))
        keys = [f"{i + 1}" for i in range(len(names))] if max(map(len, names)) > 8 else names
        wide = max(len(f"{self.confusion.max():,}"), *map(len, keys)) + 2
        numbered = (
            [f"{key} {name}" for key, name in zip(keys, names, strict=True)] if keys != names else names
        )
        left = max(left, *map(len, numbered))
        lines = ["truth in rows, what the model said in columns (. is none)"]
        lines.append(" " * left + "".join(f"{key:>{wide}}" for key in keys))
        for name, row in zip(numbered, self.confusion, strict=True):
            lines.append(f"{name:<{left}}" + "".join(f"{n or '.':>{wide}}" for n in row.tolist()))
        return lines

    def _confused_pairs(self) -> list[str]:
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        if not wrong.any():
            return ["nothing was confused"]
        order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_PAIRS]
        lines = [f"most confused of {len(self.labels)} classes"]
        for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
            if wrong[row, column]:
                share = wrong[row, column] / self.confusion[row].sum()
                lines.append(f"  {wrong[row, column]:>5,} ({100 * share:.0f}%) of {short(self.labels[row])} "
                             f"called {short(self.labels[column])}")  # fmt: skip
        return lines

    def _answered(self) -> list[str]:
        rows = [("when at least so sure", [f"{100 * part.threshold:.0f}%" for part in self.answered]),
                ("  answered", [_percent(part.coverage) for part in self.answered]),
                ("  right of those", [_percent(part.accuracy) for part in self.answered])]  # fmt: skip
        return [f"{name:<21}" + "".join(f"{value:>8}" for value in values) for name, values in rows]


def score_classes(labels: Sequence[str], probabilities: NDArray[Any], truth: Sequence[str]) -> ClassScore:
    """Score probabilities (N, C), columns in the order of `labels` (C), against the true labels (N).

    Raises `Refused` for a true label that is not among `labels`.
    """
    probabilities = np.asarray(probabilities, np.float64)
    wanted = indices(labels, truth)
    if probabilities.shape != (len(wanted), len(labels)):
        raise ValueError(
            f"probabilities are {probabilities.shape}, not ({len(wanted)}, {len(labels)}): one row for each "
            "text, one column for each label"
        )
    guessed, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    correct = guessed == wanted
    rows = np.stack([wanted, guessed], axis=1)
    confusion = confusion_of(rows, len(labels))
    temperature, ece_tempered = _temperature(probabilities, wanted)
    return ClassScore(
        labels=tuple(labels), accuracy=wilson(int(correct.sum()), len(wanted)),
        macro_f1=bootstrap(rows, partial(macro_f1, n_classes=len(labels))),
        per_class=tuple(_per_class(labels, confusion)), confusion=confusion,
        ece=expected_calibration_error(confidence, correct), brier=brier(probabilities, wanted),
        temperature=temperature, ece_tempered=ece_tempered,
        answered=tuple(answered(confidence, correct, threshold) for threshold in THRESHOLDS),
    )  # fmt: skip


def indices(labels: Sequence[str], truth: Sequence[str]) -> NDArray[np.int64]:
    """True labels as numbers (N,). Raises `Refused` for none at all, or one that is not among `labels`."""
    if not truth:
        raise Refused("the test set holds no labelled text; give at least one")
    numbers = {label: i for i, label in enumerate(labels)}
    for row, label in enumerate(truth):
        if label not in numbers:
            raise Refused(
                f"test text {row + 1} has the label '{label}', which the model does not know (it knows "
                f"{len(labels)}){nearest(label, labels)}"
            )
    return np.array([numbers[label] for label in truth])


def confusion_of(rows: Rows, n_classes: int) -> NDArray[np.int64]:
    """Counts (C, C) of (truth, guess) rows (N, 2)."""
    pairs = np.asarray(rows, np.int64)
    return np.bincount(pairs[:, 0] * n_classes + pairs[:, 1], minlength=n_classes**2).reshape(n_classes, -1)


def macro_f1(rows: Rows, n_classes: int) -> float:
    """The mean of F1 over the classes that occur, in the truth or in the guesses, of rows (N, 2)."""
    confusion = confusion_of(rows, n_classes)
    said = confusion.sum(axis=0) + confusion.sum(axis=1)
    occurs = said > 0
    return float((2 * np.diag(confusion)[occurs] / said[occurs]).mean())


def answered(confidence: NDArray[Any], correct: NDArray[np.bool_], threshold: float) -> Answered:
    """How much is answered at a confidence of at least `threshold`, and how much of that is right."""
    kept = confidence >= threshold
    return Answered(threshold, float(kept.mean()), float(correct[kept].mean()) if kept.any() else None)


def short(label: str) -> str:
    """A label that fits into a table."""
    return label if len(label) <= NAME else f"{label[: NAME // 2]}…{label[1 - NAME // 2 :]}"


def _per_class(labels: Sequence[str], confusion: NDArray[np.int64]) -> list[PerClass]:
    given, has, hits = confusion.sum(axis=0), confusion.sum(axis=1), np.diag(confusion)
    return [
        PerClass(label, _share(hits[i], given[i]), _share(hits[i], has[i]),
                 _share(2 * hits[i], given[i] + has[i]) or 0.0, int(has[i]))
        for i, label in enumerate(labels)
    ]  # fmt: skip


def _temperature(probabilities: NDArray[Any], truth: NDArray[np.int64]) -> tuple[float | None, float | None]:
    """The best temperature, and the calibration error when each half is mended by the other half's."""
    if len(truth) < ENOUGH:
        return None, None
    halves = np.random.default_rng(0).permutation(len(truth)) % 2
    mended = np.empty_like(probabilities)
    for half in (0, 1):
        fitted = best_temperature(probabilities[halves != half], truth[halves != half])
        mended[halves == half] = tempered(probabilities[halves == half], fitted)
    error = expected_calibration_error(mended.max(axis=1), mended.argmax(axis=1) == truth)
    return best_temperature(probabilities, truth), error


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
