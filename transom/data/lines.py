"""Texts for a verb that answers each: the lines of a file or of standard input, or one field of its records;
and the same rows written back, each with its answer.

The one idea: every door reads alike. A line ends in LF or CR LF, a byte-order mark is dropped, what is not
UTF-8 is refused with its line, and a blank line keeps its place, so that answers line up with what was asked.
Read next: textfile, records.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from transom.data.documents import printable
from transom.data.issues import Issues
from transom.data.records import record_texts
from transom.data.rows import RECORDS, RowFile, file_kind, readable_file
from transom.data.tables import TABLES, layout_of
from transom.data.textfile import opened, plain_lines, read_text
from transom.errors import Refused
from transom.output import writable, write_whole

STANDARD_INPUT = "standard input"
WRITTEN = (*TABLES, ".jsonl")
"""Files that answers are written to, by their extension."""
Row = dict[str, Any]


def rows_to_answer(path: Path | None, field: str | None = None) -> list[tuple[Row, str]]:
    """The lines of a text file or, without one, of standard input; of a table or records, one field: each
    text after the row that holds it. A line is a row that has nothing but its text.

    Raises Refused, with the line, for what cannot be read, and where there is no text at all.
    """
    issues = Issues(settable=False)
    if path is None:
        name = STANDARD_INPUT
        rows = list(_lines(standard_input(), name, issues))
    else:
        name = readable_file(path, "--input names a text file, a table or records")
        rows = list(_file_rows(path, name, field, issues))
    if not any(text.strip() for _, text in rows):
        raise Refused(f"{name}: there is no text in it")
    return rows


def _file_rows(path: Path, name: str, field: str | None, issues: Issues) -> Iterator[tuple[Row, str]]:
    if file_kind(path) in RECORDS:
        yield from record_texts(RowFile(path, name), field, issues)
        return
    if field is not None:
        raise Refused(f"{name}: a text file has no field '{printable(field)}'; leave out --field")
    with opened(path, name) as stream:
        yield from _lines(stream, name, issues)


def _lines(stream: BinaryIO, name: str, issues: Issues) -> Iterator[tuple[Row, str]]:
    for _, text in plain_lines(stream, name, issues):
        yield {"text": text}, text


def answers_file(out: Path, path: Path | None) -> Path:
    """The file that rows with their answers go to, asked about before the work; `path`: where they come from.

    Raises Refused for one that cannot be written, or that holds the rows themselves.
    """
    writable(out)
    if out.suffix.lower() not in WRITTEN:
        raise Refused(f"{printable(out)}: rows are written as {', '.join(WRITTEN)}; --out names such a file")
    if path is not None and out.exists() and path.exists() and out.samefile(path):
        raise Refused(f"{printable(out)} holds the rows to answer; --out names another file")
    return out


def write_rows(out: Path, rows: Sequence[Row], answers: Sequence[Row], path: Path | None = None) -> Path:
    """Write rows with the fields of their answers after their own: a table, or one JSON object a line.

    A table is written with the separator that `path`, of the same kind, has. Raises Refused where an answer
    has a field that its row has already.
    """
    for row, answer in zip(rows, answers, strict=True):
        if twins := row.keys() & answer.keys():
            raise Refused(
                f"the rows have a field '{sorted(twins)[0]}' already; rename it, and the answer has room"
            )
    whole = [{**row, **answer} for row, answer in zip(rows, answers, strict=True)]
    if (kind := out.suffix.lower()) not in TABLES:
        return write_whole(
            out, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in whole)
        )
    same = path is not None and file_kind(path) == kind
    made = io.StringIO()
    table = csv.writer(
        made, delimiter=layout_of(path, kind, str(path)).separator if path and same else TABLES[kind],
        lineterminator="\n",
    )  # fmt: skip
    names = list(dict.fromkeys(name for row in whole for name in row))
    table.writerow(names)
    table.writerows([[_cell(row.get(name, "")) for name in names] for row in whole])
    return write_whole(out, made.getvalue())


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def whole_input() -> str:
    """All that standard input holds, as one text."""
    return "".join(read_text(standard_input(), STANDARD_INPUT, Issues(settable=False)))


def standard_input() -> BinaryIO:
    """The bytes of standard input; who is to type them is told. Raises Refused where it is closed."""
    if sys.stdin is None:
        raise Refused(f"{STANDARD_INPUT} is closed; give a text, or a file to read")
    if sys.stdin.isatty():
        print("type your text; Ctrl-D on a line of its own ends it", file=sys.stderr, flush=True)
        return io.BytesIO(sys.stdin.buffer.read())  # at once: another read asks for another Ctrl-D
    return sys.stdin.buffer


def split_lines(text: str) -> list[str]:
    """The lines of a text as its file would have them; a text without a line break is one."""
    return re.split(r"\r?\n", text)
