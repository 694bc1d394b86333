"""Rows of a file, each with its line: JSON lines, CSV and TSV, and plain lines; and the first few of them.

The one idea: whoever wants values (a text field, a pair, a label) reads the same rows, with the same limits
and the same refusals. CSV follows RFC 4180; TSV has no quoting, a tab is always a border. Blank lines are not
rows. Read next: columns.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from transom.data.documents import printable
from transom.data.findings import MAX_RECORD_BYTES, Findings, Policy
from transom.data.textfile import SkippedFile, opened, read_lines, skip_record
from transom.errors import Refused, nearest

Row = dict[str, Any] | list[str]
"""A JSON object, or the cells of a line of a table."""

TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON_LINES = (".jsonl", ".ndjson")

_HALF_PAIR = re.compile("[\ud800-\udfff]")
_TYPE_NAMES = {dict: "an object", list: "a list", int: "a number", float: "a number", bool: "true or false"}


def file_kind(path: Path) -> str:
    """The extension that says what is inside: that before .gz, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return suffixes[0] if len(suffixes) == 2 and suffixes[1] == ".gz" else suffixes[-1] if suffixes else ""


def readable_file(path: Path, instead: str) -> str:
    """The printable name of a file. Raises Refused when it is none that can be read; `instead` is the fix."""
    name = printable(path)
    if name == "-" or name.startswith("hf:"):
        raise Refused(f"{name}: standard input and data sets of the hub hold running text only; {instead}")
    if path.is_dir():
        raise Refused(f"{name}: a folder, not a file; {instead}")
    if not path.exists():
        if re.match(r"[a-z]+:/", str(path)):
            raise Refused(f"{name}: Transom does not fetch addresses; save the text as a file and name that")
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise Refused(f"{name}: no such file or folder{nearest(path.name, siblings)}")
    if not path.is_file():
        raise Refused(f"{name}: neither a file nor a folder")
    if not os.access(path, os.R_OK):
        raise Refused(f"{name}: no permission to read it")
    return name


def plain_lines(stream: BinaryIO, where: str, findings: Findings) -> Iterator[tuple[int, str]]:
    """Yield (line number, text without its line end) of every line, blank ones too."""
    for line, text in read_lines(stream, where, findings):
        yield line, text.rstrip("\r\n")


def json_rows(stream: BinaryIO, where: str, findings: Findings) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of one JSON value a line."""
    for line, text in read_lines(stream, where, findings):
        if not text.strip():
            continue
        try:
            yield line, json.loads(text)
        except (ValueError, RecursionError) as error:
            says = f"not a JSON object on one line ({json_fault(error)})"
            skip_record(findings, "broken JSON", where, line, says)


def json_fault(error: Exception) -> str:
    """What is wrong with a piece of JSON, in words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def table_rows(
    stream: BinaryIO, where: str, delimiter: str, findings: Findings
) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of every row of a table; all are as wide as the first, a header like any."""
    cells = _tab_rows if delimiter == "\t" else _comma_rows
    width = 0
    for line, row in cells(stream, where, findings):
        width = width or len(row)
        if len(row) == width:
            yield line, row
        else:
            says = f"the row has {len(row)} columns where the first has {width}"
            skip_record(findings, "rows of another width", where, line, says)


def _tab_rows(stream: BinaryIO, where: str, findings: Findings) -> Iterator[tuple[int, list[str]]]:
    for line, text in plain_lines(stream, where, findings):
        if text:
            yield line, text.split("\t")


def _comma_rows(stream: BinaryIO, where: str, findings: Findings) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    line = 0

    def lines() -> Iterator[str]:
        nonlocal line
        for number, text in read_lines(stream, where, findings):
            line = number
            yield text

    reader = csv.reader(lines(), strict=True)
    while True:
        start = line + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Refused(f"{where}:{start}: not valid CSV ({error}); is a quote left open?") from None
        if row:
            yield start, row


def rows_of(path: Path, where: str, findings: Findings) -> Iterator[tuple[int, Row]]:
    """Yield (line, row) of a file: objects of JSON lines, else the cells of a table (tabs, but for .csv)."""
    with opened(path, where) as stream:
        if file_kind(path) not in JSON_LINES:
            yield from table_rows(stream, where, TABLES.get(file_kind(path), "\t"), findings)
            return
        for line, value in json_rows(stream, where, findings):
            if isinstance(value, dict):
                yield line, value
            else:
                says = 'the record is no object such as {"text": "..."}'
                skip_record(findings, "records that are no object", where, line, says)


def first_rows(path: Path, where: str, policy: Policy, n: int = 1000) -> list[tuple[int, Row]]:
    """The first rows of a file, from which its layout is told. Raises Refused where there are none."""
    try:
        rows = list(itertools.islice(rows_of(path, where, Findings(policy)), n))
    except SkippedFile:
        rows = []
    if not rows:
        raise Refused(f"{where}: there is no row in it; name a file that holds some")
    return rows


def text_value(value: Any, field: str, where: str, line: int, findings: Findings) -> str | None:
    """A row's value as text, once NUL and halves of surrogate pairs have been dealt with; None: left out."""
    if not isinstance(value, str):
        says = f"field '{printable(field)}' is {type_name(value)}, not text"
        skip_record(findings, "fields that are not text", where, line, says)
        return None
    nul, half = "\0" in value, not value.isascii() and _HALF_PAIR.search(value) is not None
    if not (nul or half):
        return value
    kind, says = ("NUL bytes", "NUL") if nul else ("bad UTF-8", "half of a surrogate pair")
    says = f"field '{printable(field)}' holds {says}, which text does not hold; remove it"
    findings.fault(kind, where, line, says, mendable=True)
    if findings.policy == "skip":
        findings.n_records += 1
        findings.n_skipped_records += 1
        return None
    value, times = _HALF_PAIR.subn("\ufffd", value.replace("\0", "\ufffd"))
    findings.n_replaced += max(times, 1)
    return value


def type_name(value: object) -> str:
    """What kind of JSON value this is, in words."""
    return "null" if value is None else _TYPE_NAMES.get(type(value), "text")
