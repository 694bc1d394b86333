"""How well texts are sorted into classes: accuracy, macro-F1, where it errs, and whether it knows when.

Each share has its 95% interval; macro-F1 has one where there are mistakes and texts of every class enough for
it. The confusion matrix is printed whole up to 12 classes; beyond that, the pairs that are confused most.
Shapes: N items, C classes. Read next: calibration, baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Refused, nearest
from ..intervals import Estimate, Rows, bootstrap, share, student
from .calibration import (
    best_temperature,
    error_by_chance,
    expected_calibration_error,
    n_bins,
    squared_distances,
    tempered,
)

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
MOST_COLUMNS, SHOWN_PAIRS, NAME = 12, 10, 24
RAREST = 5
"""Texts of a class, below which macro-F1 has no interval: what the missing ones would change, none of them
shows.
"""


@dataclass(frozen=True)
class PerClass:
    """How one class fares; a share is None where there was nothing to take it of."""

    label: str
    """Its name."""
    precision: Estimate | None
    """Of what was given this label, so much is right."""
    recall: Estimate | None
    """Of what has this label, so much was found."""
    f1: float
    """The harmonic mean of the two."""
    n: int
    """Items that have this label."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        shares = {name: found and found.to_dict() for name, found in
                  (("precision", self.precision), ("recall", self.recall))}  # fmt: skip
        return {**vars(self), **shares}


@dataclass(frozen=True)
class Answered:
    """What is left when a model may say nothing below a confidence."""

    threshold: float
    """The least confidence with which a label is given."""
    coverage: float
    """Share of items that get one."""
    accuracy: float | None
    """Share of those whose label is right; None where none gets one."""


