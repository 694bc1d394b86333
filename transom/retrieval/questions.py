"""LabelledQuestion questions: what was asked, and what a right answer holds. Read next: calibrate, reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transom.data.issues import Issues
from transom.data.rows import RowFile, readable_file
from transom.errors import Refused, nearest

from .search import checked

KEYS = ("question", "answer", "document")


@dataclass(frozen=True)
class LabelledQuestion:
    """A question with what is a right answer: one that holds this text, from this document; None: no answer
    is.
    """

    question: str
    answer: str | None
    document: str | None = None


def read_labelled(path: Path) -> list[LabelledQuestion]:
    """The lines of a file of labelled questions. Raises Refused with the line."""
    where = readable_file(path, "give a JSONL file with a question and an answer on each line")
    rows: list[LabelledQuestion] = []
    for line, row in RowFile(path, where).rows(Issues(settable=False)):
        if not isinstance(row, dict):
            raise Refused(
                f'{where}:{line}: labelled questions are JSON lines: {{"question": ..., "answer": ...}}'
            )
        if unknown := sorted(row.keys() - {*KEYS}):
            raise Refused(
                f"{where}:{line}: '{unknown[0]}' is not a key"
                f" here{nearest(unknown[0], KEYS) or '; they are ' + ', '.join(KEYS)}"
            )
        if missing := [name for name in KEYS[:2] if name not in row]:
            raise Refused(f"{where}:{line}: there is no '{missing[0]}' (null where the documents do not say)")
        for name in KEYS:
            if not isinstance(row.get(name), str | (str if name == "question" else type(None))):
                raise Refused(f"{where}:{line}: '{name}' is {type(row.get(name)).__name__}, not text")
        try:
            checked(row["question"])
        except Refused as refused:
            raise Refused(f"{where}:{line}: {refused}") from None
        rows.append(LabelledQuestion(row["question"], row["answer"], row.get("document")))
    if len(rows) < 2:
        raise Refused(f"{where}: {len(rows)} labelled questions; calibrating takes hundreds")
    return rows
