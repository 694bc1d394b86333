"""Texts for a verb that answers each: the lines of a file or of standard input, or one field of its records.

The one idea: every door reads alike. A line ends in LF or CR LF, a byte-order mark is dropped, what is not
UTF-8 is refused with its line, and a blank line keeps its place, so that answers line up with what was asked.
Read next: textfile, records, row_writer.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from transom.data.documents import printable
from transom.data.issues import Issues
from transom.data.records import record_texts
from transom.data.rows import RECORDS, RowFile, file_kind, readable_file
from transom.data.textfile import opened, plain_lines, read_text
from transom.errors import Refused

STANDARD_INPUT = "standard input"
Row = dict[str, Any]


class Asked(NamedTuple):
    """A row to be answered."""

    row: Row
    text: str
    line: int
    fault: Refused | None = None
    """Why it has no text."""


def rows_to_answer(path: Path | None, field: str | None = None) -> list[tuple[Row, str]]:
    """The lines of a text file or, without one, of standard input; of a table or records, one field: each
    text after the row that holds it. A line is a row that has nothing but its text.

    Raises Refused, with the line, for what cannot be read, and where there is no text at all.
    """
    issues = Issues(settable=False)
    name = STANDARD_INPUT if path is None else str(path)
    asked = _lines(standard_input(), name, issues) if path is None else file_rows(path, field)
    rows: list[tuple[Row, str]] = []
    for one in asked:
        if one.fault is not None:
            raise one.fault
        rows.append((one.row, one.text))
    if not any(text.strip() for _, text in rows):
        raise no_text(name)
    return rows


def file_rows(path: Path, field: str | None = None) -> Iterator[Asked]:
    """Yield the rows of a file with their texts, one by one, and those without a text with the reason.

    Raises Refused, with the line, for what is no row.
    """
    name, issues = (
        readable_file(path, "--input names a text file, a table or records"),
        Issues(settable=False),
    )
    if file_kind(path) in RECORDS:
        for line, row, text in record_texts(RowFile(path, name), field, issues):
            yield Asked(row, "", line, text) if isinstance(text, Refused) else Asked(row, text, line)
        return
    if field is not None:
        raise Refused(f"{name}: a text file has no field '{printable(field)}'; leave out --field")
    with opened(path, name) as stream:
        yield from _lines(stream, name, issues)


def no_text(name: str) -> Refused:
    """What is said of a source that holds nothing to answer."""
    return Refused(f"{printable(name)}: there is no text in it")


def _lines(stream: BinaryIO, name: str, issues: Issues) -> Iterator[Asked]:
    for line, text in plain_lines(stream, name, issues):
        yield Asked({"text": text}, text, line)


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
