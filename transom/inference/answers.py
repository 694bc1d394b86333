"""The texts that a verb answers, each in its row, and what it shows of the answers: words, or plain values.

Texts come from the command line, from a file or from standard input; answers are printed, or written beside
their texts into a file of the same rows. Read next: data/lines.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.checkpoint.hub import resolve
from transom.data.columns import Columns
from transom.data.documents import printable
from transom.data.labelled import label_columns
from transom.data.lines import rows_to_answer
from transom.data.pairs import pair_columns
from transom.data.row_writer import RowWriter, answers_file
from transom.data.rows import RECORDS, RowFile, file_kind, first_rows
from transom.data.textfile import SkippedFile, not_text
from transom.errors import Refused
from transom.output import for_terminal, whole_file, writable, write_whole
from transom.settings import TrainSettings, load
from transom.units import counted

if TYPE_CHECKING:
    from .classifier import Classification, Classifier

SHOWN = 12
"""Vectors that are shown beside each other."""


class TextInput:
    """The texts of the command line, of a file, or of the lines of standard input, each in its row."""

    def __init__(
        self,
        texts: Sequence[str],
        file: Path | None = None,
        field: str | None = None,
        out: Path | None = None,
        *,
        model: str = "",
        also: str = "",
        fix: str = "--input reads it",
    ) -> None:
        """out: where rows with answers go, or what ends in `also`; asked about before any work is done.
        field: which column of `file` is read; that which the run of `model` learned from, where it is there.
        """
        file = None if file == Path("-") else file
        if texts and file is not None:
            raise Refused(f"texts are given twice: on the command line and in {file}; leave one out")
        if field is not None and file is None:
            raise Refused("--field names a field of the records in a file; add --input FILE")
        self.file, self.out = file, out
        if out is not None:
            writable(out) if also and out.suffix == also else answers_file(out, file)
        if file is not None and field is None:
            field = learned_field(model, file)
        rows = [({"text": text}, text) for text in spoken(texts, fix)] or rows_to_answer(file, field)
        self.rows, self.texts = [row for row, _ in rows], [text for _, text in rows]

    def write(self, answers: list[dict[str, Any]]) -> str:
        """Write the rows with these fields after their own; say what was done."""
        assert self.out is not None
        writer = RowWriter.of(self.out, self.rows, answers[0], self.file)
        with whole_file(self.out) as file:
            writer.write(file, ({**row, **answer} for row, answer in zip(self.rows, answers, strict=True)))
        return f"{counted(len(answers), 'row')}: {self.out}"


def spoken(texts: Sequence[str], fix: str) -> list[str]:
    """Texts of the command line as they are; Refused for what is no text, or the name of a file."""
    for text in texts:
        if os.path.isfile(text):
            raise Refused(f"{printable(text)} is a file, not a text; {fix}")
        if (says := not_text(text)) is not None:
            raise Refused(f"'{printable(text)}': {says}")
    return list(texts)


def learned_field(model: str, file: Path) -> str | None:
    """The field of a file that holds what the run of a model learned from; None where that cannot be told.

    The run's settings name it, or the file that it learned from shows it once more.
    """
    if not os.path.isdir(model) or not file.is_file() or file_kind(file) not in RECORDS:
        return None
    with suppress(Refused, SkippedFile, OSError):
        settings = load(TrainSettings, file=resolve(model).parent / "settings.toml")
        _, first = first_rows(RowFile(file, str(file)), "skip")[0]
        name = settings.data.field or _shown_field(settings)
        if name.isdigit() and isinstance(first, list):
            return name if 1 <= int(name) <= len(first) else None
        return next((str(own) for own in first if str(own).strip().lower() == name.strip().lower()), None)
    return None


def _shown_field(settings: TrainSettings) -> str:
    """The field of a run that was told none: what its columns are is seen as it was then."""
    data, file = settings.data, RowFile(Path(settings.data.source), settings.data.source)
    columns: Columns
    if settings.task == "classify":
        columns = label_columns(file, None, data.label, "skip")
    else:
        columns = pair_columns(file, None, "skip")
    (place, *_), name = columns.places[0], columns.names[0]
    return name if columns.header or isinstance(place, str) else str(place + 1)


def unescaped(text: str) -> str:
    """A newline, a tab, a carriage return or a backslash where a shell left it spelled out."""
    meant = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(r"\\([ntr\\])", lambda found: meant[found[1]], text)


@dataclass(frozen=True)
class Shown:
    """An answer whose words depend on how they are asked for."""

    words: str
    values: dict[str, Any]

    def __str__(self) -> str:
        return self.words

    def to_dict(self) -> dict[str, Any]:
        return self.values


class Answers:
    """One answer for each text, also as a line, and as columns of its row."""

    def __init__(
        self, name: str, asked: TextInput, answers: list[Any], lines: list[str], columns: list[dict[str, Any]]
    ) -> None:
        self.name, self.texts, self.answers, self.lines = name, asked.texts, answers, lines
        self.written = None if asked.out is None else asked.write(columns)

    def __str__(self) -> str:
        return self.written or "\n".join(map(for_terminal, self.lines))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        pairs = zip(self.texts, self.answers, strict=True)
        return {self.name: [{"input": text, **asdict(answer)} for text, answer in pairs]}


def translated(asked: TextInput, found: list[Any]) -> Answers:
    """What a translator answered."""
    lines = [answer.text for answer in found]
    return Answers("translations", asked, found, lines, [{"translation": line} for line in lines])


def classified(classifier: Any, asked: TextInput, **how: Any) -> Answers:
    """What a classifier answers."""
    answers = classes_of(classifier, asked.texts, **how)
    lines = [_class_line(text, answer) for text, answer in zip(asked.texts, answers, strict=True)]
    return Answers("classifications", asked, answers, lines, [class_columns(one) for one in answers])


def classes_of(classifier: Classifier, texts: Sequence[str], **how: Any) -> list[Classification]:
    """The class of each text; a blank one keeps its place and has none."""
    from .classifier import Classification

    found = iter(classifier.classify([text for text in texts if text.strip()], **how))
    return [next(found) if text.strip() else Classification(None, {}, 0.0) for text in texts]


def class_columns(one: Classification) -> dict[str, Any]:
    """What stands beside a text that was classified."""
    return {"class": one.label, "confidence": round(one.confidence, 4)}


def _class_line(text: str, answer: Classification) -> str:
    """The class of a text, how sure it is, and the text on one line; of a blank line nothing."""
    words = " ".join(text.splitlines())
    return f"{answer.label or '(unsure)'}\t{answer.confidence:.3f}\t{words}" if text.strip() else ""


class Completions:
    """The texts that a model wrote, each after its prompt; into the file that was asked for, if any."""

    def __init__(self, asked: TextInput, n: int, completions: list[Any]) -> None:
        repeated = [prompt for prompt in asked.texts for _ in range(n)]
        self.pairs = list(zip(repeated, completions, strict=True))
        self.written = asked.write([{"completion": one.text} for one in completions]) if asked.out else ""

    def __str__(self) -> str:
        shown = "\n\n".join(for_terminal(prompt + completion.text) for prompt, completion in self.pairs)
        return self.written or shown

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"completions": [{"prompt": p, **completion.to_dict()} for p, completion in self.pairs]}


class Embeddings:
    """The vectors of texts: how near they are to each other (cosine), or the file that they went to."""

    def __init__(self, asked: TextInput, vectors: Any) -> None:
        """vectors: (texts, D) float32."""
        self.texts, self.vectors, self.out = asked.texts, vectors, asked.out
        if self.out is not None and self.out.suffix == ".npy":
            np.save(made := io.BytesIO(), vectors)
            write_whole(self.out, made.getvalue())
        elif self.out is not None:
            asked.write([{"embedding": vector} for vector in vectors.tolist()])

    def __str__(self) -> str:
        size = f"{counted(len(self.texts), 'vector')} of {self.vectors.shape[1]} numbers"
        if self.out is not None:
            return f"{size}: {self.out}"
        first = self.vectors[:SHOWN]
        lengths = (first**2).sum(1) ** 0.5
        near = first @ first.T / lengths[:, None] / lengths[None]
        rows = [" ".join(f"{value:6.2f}" for value in row) for row in near]
        lines = [f"{row}  {text}" for row, text in zip(rows, self.texts, strict=False)]
        more = len(self.texts) > SHOWN
        rest = [f"the first {SHOWN} of them; --out FILE.npy or --json gives all"] if more else []
        return for_terminal("\n".join([f"{size}; how near each is to each other (cosine):", *lines, *rest]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        pairs = zip(self.texts, self.vectors.tolist(), strict=True)
        return {"embeddings": [{"input": text, "embedding": vector} for text, vector in pairs]}


def doubts(model: str, sure: list[float]) -> str:
    """Say which translations the model of a run is less sure of than of nearly all that it was evaluated on;
    "" where there are none, or nothing to compare with.
    """
    if not os.path.isdir(model):
        return ""
    report = resolve(model).parent / "evaluation.json"
    line = json.loads(report.read_text()).get("unsure_below") if report.is_file() else None
    unsure = [f"{i} ({value:.2f})" for i, value in enumerate(sure, 1) if line is not None and value < line]
    if not unsure:
        return ""
    more = f" and {len(unsure) - 8:,} more" if len(unsure) > 8 else ""
    return (
        f"unsure of {', '.join(unsure[:8])}{more}: mean log-probability per token below {line:.2f}, which 95 "
        "of 100 texts of its evaluation reach"
    )
