"""Files of records as documents: JSON lines, a JSON array, CSV and TSV, Parquet, and data sets of the Hugging
Face hub.

The one idea: a record is a row of named values, and one named text field of it is the document. Rows are read
one at a time with a limit of 8 MB, so a corpus larger than memory works. Blank lines are not records. Read
next: rows, sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from transom.data.documents import Document, in_parts, printable
from transom.data.findings import MAX_RECORD_BYTES, Findings
from transom.data.rows import json_fault, json_rows, table_rows, text_value, type_name
from transom.data.textfile import CHUNK_BYTES, opened, read_text, skip_record, without_mark
from transom.errors import Refused, nearest

_ARRAY_START = re.compile(r"\s*\[\s*")
_BETWEEN_ITEMS = re.compile(r"\s*,?\s*")


class TextField:
    """Picks the text out of every record: the field that was named, else `text`, else the only one that holds
    text.
    """

    def __init__(self, name: str | None, where: str, findings: Findings, hint: str = "") -> None:
        self.name = name
        self.where = where
        self.findings = findings
        self.hint = hint

    def document(self, record: Any, line: int) -> Document | None:
        """The document of one record, or None where it is empty or skipped."""
        if not isinstance(record, dict):
            says = f'the record is {type_name(record)}, not an object such as {{"text": "..."}}'
            return skip_record(self.findings, "records that are no object", self.where, line, says)
        if self.name is None:
            self.name = self._default(record, line)
        if self.name not in record:
            fields = [printable(name) for name in record]
            says = f"the record has no field '{printable(self.name)}'"
            says += nearest(self.name, fields) or f"; it has {', '.join(fields[:12]) or 'none'}"
            return skip_record(self.findings, "records without the field", self.where, line, says)
        text = text_value(record[self.name], self.name, self.where, line, self.findings)
        if text is None:
            return None
        self.findings.n_records += 1
        if not text.strip():
            self.findings.n_empty += 1
            return None
        return Document(self.where, line, in_parts([text], self.findings.rough_cut))

    def _default(self, record: dict[str, Any], line: int) -> str:
        texts = [name for name, value in record.items() if isinstance(value, str)]
        if "text" in record:
            return "text"
        if len(texts) == 1:
            return texts[0]
        fields = ", ".join(printable(name) for name in list(record)[:12]) or "no field at all"
        asks = f"which field holds the text? The record has {fields}: set data.field{self.hint}"
        raise Refused(f"{self.where}:{line}: {asks}")


def _documents(records: Iterable[tuple[int, Any]], field: TextField) -> Iterator[Document]:
    for line, record in records:
        document = field.document(record, line)
        if document is not None:
            yield document


def json_lines(path: Path, where: str, field: str | None, findings: Findings) -> Iterator[Document]:
    """One JSON object a line."""
    with opened(path, where) as stream:
        yield from _documents(json_rows(stream, where, findings), TextField(field, where, findings))


def json_file(path: Path, where: str, field: str | None, findings: Findings) -> Iterator[Document]:
    """A JSON array of objects; a file that does not begin with `[` is read as JSON lines."""
    with opened(path, where) as stream:
        first = without_mark(stream.read(CHUNK_BYTES), where, Findings()).lstrip()[:1]
    if first != b"[":
        yield from json_lines(path, where, field, findings)
        return
    with opened(path, where) as stream:
        yield from _documents(_array_items(stream, where, findings), TextField(field, where, findings))


def _array_items(stream: BinaryIO, where: str, findings: Findings) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of the items of a JSON array, holding little more than the longest item."""
    scan = json.JSONDecoder().raw_decode
    held, line, begun, ended = "", 1, False, False
    fault: Exception | None = None
    for piece in read_text(stream, where, findings):
        held, at = held + piece, 0
        while True:
            separators = _BETWEEN_ITEMS.match(held, at) if begun else _ARRAY_START.match(held, at)
            if separators is not None:
                line += separators[0].count("\n")
                at, begun = separators.end(), True
            ended = held.startswith("]", at)
            if at >= len(held) or ended:
                break
            try:
                value, end = scan(held, at)
            except (ValueError, RecursionError) as error:
                fault = error
                break
            yield line, value
            line += held.count("\n", at, end)
            at = end
        held = held[at:]
        if ended or len(held) > MAX_RECORD_BYTES or isinstance(fault, RecursionError):
            break
    if not ended:
        why = f" ({json_fault(fault)})" if fault is not None and held else ""
        says = (
            "no whole JSON value within 8 MB"
            if len(held) > MAX_RECORD_BYTES
            else "the JSON array breaks off here"
        )
        raise Refused(f"{where}:{line}: {says}{why}; mend it, or write one object a line (.jsonl)")


def csv_file(path: Path, where: str, field: str | None, findings: Findings) -> Iterator[Document]:
    """CSV or TSV with a header row; where `field` is a number, it counts columns from 1 and there is no
    header.
    """
    delimiter = "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","
    headless = field is not None and field.isdigit()

    def records(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
        header: list[str] | None = None
        for line, row in table_rows(stream, where, delimiter, findings):
            if header is None:
                header = [str(n) for n in range(1, len(row) + 1)] if headless else row
                if not headless:
                    continue
            yield line, dict(zip(header, row, strict=True))

    with opened(path, where) as stream:
        hint = " (a column number where the file has no header row)"
        yield from _documents(records(stream), TextField(field, where, findings, hint))


def parquet_file(path: Path, where: str, field: str | None, findings: Findings) -> Iterator[Document]:
    """A column of a Parquet file, read a thousand rows at a time (extra: pyarrow)."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise Refused(f"{where}: Parquet needs pyarrow: pip install 'transom[data]'") from None
    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            # Read only the column that is named; without a name the first record decides, so read all.
            columns = [field] if field in names else None
            rows = (row for batch in table.iter_batches(1000, columns=columns) for row in batch.to_pylist())
            yield from _documents(enumerate(rows, start=1), TextField(field, where, findings))
    except (arrow.ArrowException, OSError) as error:
        raise Refused(f"{where}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def hub_rows(name: str, rows: Iterable[Any], field: str | None, findings: Findings) -> Iterator[Document]:
    """The rows of a data set of the Hugging Face hub, already opened."""
    return _documents(enumerate(rows, start=1), TextField(field, name, findings))
