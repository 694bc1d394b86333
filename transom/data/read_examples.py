"""All examples of a run at once, with what is held out: from the validation, or a share of the source.

Read next: example_split, prepare_examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from transom.data.documents import printable
from transom.data.example_report import ExampleReport, counted
from transom.data.example_source import ExampleSource
from transom.data.example_split import held_out_groups, held_out_of_each, linked, same
from transom.data.issues import Issues
from transom.data.labelled import Labelled
from transom.data.pairs import Pair
from transom.data.textfile import controls_note, n_controls
from transom.errors import Refused, nearest

Example = TypeVar("Example", Pair, Labelled)
Mask = npt.NDArray[np.bool_]

_NO_LABEL = ("nan", "na", "n/a", "null", "none", "nil", "-")
"""What tables write where they have no value."""
MOST_LABELS = 0.5
"""More different labels than this share of the texts are no classes."""


@dataclass(frozen=True)
class AllExamples(Generic[Example]):
    """All examples of a run, those of the validation last."""

    examples: list[Example]
    held_out: Mask
    n_own: int
    """Examples of the source itself."""
    data_hash: str

    def texts(self, sides: dict[str, list[str]]) -> Iterator[str]:
        """The texts to learn from, side by side, for the making of a vocabulary."""
        for at in np.flatnonzero(~self.held_out).tolist():
            for texts in sides.values():
                yield texts[at]


def read_examples(
    train: ExampleSource[Example],
    validation: ExampleSource[Example] | None,
    val_fraction: float,
    report: ExampleReport,
    split: Callable[[list[Example], float], Mask],
) -> AllExamples[Example]:
    """Read both sources, or split one, and note in the report what was met."""
    issues, others = Issues(), Issues()
    examples = list(train.examples(issues))
    n_own, validation = len(examples), validation or train.held_out
    if not examples:
        raise Refused(f"{train.name}: there is no {report.noun} in it; name a file that holds some")
    if validation is not None:
        examples += validation.examples(others)
        held_out = np.arange(len(examples)) >= n_own
        report.split = f"from {validation.name}"
        if len(examples) == n_own:
            raise Refused(f"{validation.name}: there is no {report.noun} in it; name a file that holds some")
    else:
        held_out = split(examples, val_fraction)
        report.split = "chosen by the hash of the text; no text stands on both sides"
    for found in (issues, others):
        report.n_skipped += found.n_skipped_records
        report.n_empty += found.n_empty
        for kind, fault in found.faults.items():
            count, first = report.faults.get(kind, (0, fault.first))
            report.faults[kind] = (count + fault.count, first)
    report.notes += train.notes
    digest = hashlib.sha256()
    controls, first_control = 0, ""
    for example in examples:
        if found := n_controls(example[0]) + n_controls(example[1]):
            controls, first_control = controls + found, first_control or example.where
        digest.update("\0".join([example[0], example[1], ""]).encode())
    if controls:
        report.notes.append(controls_note(controls, first_control))
    return AllExamples(examples, held_out, n_own, digest.hexdigest())


def refuse_unsplit(read: AllExamples, report: ExampleReport) -> None:
    """Raise Refused when there is nothing to learn from, or nothing held out."""
    if read.held_out.all() or not read.held_out.any():
        raise Refused(
            f"{report.name}: {counted(read.n_own, report.noun)} cannot be split into some to learn from and "
            "some to hold out without a text on both sides; give more, or name a file with others as "
            "--data.validation"
        )


def split_pairs(pairs: list[Pair], fraction: float) -> Mask:
    """Which pairs to hold out: about this share, none with a side that is learned from."""
    groups = linked([pair.source for pair in pairs], [pair.target for pair in pairs])
    return held_out_groups(groups, fraction)


def split_labelled(examples: list[Labelled], fraction: float) -> Mask:
    """Which texts to hold out: about this share of every class, none that is learned from."""
    groups = same([example.text for example in examples])
    return held_out_of_each([example.label for example in examples], groups, fraction)


def classes_of(read: AllExamples[Labelled], name: str, report: ExampleReport) -> tuple[str, ...]:
    """The classes of the examples to learn from, sorted; Refused where they are no classes."""
    own = read.examples[: read.n_own]
    labels = sorted({example.label for example in own})
    if len(labels) == 1:
        says = f"all {counted(len(own), 'text')} have the label '{printable(labels[0])}'"
        raise Refused(f"{name}: {says}; a classifier needs at least two classes")
    if len(own) > 20 and len(labels) > MOST_LABELS * len(own):
        raise Refused(
            f"{name}: {len(labels):,} different labels for {len(own):,} texts are no classes; name the right "
            "column with --data.label"
        )
    report.notes += [
        f"'{printable(label)}' is taken for a class; where it says that there is none, remove those rows"
        for label in labels
        if label.lower() in _NO_LABEL
    ]
    known = set(labels)
    for example in read.examples[read.n_own :]:
        if example.label not in known:
            guess = nearest(example.label, labels)
            has = guess or f"; it has {', '.join(printable(label) for label in labels[:12])}"
            raise Refused(
                f"{example.where}: the label '{printable(example.label)}' never occurs in {name}{has}"
            )
    return tuple(labels)
