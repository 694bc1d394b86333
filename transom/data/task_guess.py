"""What a file wants to teach, told from its first lines: running text, translation, classes, answers.

The one idea: a layout that pairs or labelled can read without being told anything is taken for what it is;
everything else is running text. Read next: formats, pairs, labelled.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from transom.data.archives import in_archive
from transom.data.columns import SIDES, Columns, value_at
from transom.data.dates import DATES
from transom.data.documents import printable
from transom.data.formats import format_of, lacking
from transom.data.labelled import (
    is_fasttext,
    label_columns,
    looks_like_labels,
    proposed_fields,
    text_columns,
)
from transom.data.pairs import UNNAMED, pair_columns
from transom.data.rows import JSON, RECORDS, HubRows, Row, RowFile, first_rows
from transom.data.sources import looks_like, open_rows, spooled_input
from transom.data.stdlib_labels import STDLIB_LABELS
from transom.data.tables import TABLES
from transom.data.textfile import SkippedFile
from transom.errors import Refused, nearest

Task = Literal["lm", "translate", "classify", "sft", "embed", "preference"]
FEW = 10
"""Rows of which fewer say nothing of what a column holds."""


def guess_task(
    source: str, target: str | None = None, fields: Mapping[str, str] | None = None
) -> tuple[Task, str]:
    """The task that data suggests, and why, in words; raises nothing, a missing file is running text.

    Two files are pairs; rows of one of the FORMATS teach what that does; rows with a text and a label of few
    values are classes; rows with a source and a target, or two columns of prose, are pairs. fields: the
    columns that a person named, by field.
    """
    if target is not None:
        return "translate", "two files, the second with the other side of each line of the first"
    if source.partition(":")[0] == DATES:
        return "translate", "dates in words and the ISO dates they mean"
    if source.partition(":")[0] == STDLIB_LABELS:
        return "classify", "docstrings of the standard library and their subjects"
    file = rows_there(source)
    if file is None:
        return "lm", "running text"
    with contextlib.suppress(Refused, SkippedFile):
        found = format_of(file, fields or {})
        if found is not None:
            return found.kind.task, f"{found}, such as {found.shown}"
    if isinstance(file, HubRows):
        return "lm", "running text"
    task = None
    with contextlib.suppress(Refused, SkippedFile):
        task = _file_task(file)
    return task or ("lm", f"{file.where} has neither two sides of a pair nor a text with its label")


def unmapped(source: str, fields: Mapping[str, str]) -> str:
    """Say which column that a person named a file does not have, or which is still to be named; "" where
    nothing is missing, or there are no rows.
    """
    rows = _first_of(source)
    names = [str(name) for name in rows[0]] if rows else []
    known = [name.strip().lower() for name in names]
    missing = [column for column in fields.values() if known and column.lower() not in known]
    it_has = f"; it has {', '.join(printable(name)[:40] for name in names[:12])}"
    if not missing:
        more = lacking(names, fields) if known and fields else ""
        return f"{printable(source)}: {more}{it_has}" if more else ""
    has = nearest(missing[0], names) or it_has
    return f"{printable(source)}: no column is named '{printable(missing[0])}' (--map){has}"


def rows_there(source: str) -> RowFile | HubRows | None:
    """The rows of a source that may have some; standard input is read for it, and once only."""
    if source == "-":
        return spooled_input(ahead=True)
    if source.startswith("hf:"):
        with contextlib.suppress(Refused):  # whoever learns from it says why
            return open_rows(source, "")
        return None
    return RowFile.named(Path(source), "") if os.path.isfile(in_archive(Path(source))[0]) else None


def holds_rows(source: str) -> bool:
    """Whether a source is a file of rows by its name."""
    file = rows_there(source) if source != "-" else None
    return file is not None and file.kind in RECORDS


def _file_task(file: RowFile) -> tuple[Task, str] | None:
    where = file.where
    if is_fasttext(file, "skip"):
        return "classify", f"every line of {where} begins with a label"
    if (
        file.kind not in RECORDS
        or file.content
        and file.kind in TABLES
        and len(first_rows(file, "skip")) < FEW
    ):
        return "lm", f"{where} is running text"
    sides = _found(lambda: pair_columns(file, None, "skip"))
    labels = _found(lambda: label_columns(file, None, None, "skip"))
    named = sides is not None and sides.names in SIDES
    if labels is not None and not named and _few_values(file, labels):
        return "classify", f"{where} has a text and a label: {labels}"
    if sides is not None and (sides.names != UNNAMED or _is_prose(file)):
        return "translate", f"{where} has two sides of a pair: {sides}"
    return None


def commands_for(source: str) -> list[tuple[str, str]]:
    """What a table can teach whose columns are called as nobody could guess, each with the command for it.

    Classes, where one column looks like labels; pairs, where two hold prose.
    """
    rows = _first_of(source)
    if len(rows) < FEW or "text" in rows[0]:
        return []
    learn = f"transom train {shlex.quote(source)} --task"
    if fields := proposed_fields(rows):
        return [("classes", f"{learn} classify {fields}")]
    prose = [shlex.quote(name) for name, cells in text_columns(rows).items() if _mostly_prose(cells)]
    if len(prose) == 2:
        return [("pairs", f"{learn} translate --data.field {prose[0]} --data.target-field {prose[1]}")]
    return []


def refuse_hidden_rows(source: str) -> None:
    """Raise Refused for a file of JSON objects whose name says that it is text, and for what an archive does
    not hold.
    """
    file = rows_there(source) if source != "-" else None
    if not isinstance(file, RowFile):
        return
    if file.within:
        first_rows(file, "skip")
    if file.kind not in RECORDS and (kind := looks_like(file.path, file.where)) in JSON:
        raise Refused(f"{file.where}: it holds JSON, which as text would be learned with its brackets; call "
                      f"it NAME{kind} to learn its fields, or add --task lm")  # fmt: skip


def text_field_of_input() -> str | None:
    """The field of standard input that is its text, where it holds rows; None where it is text as it stands.

    Raises Refused for rows whose text nobody could guess, which as they stand would be learned with commas.
    """
    rows = _first_of("-")
    if rows and isinstance(rows[0], dict):
        what, way = "JSON lines", f" (--data.field names its text: {', '.join(map(printable, rows[0]))})"
    elif len(rows) >= FEW:
        what, way = "a table", " (--data.field names or numbers the column of its text)"
    else:
        return None
    if "text" in rows[0]:
        return "text"
    raise Refused(f"standard input looks like {what}{way}; or learn it as it stands by --task lm")


def _first_of(source: str) -> list[Row]:
    """The first rows of a source that has some."""
    file = rows_there(source)
    if isinstance(file, RowFile) and file.kind in RECORDS:
        with contextlib.suppress(Refused, SkippedFile):
            return [row for _, row in first_rows(file, "skip")]
    return []


def _found(find: Callable[[], Columns]) -> Columns | None:
    try:
        return find()
    except Refused:
        return None


def _few_values(file: RowFile, columns: Columns) -> bool:
    """Tell whether the label column has few different values in the first rows."""
    rows = [row for _, row in first_rows(file, "skip")][columns.header :]
    return looks_like_labels([value_at(row, columns.places[1]) for row in rows])


def _is_prose(file: RowFile) -> bool:
    """Tell whether nearly all cells of a table hold letters, and most more than one word."""
    return _mostly_prose([str(cell) for _, row in first_rows(file, "skip") for cell in row])


def _mostly_prose(cells: Sequence[str]) -> bool:
    letters = sum(any(map(str.isalpha, cell)) for cell in cells)
    words = sum(len(cell.split()) > 1 for cell in cells)
    return letters > 0.9 * len(cells) and words > 0.5 * len(cells)
