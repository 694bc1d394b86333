"""One reading of all examples before anything is made of them: what is there, and which of it is held out.

The one idea: of every example a few numbers are kept and never its text, so a set larger than memory works;
what needs the texts reads them again. Read next: example_split, prepare_examples.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
import numpy.typing as npt

from transom.data.check import Meter
from transom.data.documents import printable
from transom.data.example_report import ExampleReport
from transom.data.example_source import Example, ExampleSource, hashed_bytes
from transom.data.example_split import Groups, Mask, digest_of, held_out_groups, held_out_of_each, linked
from transom.data.issues import Issues
from transom.data.split import MOST
from transom.data.textfile import controls_note, n_controls
from transom.errors import Refused, nearest
from transom.intervals import LEAST
from transom.units import counted

_NO_LABEL = ("nan", "na", "n/a", "null", "none", "nil", "-")
"""What tables write where they have no value."""
MOST_LABELS = 0.5
"""More different labels than this share of the texts are no classes."""


@dataclass(frozen=True)
class ExampleSurvey(Generic[Example]):
    """The n examples of a run in numbers, those of the validation last."""

    sources: tuple[ExampleSource[Example], ...]
    """Where they are read from: what is learned from and, where there is one, the validation."""
    texts: tuple[Groups, ...]
    """(n,) each: the hashes of the texts that tell an example from others, its sides as a rule."""
    characters: npt.NDArray[np.uint32]
    """(n,): of all sides together."""
    classes: npt.NDArray[np.int64]
    """(n,): the number of each text's class; empty for pairs."""
    labels: tuple[str, ...]
    """The classes by number, sorted."""
    held_out: Mask
    """(n,)"""
    n_own: int
    """Examples of the source itself."""
    data_hash: str
    """SHA-256 over all examples in order."""

    def examples(self) -> Iterator[Example]:
        """Read them all again."""
        for source in self.sources:
            yield from source.examples()

    def learned_texts(self, meter: Meter) -> Iterator[str]:
        """The texts to learn from, side by side, for the making of a vocabulary."""
        for held, example in zip(self.held_out.tolist(), self.examples(), strict=False):
            for text in () if held else self.sources[0].texts(example):
                meter.add(len(text))
                yield text

    def held_out_that_are_known(self) -> int:
        """How many held-out examples have a first side that is learned from too."""
        first = self.texts[0]
        return int(np.isin(first[self.held_out], first[~self.held_out]).sum())

    def contradictions(self) -> tuple[int, int]:
        """How many texts stand with more than one class, and the number of the first example with one."""
        order = np.argsort(self.texts[0], kind="stable")
        texts, classes = self.texts[0][order], self.classes[order]
        first = np.flatnonzero(np.append(True, texts[1:] != texts[:-1]))
        unclear = np.minimum.reduceat(classes, first) != np.maximum.reduceat(classes, first)
        n = int(unclear.sum())
        sizes = np.diff(np.append(first, len(texts)))
        return n, int(order[np.repeat(unclear, sizes)].min()) if n else -1