@dataclass(frozen=True)
class ClassScore:
    """The scores of a classifier on a test set. It prints itself."""

    labels: tuple[str, ...]
    """The C classes, in the model's order."""
    accuracy: Estimate
    """Share of items whose likeliest class is the right one."""
    macro_f1: Estimate
    """The mean of the classes' F1, a rare class counting as much as a frequent one."""
    per_class: tuple[PerClass, ...]
    """Each class by itself."""
    confusion: NDArray[np.int64]
    """(C, C): how often truth (row) was called something (column)."""
    ece: float | None
    """The expected calibration error; None, as what follows from it, where there are too few items for it."""
    ece_by_chance: float | None
    """What that of a perfectly calibrated classifier stays below in 95 of 100 test sets of this size."""
    brier: Estimate
    """The mean squared distance of the probabilities to the truth, 0 to 2 (Brier 1950)."""
    temperature: float | None
    """What logits should be divided by."""
    ece_tempered: float | None
    """The expected calibration error after that."""
    answered: tuple[Answered, ...]
    """What is left when it may say nothing below a confidence, from 0.5 to 0.99."""

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
            "macro_f1": self.macro_f1.to_dict(), "per_class": [part.to_dict() for part in self.per_class],
            "confusion": self.confusion.tolist(), "ece": self.ece, "ece_by_chance": self.ece_by_chance,
            "brier": self.brier.to_dict(), "temperature": self.temperature, "ece_tempered": self.ece_tempered,
            "answered": [vars(part) for part in self.answered],
        }  # fmt: skip

    def __str__(self) -> str:
        right = int(np.trace(self.confusion))
        lines = [
            f"accuracy   {self.accuracy.percent()}, {right:,} of {self.n:,}",
            f"macro-F1   {self.macro_f1.percent()}, the mean over classes",
            f"sureness   {self._sureness()}",
            f"Brier      {self.brier.value:.3f} ({self.brier.interval(3)})",
        ]
        return "\n".join([*lines, "", *self._classes(), "", *self._confusion(), "", *self._answered()])

    def _sureness(self) -> str:
        if self.ece is None or self.ece_by_chance is None or self.temperature is None:
            return f"{self.n:,} texts are too few to tell whether it is as often right as it is sure"
        says, chance = f"off by {100 * self.ece:.1f} points (ECE)", f"{100 * self.ece_by_chance:.1f}"
        if self.ece <= self.ece_by_chance:
            return f"{says}; of so many texts one that is calibrated would show up to {chance}"
        says += f", by chance up to {chance}; "
        if self.ece_tempered is None or self.ece_tempered > self.ece - 0.005:
            return f"{says}no temperature would mend half a point"
        way = "too sure" if self.temperature > 1 else "too shy"
        return (
            f"{says}{way}: {100 * self.ece_tempered:.1f} with classify --temperature {self.temperature:.2f}"
        )

    def _classes(self) -> list[str]:
        names = [short(label) for label in self.labels]
        wide = max(len("class"), *map(len, names))
        lines = [f"{'class':<{wide}}  {'precision, 95%':>16}  {'recall, 95%':>16}      F1  items"]
        for name, part in zip(names, self.per_class, strict=True):
            shares = f"{_between(part.precision):>16}  {_between(part.recall):>16}  {_percent(part.f1):>6}"
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
    rows = f1_rows(wanted, guessed, len(labels))
    wrong, bins = int((~correct).sum()), n_bins(len(wanted))
    ece = expected_calibration_error(confidence, correct, bins) if bins > 1 else None
    confusion = confusion_of(wanted, guessed, len(labels))
    temperature, ece_tempered = _temperature(probabilities, wanted, bins)
    return ClassScore(
        labels=tuple(labels), accuracy=share(len(wanted) - wrong, len(wanted)),
        macro_f1=bootstrap(rows, macro_f1, telling(rows, wrong)),
        per_class=tuple(_per_class(labels, confusion)), confusion=confusion,
        ece=ece, ece_by_chance=error_by_chance(confidence, bins) if bins > 1 else None,
        brier=student(squared_distances(probabilities, wanted), wrong),
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


def confusion_of(truth: NDArray[np.int64], guessed: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Counts (C, C) of what is true (N,) and what was said (N,)."""
    return np.bincount(truth * n_classes + guessed, minlength=n_classes**2).reshape(n_classes, -1)


def f1_rows(truth: NDArray[np.int64], guessed: NDArray[np.int64], n_classes: int) -> NDArray[np.float32]:
    """What macro-F1 is made of, text by text (N, 3C): hits, truths and guesses of each class; they add up."""
    classes = np.arange(n_classes)
    has, said = truth[:, None] == classes, guessed[:, None] == classes
    return np.concatenate([has & said, has, said], axis=1).astype(np.float32)


def macro_f1(sums: Rows) -> float:
    """The mean of F1 over the classes that occur, in the truth or in the guesses, from sums (3C,) of rows."""
    hits, has, said = np.split(sums, 3)
    occurs = has + said > 0
    return float((2 * hits[occurs] / (has + said)[occurs]).mean())


def telling(rows: Rows, n: int) -> int:
    """How many of n items an error of macro-F1 could rest on: none where a class has next to no texts."""
    has = np.split(rows.sum(axis=0), 3)[1]
    return n if has[has > 0].min() >= RAREST else 0


def answered(confidence: NDArray[Any], correct: NDArray[np.bool_], threshold: float) -> Answered:
    """How much is answered at a confidence of at least `threshold`, and how much of that is right."""
    kept = confidence >= threshold
    return Answered(threshold, float(kept.mean()), float(correct[kept].mean()) if kept.any() else None)


def short(label: str) -> str:
    """A label that fits into a table."""
    return label if len(label) <= NAME else f"{label[: NAME // 2]}…{label[1 - NAME // 2 :]}"


def _per_class(labels: Sequence[str], confusion: NDArray[np.int64]) -> list[PerClass]:
    given, has = confusion.sum(axis=0).tolist(), confusion.sum(axis=1).tolist()
    hits = np.diag(confusion).tolist()
    return [
        PerClass(label, share(hits[i], given[i]) if given[i] else None,
                 share(hits[i], has[i]) if has[i] else None,
                 2 * hits[i] / max(1, given[i] + has[i]), has[i])
        for i, label in enumerate(labels)
    ]  # fmt: skip


def _temperature(
    probabilities: NDArray[Any], truth: NDArray[np.int64], bins: int
) -> tuple[float | None, float | None]:
    """The best temperature, and the calibration error when each half is mended by the other half's."""
    if bins < 2:
        return None, None
    halves = np.random.default_rng(0).permutation(len(truth)) % 2
    mended = np.empty_like(probabilities)
    for half in (0, 1):
        fitted = best_temperature(probabilities[halves != half], truth[halves != half])
        mended[halves == half] = tempered(probabilities[halves == half], fitted)
    error = expected_calibration_error(mended.max(axis=1), mended.argmax(axis=1) == truth, bins)
    return best_temperature(probabilities, truth), error


def _between(found: Estimate | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found.value:.1f}% ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
