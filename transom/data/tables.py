"""Rows of a table, CSV or TSV: what stands between its cells, and how they are quoted.

The one idea: CSV follows RFC 4180 with the separator that is seen, since a spreadsheet writes `;` where a
comma is a decimal point. In TSV a tab is a border and a quote a letter, unless a row makes sense with quoting
only: a cell that holds a tab, a line break or a doubled quote in quotes, or a file of which every cell is
quoted. Blank lines are not rows. Read next: rows.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from transom.data.documents import printable
from transom.data.issues import MAX_RECORD_BYTES, Issues
from transom.data.textfile import head_of, plain_lines, read_lines, skip_record
from transom.errors import Refused
from transom.units import counted

TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
"""Files of tables by extension, and what stands between their cells unless another is seen."""

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_NAMED = re.compile(r"sep=(.)\r?\n?")
"""The first line of a table that a spreadsheet wrote, which names the separator and is no row."""
_QUOTED = re.compile(r'"((?:[^"]|"")*)"', re.DOTALL)
_OPEN = re.compile(r'(?:"(?:[^"]|"")*)?')
_ALL_QUOTED = re.compile(r'(?:"(?:[^"]|"")*"(?:\t|\r?\n|\Z)|\r?\n)+')
_SEEN_BYTES, _SEEN_ROWS = 1 << 16, 200


@dataclass(frozen=True)
class Layout:
    """How a table is written."""

    separator: str
    quoted: bool = True
    """Whether quotes mean what RFC 4180 says; in TSV they mostly are letters."""
    named: bool = False
    """Whether the first line says `sep=;`."""
    unusual: bool = False
    """Whether the extension suggests another separator."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know."""
        name = _SEPARATORS.get(self.separator, repr(self.separator))
        return (f"the cells are separated by {name}",) if self.unusual else ()


def layout_of(path: Path, kind: str, where: str) -> Layout:
    """The layout of a table: what it names, else the separator that divides its first rows evenly."""
    usual = TABLES.get(kind, "\t")
    data = head_of(path, where, _SEEN_BYTES)
    text = data.decode("utf-8", "replace")
    if "\r" in text and "\n" not in text:
        raise Refused(f"{where}: its lines end in CR alone; write LF instead (tr '\\r' '\\n')")
    if usual == "\t":
        whole = _ALL_QUOTED.match(text)
        return Layout(usual, quoted=whole is not None and _OPEN.fullmatch(text, whole.end()) is not None)
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    named = _NAMED.fullmatch(lines[0]) if lines else None
    if named:
        return Layout(named[1], named=True, unusual=named[1] != usual)
    whole = len(data) < _SEEN_BYTES - len(codecs.BOM_UTF8)
    lines = lines if whole or len(lines) < 2 else lines[:-1]
    shares = {separator: _divided(lines, separator, whole) for separator in _SEPARATORS}
    found = max(shares, key=lambda separator: (shares[separator], separator == usual))
    found = found if shares[found] > 0.5 else usual
    return Layout(found, unusual=found != usual)


def separator_of(lines: list[str], *, whole: bool = True) -> str:
    """The separator that makes every one of these lines a row of the same width, two cells or more; or "".

    whole: no row breaks off with the last line.
    """
    return next((one for one in _SEPARATORS if _divided(lines, one, whole) == 1), "")


def _divided(lines: list[str], separator: str, whole: bool) -> float:
    """The share of these lines that a separator makes rows as wide as the first of; 0 where that is one cell.

    Where it is not all of them, the row of another width is refused by its line, in the right separator.
    """
    widths: list[int] = []
    try:
        for row in itertools.islice(csv.reader(lines, delimiter=separator, strict=True), _SEEN_ROWS):
            widths += [len(row)] if row else []
    except csv.Error:
        if whole:
            return 0.0
    return widths.count(widths[0]) / len(widths) if widths and widths[0] > 1 else 0.0


def table_rows(
    stream: BinaryIO, where: str, layout: Layout, issues: Issues
) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of every row of a table; all are as wide as the first, a header like any."""
    rows = _quoted_rows(stream, where, layout, issues) if layout.quoted else _tab_rows(stream, where, issues)
    width = 0
    for line, row in rows:
        width = width or len(row)
        if len(row) == width:
            yield line, row
        else:
            whole = [*row, *[""] * (width - len(row))]  # what is too much belongs to the last cell
            whole[width - 1 :] = [layout.separator.join(whole[width - 1 :])]
            fix = table_line(whole, layout.separator, quoted=layout.quoted)
            says = f"the row has {counted(len(row), 'column')} where the first has {width}; write {fix}"
            skip_record(issues, "rows of another width", where, line, says)


def table_line(cells: Sequence[str], separator: str, *, quoted: bool = True) -> str:
    """Cells as a line of a table, for a person to read."""
    if not quoted:
        return printable(separator.join(cell.replace(separator, " ") for cell in cells))
    written = io.StringIO()
    csv.writer(written, delimiter=separator, lineterminator="").writerow(cells)
    return printable(written.getvalue())


def _quoted_rows(
    stream: BinaryIO, where: str, layout: Layout, issues: Issues
) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    source = read_lines(stream, where, issues)
    line, opening = 0, ""
    if layout.named:
        line, _ = next(source)

    def lines() -> Iterator[str]:
        nonlocal line, opening
        for number, text in source:
            line, opening = number, opening or text
            yield text

    reader = csv.reader(lines(), delimiter=layout.separator, strict=True)
    while True:
        start, opening = line + 1, ""
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = [cell.strip().strip('"') for cell in opening.rstrip("\r\n").split(layout.separator)]
            fix = f"is a quote left open? write {table_line(cells, layout.separator)}"
            raise Refused(f"{where}:{start}: not valid CSV ({error}); {fix}") from None
        if row:
            yield start, row


def _tab_rows(stream: BinaryIO, where: str, issues: Issues) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    source = plain_lines(stream, where, issues)
    ahead: deque[tuple[int, str]] = deque()
    """Lines that were looked at before their turn."""
    width = 0
    while one := ahead.popleft() if ahead else next(source, None):
        line, text = one
        if not text:
            continue
        row = text.split("\t")
        width = width or len(row)
        if '"' in text:
            joined = None
            if len(row) != width or row[-1] and _OPEN.fullmatch(row[-1]):
                joined = _joined(row, width, source, ahead)
            row = joined or [_unquoted(cell) for cell in row]
        yield line, row


def _joined(
    row: list[str], width: int, source: Iterator[tuple[int, str]], ahead: deque[tuple[int, str]]
) -> list[str] | None:
    """The row of a line with quoted tabs or line breaks, and of the lines after it that belong to it.

    None where quoting makes no row of the right width, and where two lines are rows each by itself.
    """
    taken: list[tuple[int, str]] = []

    def lines() -> Iterator[str]:
        yield "\t".join(row) + "\n"
        while one := ahead.popleft() if ahead else next(source, None):
            taken.append(one)
            if len(one[1].split("\t")) == width == len(row) or len(taken) > _SEEN_ROWS:
                return
            yield f"{one[1]}\n"

    try:
        whole = next(csv.reader(lines(), delimiter="\t", strict=True))
    except (csv.Error, StopIteration):
        whole = []
    if len(whole) == width:
        return whole
    ahead.extendleft(reversed(taken))
    return None


def _unquoted(cell: str) -> str:
    """A cell without the quotes that a writer of tables put around it; a quote of the text stays."""
    quoted = _QUOTED.fullmatch(cell)
    if quoted and ('""' in quoted[1] or not quoted[1]):
        return quoted[1].replace('""', '"')
    return cell