def survey_examples(
    sources: tuple[ExampleSource[Example], ...], val_fraction: float, report: ExampleReport, meter: Meter
) -> ExampleSurvey[Example]:
    """Read what is learned from and the validation, or split the one; note in the report what was met.

    Raises Refused.
    """
    train = sources[0]
    n_sides, has_labels = len(train.sides), train.has_classes
    hashes = [bytearray() for _ in train.known_by or train.sides]
    characters, classes = array("I"), array("q")
    numbers: dict[str, int] = {}
    whole, controls, first_control, strange = hashlib.sha256(), 0, "", ("", "")
    n_own = 0

    # Of every example its hashes, length and class; classes are those of the source, not of the validation.
    for source in sources:
        issues, before = Issues(), len(characters)
        for example in source.examples(issues):
            *said, where = example
            other = example[1]
            if found := sum(map(n_controls, said)):
                controls, first_control = controls + found, first_control or where
            whole.update(hashed_bytes(example))
            for side, text in zip(hashes, train.identity(example), strict=True):
                side += digest_of(text)
            n_characters = sum(map(len, example[:n_sides]))
            characters.append(n_characters)
            meter.add(n_characters)
            if has_labels and source is train:
                classes.append(numbers.setdefault(other, len(numbers)))
            elif has_labels:
                classes.append(numbers.get(other, -1))
                strange = (other, where) if other not in numbers and not strange[1] else strange
        if len(characters) == before:
            raise Refused(f"{source.name}: there is no {report.noun} in it; name a file that holds some")
        n_own = n_own or len(characters)
        report.take(issues)
    meter.finish()

    # What is held out, and what the classes are called.
    texts = tuple(np.frombuffer(side, dtype="<u8") for side in hashes)
    found_classes, labels = _sorted(np.asarray(classes), list(numbers))
    if len(sources) > 1:
        held_out = np.arange(len(characters)) >= n_own
        report.split = f"from {sources[1].name}"
    else:
        held_out = (
            held_out_of_each(found_classes, texts[0], val_fraction)
            if has_labels
            else held_out_groups(linked(*texts) if len(texts) == 2 else texts[0], val_fraction)
        )
        report.split = "chosen by the hash of the text; no text stands on both sides"
    report.notes += train.notes
    if len(sources) == 1 and held_out.sum() < LEAST:
        report.notes.append(_few(int(held_out.sum()), len(held_out), report.noun))
    if controls:
        report.notes.append(controls_note(controls, first_control))
    if has_labels:
        _refuse_no_classes(labels, n_own, train.name, report)
        _refuse_strange(*strange, labels, train.name)
    if held_out.all() or not held_out.any():
        raise Refused(
            f"{report.name}: {counted(n_own, report.noun)} cannot be split into some to learn from and "
            "some to hold out without a text on both sides; give more, or name a file with others as "
            "--data.validation"
        )
    return ExampleSurvey(
        sources, texts, np.asarray(characters), found_classes, labels, held_out, n_own,
        whole.hexdigest(),
    )  # fmt: skip


def _few(n_held_out: int, n: int, noun: str) -> str:
    """What to say of a held-out side that gives no verdict, and what would."""
    says = f"{counted(n_held_out, noun)} held out are too few for a verdict ({LEAST})"
    share = math.ceil(130 * LEAST / n) / 100  # the hash may choose a few less
    fix = f"--data.val-fraction {share}" if share <= MOST else f"{2 * LEAST} and more {noun}s"
    return f"{says}: {fix}, or others as --data.validation"


def _sorted(
    classes: npt.NDArray[np.int64], names: Sequence[str]
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Classes numbered in the order of their names; -1 stays."""
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.append(np.argsort(order), -1).astype(np.int64)
    return rank[classes], tuple(names[at] for at in order)


def _refuse_no_classes(labels: Sequence[str], n_own: int, name: str, report: ExampleReport) -> None:
    """Raise Refused where labels are no classes; note those that look like a missing value."""
    if len(labels) == 1:
        have = f"all {n_own:,} texts have" if n_own > 1 else "its only text has"
        says = f"{have} the label '{printable(labels[0])}'"
        raise Refused(f"{name}: {says}; a classifier needs at least two classes")
    if n_own > 20 and len(labels) > MOST_LABELS * n_own:
        raise Refused(
            f"{name}: {len(labels):,} different labels for {n_own:,} texts are no classes; name the right "
            "column with --data.label"
        )
    report.notes += [
        f"'{printable(label)}' is taken for a class; where it says that there is none, remove those rows"
        for label in labels
        if label.lower() in _NO_LABEL
    ]


def _refuse_strange(label: str, where: str, labels: Sequence[str], name: str) -> None:
    """Raise Refused for a label of the validation that is none of those to learn; `where` is "" for none."""
    if where:
        guess = nearest(label, labels)
        has = guess or f"; it has {', '.join(printable(label) for label in labels[:12])}"
        raise Refused(f"{where}: the label '{printable(label)}' never occurs in {name}{has}")
