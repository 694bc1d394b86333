"""What a file wants to teach, told from its first lines: running text, translation, or classes.

The one idea: a layout that pairs or labelled can read without being told anything is taken for what it is;
everything else is running text. Read next: pairs, labelled.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from transom.data.columns import SIDES, Columns, value_at
from transom.data.dates import DATES
from transom.data.documents import printable
from transom.data.labelled import (
    is_fasttext,
    label_columns,
    looks_like_labels,
    proposed_fields,
    text_columns,
)
from transom.data.pairs import UNNAMED, pair_columns
from transom.data.rows import RECORDS, Row, file_kind, first_rows
from transom.data.stdlib_labels import STDLIB_LABELS
from transom.data.tables import separator_of
from transom.data.textfile import SkippedFile
from transom.errors import Refused

Task = Literal["lm", "translate", "classify"]
FEW = 10
"""Rows of which fewer say nothing of what a column holds."""


def guess_task(source: str, target: str | None = None) -> tuple[Task, str]:
    """The task that data suggests, and why, in words; raises nothing, a missing file is running text.

    Two files are pairs; rows with a text and a label of few values are classes; rows with a source and a
    target, or two columns of prose, are pairs.
    """
    if target is not None:
        return "translate", "two files, the second with the other side of each line of the first"
    if source.partition(":")[0] == DATES:
        return "translate", "dates in words and the ISO dates they mean"
    if source.partition(":")[0] == STDLIB_LABELS:
        return "classify", "docstrings of the standard library and their subjects"
    path, where = Path(source), printable(source)
    if not path.is_file():
        return "lm", "running text"
    task = None
    with contextlib.suppress(Refused, SkippedFile):
        task = _file_task(path, where)
    return task or ("lm", f"{where} has neither two sides of a pair nor a text with its label")


def _file_task(path: Path, where: str) -> tuple[Task, str] | None:
    if is_fasttext(path, where, "skip"):
        return "classify", f"every line of {where} begins with a label"
    if file_kind(path) not in RECORDS:
        return "lm", f"{where} is running text"
    sides = _found(lambda: pair_columns(path, where, None, "skip"))
    labels = _found(lambda: label_columns(path, where, None, None, "skip"))
    named = sides is not None and sides.names in SIDES
    if labels is not None and not named and _few_values(path, where, labels):
        return "classify", f"{where} has a text and a label: {labels}"
    if sides is not None and (sides.names != UNNAMED or _is_prose(path, where)):
        return "translate", f"{where} has two sides of a pair: {sides}"
    return None


def commands_for(source: str) -> list[tuple[str, str]]:
    """What a table can teach whose columns are called as nobody could guess, each with the command for it.

    Classes, where one column looks like labels; pairs, where two hold prose.
    """
    path, where = Path(source), printable(source)
    rows: list[Row] = []
    if path.is_file() and file_kind(path) in RECORDS:
        with contextlib.suppress(Refused, SkippedFile):
            rows = [row for _, row in first_rows(path, where, "skip")]
    if len(rows) < FEW or "text" in rows[0]:
        return []
    learn = f"transom train {shlex.quote(source)} --task"
    if fields := proposed_fields(rows):
        return [("classes", f"{learn} classify {fields}")]
    prose = [shlex.quote(name) for name, cells in text_columns(rows).items() if _mostly_prose(cells)]
    if len(prose) == 2:
        return [("pairs", f"{learn} translate --data.field {prose[0]} --data.target-field {prose[1]}")]
    return []


def refuse_piped_rows() -> None:
    """Raise Refused where standard input begins like a table or JSON lines, as whose text they would be
    learned. Nothing is read away, and what has not come yet is not waited for.
    """
    stream = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer
    if not isinstance(stream, io.BufferedReader):
        return
    lines = stream.peek().decode("utf-8-sig", "ignore").splitlines(keepends=True)[:-1]
    row = None
    with contextlib.suppress(ValueError):
        row = json.loads(lines[0]) if lines else None
    if isinstance(row, dict):
        what, way = "JSON lines", f" (--data.field names its text: {', '.join(map(printable, row))})"
    elif len(lines) >= FEW and separator_of(lines):
        what, way = "a table", ""
    else:
        return
    raise Refused(
        f"standard input looks like {what}{way}; write it to a file and name that (transom train FILE), or "
        "learn it as it stands by --task lm"
    )


def _found(find: Callable[[], Columns]) -> Columns | None:
    try:
        return find()
    except Refused:
        return None


def _few_values(path: Path, where: str, columns: Columns) -> bool:
    """Whether the label column has few different values in the first rows."""
    rows = [row for _, row in first_rows(path, where, "skip")][columns.header :]
    return looks_like_labels([value_at(row, columns.places[1]) for row in rows])


def _is_prose(path: Path, where: str) -> bool:
    """Whether nearly all cells of a table hold letters, and most more than one word."""
    return _mostly_prose([str(cell) for _, row in first_rows(path, where, "skip") for cell in row])


def _mostly_prose(cells: Sequence[str]) -> bool:
    letters = sum(any(map(str.isalpha, cell)) for cell in cells)
    words = sum(len(cell.split()) > 1 for cell in cells)
    return letters > 0.9 * len(cells) and words > 0.5 * len(cells)
