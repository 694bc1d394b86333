"""Files of records as documents, and data sets of the Hugging Face hub.

The one idea: a record is a row of named values, and one named text field of it is the document. Rows are read
one at a time with a limit of 8 MB, so a corpus larger than memory works. Read next: rows, sources.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from transom.data.columns import TEXT_NAMES, is_number
from transom.data.documents import Document, in_parts, printable
from transom.data.issues import Issues
from transom.data.json_rows import inside_of, json_rows, only_object, wrapped
from transom.data.rows import HubRows, Row, RowFile, refuse_twins, text_value, type_name
from transom.data.tables import TABLES
from transom.data.textfile import opened, skip_record
from transom.errors import Refused, nearest


class TextField:
    """Picks the text out of every record: the field that was named, else `text`, else the only one that holds
    text.
    """

    def __init__(self, name: str | None, where: str, issues: Issues, hint: str = "") -> None:
        self.name = name
        self.where = where
        self.issues = issues
        self.hint = hint

    def text(self, record: Any, line: int) -> str | None:
        """The text of one record, or None where it is skipped."""
        if not isinstance(record, dict):
            says = f'the record is {type_name(record)}, not an object such as {{"text": "..."}}'
            return skip_record(self.issues, "records that are no object", self.where, line, says)
        if self.name is None:
            self.name = self._default(record, line)
        if self.name not in record:
            fields = [printable(name) for name in record]
            says = f"the record has no field '{printable(self.name)}'"
            says += nearest(self.name, fields) or f"; it has {', '.join(fields[:12]) or 'none'}"
            return skip_record(self.issues, "records without the field", self.where, line, says)
        text = text_value(record[self.name], self.name, self.where, line, self.issues)
        self.issues.n_records += text is not None
        return text

    def _default(self, record: dict[str, Any], line: int) -> str:
        texts = [name for name, value in record.items() if isinstance(value, str)]
        if "text" in record:
            return "text"
        if len(texts) == 1:
            return texts[0]
        lists = [name for name, value in record.items() if isinstance(value, list) and value
                 and all(isinstance(one, dict) for one in value)]  # fmt: skip
        if not texts and len(lists) == 1 and line == 1:
            raise Refused(wrapped(self.where, lists[0]))
        if name := only_object(record):
            raise Refused(f"{self.where}:{line}: {inside_of(self.where, name)}")
        fields = ", ".join(printable(name) for name in list(record)[:12]) or "no field at all"
        asks = f"set --data.field{self.hint}" if self.issues.settable else "name it with --field"
        asks = f"which field holds the text? The record has {fields}: {asks}"
        raise Refused(f"{self.where}:{line}: {asks}")


def _documents(records: Iterable[tuple[int, Any]], field: TextField) -> Iterator[Document]:
    for line, record in records:
        text = field.text(record, line)
        if text is not None and text.strip():
            yield Document(field.where, line, in_parts([text], field.issues.rough_cut))
        else:
            field.issues.n_empty += text is not None


def record_file(file: RowFile | HubRows, field: str | None, issues: Issues) -> Iterator[Document]:
    """Rows, one document each."""
    yield from _documents(*_named_rows(file, field, issues))


def record_texts(
    file: RowFile, field: str | None, issues: Issues
) -> Iterator[tuple[int, dict[str, Any], str | Refused]]:
    """Yield every row of a file with its line, whole, by the names of its values, and its text, blank ones
    too, or why it has none. Raises Refused for what is no row.
    """
    rows, pick = _named_rows(file, field, issues, whole=True)
    for line, record in rows:
        try:
            text = pick.text(record, line) or ""
        except Refused as refused:
            if pick.name is None:  # which field is meant is not known
                raise
            text = refused
        yield line, record, text


def _named_rows(
    file: RowFile | HubRows, field: str | None, issues: Issues, *, whole: bool = False
) -> tuple[Iterable[tuple[int, Any]], TextField]:
    """Rows whose values have names, by JSON, Parquet or a table's header, and which of them is the text.

    whole: with all their values, though the text alone be meant.
    """
    rows: Iterator[tuple[int, Any]] = file.rows(issues, [field] if field and not whole else [])
    hint = ""
    if file.kind in TABLES:
        issues.notes += file.notes()
        rows, hint = (
            _named(rows, file.where, field, issues),
            " (a column number where the file has no header row)",
        )
    return rows, TextField(field, file.where, issues, hint)


def json_lines(file: RowFile, field: str | None, issues: Issues) -> Iterator[Document]:
    """One JSON object a line, whatever the file is called (standard input)."""
    with opened(file.path, file.where) as stream:
        yield from _documents(json_rows(stream, file.where, issues), TextField(field, file.where, issues))


def _named(
    rows: Iterator[tuple[int, Row]], where: str, field: str | None, issues: Issues
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with their names: those of the first line, or numbers where `field` is one."""
    line, first = next(rows, (0, []))
    names = [str(name) for name in first]
    if field is not None and is_number(field):
        numbers = [str(n) for n in range(1, len(names) + 1)]
        text = dict(zip(numbers, names, strict=True)).get(field, "")
        if text.strip().lower() in TEXT_NAMES and len(text) > 1:
            issues.notes.append(f"{where}:{line}: '{printable(text)}' is taken for the name of its column")
        elif names:
            rows = itertools.chain([(line, first)], rows)
        names = numbers
    else:
        refuse_twins(names, [field] if field is not None else names, where)
    for line, row in rows:
        yield line, dict(zip(names, row, strict=True))
