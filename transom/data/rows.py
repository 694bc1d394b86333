"""Rows, each with its line: of a file (JSON lines and arrays, CSV and TSV, Parquet), of all files of an
archive, or of a hub data set.

The one idea: whoever wants values (a text field, a pair, a label) reads the same rows, with the same limits
and the same refusals, and need not know where they come from. Blank lines are not rows. Read next: tables,
json_rows, columns.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

from transom.data.archives import ARCHIVES, archive_rows, in_archive
from transom.data.documents import printable
from transom.data.issues import Issues, Policy
from transom.data.json_rows import (
    array_items,
    begins_an_array,
    begins_keyed,
    begins_squad,
    json_rows,
    refuse_wrapped,
    squad_rows,
)
from transom.data.tables import TABLES, layout_of, table_rows
from transom.data.textfile import SkippedFile, opened, plain_lines, skip_record
from transom.errors import Refused, nearest_path

Row = dict[str, Any] | list[str]
"""A JSON object, or the cells of a line of a table."""

JSON = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
RECORDS = (*TABLES, *JSON, PARQUET, *ARCHIVES)
"""Files of rows by extension."""

_FIRST_ROWS = 1000
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_TYPE_NAMES = {
    type(None): "null", str: "text", dict: "an object", list: "a list", int: "a number", float: "a number",
    bool: "true or false", bytes: "bytes",
}  # fmt: skip


def file_kind(path: Path) -> str:
    """The extension that says what is inside: that before .gz, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return suffixes[0] if len(suffixes) == 2 and suffixes[1] == ".gz" else suffixes[-1] if suffixes else ""


def readable_file(path: Path, instead: str) -> str:
    """The printable name of a file. Raises Refused when it is none that can be read; `instead` is the fix."""
    name = printable(path)
    if name == "-" or name.startswith("hf:"):
        raise Refused(f"{name}: standard input and data sets of the hub hold running text only; {instead}")
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name with NUL is a ValueError
        if re.match(r"[a-z]+:/", str(path)):
            raise Refused(
                f"{name}: Transom does not fetch addresses; save the text as a file and name that"
            ) from None
        raise Refused(f"{name}: no such file or folder{nearest_path(path)}") from None
    except OSError as error:
        raise Refused(f"{name}: cannot be read ({error.strerror})") from None
    if stat.S_ISDIR(mode):
        raise Refused(f"{name}: a folder, not a file; {instead}")
    if not stat.S_ISREG(mode):
        hint = "; a pipe can be read once only: write it to a file and name that" if path.is_fifo() else ""
        raise Refused(f"{name}: neither a file nor a folder{hint}")
    if not os.access(path, os.R_OK):
        raise Refused(f"{name}: no permission to read it")
    return name


def rows_of(
    path: Path, where: str, issues: Issues, fields: Sequence[str] = (), within: str = ""
) -> Iterator[tuple[int, Row]]:
    """Yield (line, row) of a file: objects of JSON or Parquet, else a table's cells (tabs, but for .csv).

    `fields` are those that matter, where they are known: of Parquet only these are read. within: of an
    archive, the member or the folder of members that is read.
    """
    kind = file_kind(path)
    if kind == PARQUET:
        yield from _parquet_rows(path, where, issues, fields)
        return
    if kind in ARCHIVES:
        yield from archive_rows(path, where, issues, partial(named_rows, issues=issues), within)
        return
    if kind not in JSON:
        layout = layout_of(path, kind, where)
        with opened(path, where) as stream:
            yield from table_rows(stream, where, layout, issues)
        return
    is_array = begins_an_array(path, where, lines=kind != ".json")
    is_keyed = kind == ".json" and not is_array and begins_keyed(path, where)
    is_squad = kind == ".json" and not is_array and begins_squad(path, where)
    if kind == ".json" and not (is_array or is_keyed or is_squad):
        refuse_wrapped(path, where)
    with opened(path, where) as stream:
        records = partial(array_items, keyed=is_keyed) if is_array or is_keyed else json_rows
        records = squad_rows if is_squad else records
        for line, value in records(stream, where, issues):
            if isinstance(value, dict):
                yield line, value
            else:
                such_as = (
                    ' such as {"text": "..."}' if issues.meant is None else f"; write {issues.meant(value)}"
                )
                says = f"the record is {type_name(value)}, not an object{such_as}"
                skip_record(issues, "records that are no object", where, line, says)


def named_rows(path: Path, where: str, issues: Issues) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file as objects: the first line of a table names its columns."""
    header: list[str] | None = None
    for _, row in rows_of(path, where, issues):
        if isinstance(row, dict):
            yield row
        elif header is None:
            refuse_twins(row, row, where)
            header = row
        else:
            yield dict(zip(header, row, strict=True))


def _parquet_rows(path: Path, where: str, issues: Issues, fields: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of a Parquet file, read a thousand at a time (extra: pyarrow)."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise Refused(f"{where}: Parquet needs pyarrow: pip install 'transom[data]'") from None
    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            refuse_twins(names, fields or names, where)
            # Without fields the first record decides which are meant, so read all.
            columns = list(fields) if fields and set(fields) <= set(names) else None
            number = 1
            for batch in table.iter_batches(1000, columns=columns):
                yield from _batch_rows(batch, number, where, issues)
                number += len(batch)
    except (arrow.ArrowException, OSError) as error:
        raise Refused(f"{where}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _batch_rows(batch: Any, first: int, where: str, issues: Issues) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of a batch of a Parquet file whose first row is number `first`."""
    try:
        yield from enumerate(batch.to_pylist(), start=first)
    except UnicodeDecodeError as error:
        if len(batch) > 1:  # which row it is shows when they are read one by one
            for at in range(len(batch)):
                yield from _batch_rows(batch.slice(at, 1), first + at, where, issues)
            return
        says = f"byte 0x{error.object[error.start]:02x} of a text is not UTF-8; write the file again"
        skip_record(issues, "bad UTF-8", where, first, says)


def refuse_twins(names: Sequence[str], wanted: Iterable[str], where: str) -> None:
    """Raise Refused where two columns have one name that is wanted: nobody knows which is meant."""
    for name in wanted:
        if names.count(name) > 1:
            raise Refused(f"{where}:1: {names.count(name)} columns are named '{printable(name)}'; rename one")


@dataclass(frozen=True)
class RowFile:
    """A file of rows, which can be read again and again."""

    path: Path
    where: str
    """Its printable name."""
    content: str = field(default="", compare=False)
    """SHA-256 of its bytes, where that is known already."""
    within: str = ""
    """Of an archive the member, or the folder of members, that is meant; "" for all."""

    @classmethod
    def named(cls, path: Path, instead: str) -> RowFile:
        """The file of a path, which may lead into an archive. Raises Refused for none that can be read;
        `instead` is the fix.
        """
        file, within = in_archive(path)
        where = readable_file(file, instead)
        return cls(file, f"{where}!{printable(within)}" if within else where, within=within)

    @property
    def kind(self) -> str:
        """The extension that says what is inside."""
        return file_kind(self.path)

    @property
    def state(self) -> tuple[int, int]:
        """Size and time of the last change: while they stay, the content does."""
        state = self.path.stat()
        return state.st_size, state.st_mtime_ns

    def rows(self, issues: Issues, fields: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
        """Yield (line, row), see rows_of."""
        return rows_of(self.path, self.where, issues, fields, self.within)

    def lines(self, issues: Issues) -> Iterator[tuple[int, str]]:
        """Yield (line, text without its line end), blank ones too."""
        with opened(self.path, self.where) as stream:
            yield from plain_lines(stream, self.where, issues)

    def notes(self) -> tuple[str, ...]:
        """What a person should know of how the rows are written."""
        return layout_of(self.path, self.kind, self.where).notes if self.kind in TABLES else ()

    def fingerprint(self) -> str:
        """Hash the bytes of the file: once, while its size and time stay."""
        return f"{self.content or _hashed(self, self.state)}{self.within and '!'}{self.within}"


@dataclass(frozen=True, eq=False)
class HubRows:
    """The rows of a data set of the Hugging Face hub, opened by the library `datasets`."""

    where: str
    """hf:NAME"""
    data: Any
    kind: ClassVar[str] = PARQUET
    """Rows of named values, as of a Parquet file."""
    state: ClassVar[None] = None

    def rows(self, issues: Issues, fields: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
        """Yield (number, row); classes that the data set names are called by their names."""
        features = getattr(self.data, "features", None) or {}
        names = {key: value.names for key, value in features.items() if hasattr(value, "names")}
        for number, row in enumerate(self.data, start=1):
            yield number, {key: _class_name(value, names.get(key)) for key, value in row.items()}

    def lines(self, issues: Issues) -> Iterator[tuple[int, str]]:
        """A data set has no lines."""
        return iter(())

    def notes(self) -> tuple[str, ...]:
        return ()

    def fingerprint(self) -> str:
        """What `datasets` knows the rows by; else a hash of all of them."""
        known = getattr(self.data, "_fingerprint", None)
        return f"{self.where} {known or hashlib.sha256(repr(list(self.data)).encode()).hexdigest()}"


def _class_name(value: Any, names: Sequence[str] | None) -> Any:
    """The name of a class that is given as its number; None where it has none (-1 of unlabelled sets)."""
    if not names or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


@lru_cache(maxsize=16)
def _hashed(file: RowFile, _state: tuple[int, int]) -> str:
    with open(file.path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def first_rows(file: RowFile | HubRows, policy: Policy) -> list[tuple[int, Row]]:
    """The first thousand rows, from which the layout is told. Raises Refused where there are none.

    They are read once, whoever asks: leniently, and again only where that met a fault that `policy` refuses.
    """
    rows, whole = _first(file, file.state)
    if policy != "skip" and not whole:
        rows = _read_first(file, Issues(policy))
    if not rows:
        raise Refused(f"{file.where}: there is no row in it; name a file that holds some")
    return rows


@lru_cache(maxsize=2)
def _first(file: RowFile | HubRows, _state: tuple[int, int] | None) -> tuple[list[tuple[int, Row]], bool]:
    """The first rows, and whether they were read without meeting a fault."""
    issues = Issues("skip")
    return _read_first(file, issues), not issues.faults


def _read_first(file: RowFile | HubRows, issues: Issues) -> list[tuple[int, Row]]:
    try:
        return list(itertools.islice(file.rows(issues), _FIRST_ROWS))
    except SkippedFile:
        return []


def text_value(value: Any, field: str, where: str, line: int, issues: Issues) -> str | None:
    """A row's value as text, once NUL and halves of surrogate pairs have been dealt with; None: left out."""
    if not isinstance(value, str):
        says = f"field '{printable(field)}' is {type_name(value)}, not text"
        skip_record(issues, "fields that are not text", where, line, says)
        return None
    nul, half = "\0" in value, not value.isascii() and _HALF_PAIR.search(value) is not None
    if not (nul or half):
        return value
    kind, says = ("NUL bytes", "NUL") if nul else ("bad UTF-8", "half of a surrogate pair")
    says = f"field '{printable(field)}' holds {says}, which text does not hold; remove it"
    issues.fault(kind, where, line, says, mendable=True)
    if issues.policy == "skip":
        issues.n_records += 1
        issues.n_skipped_records += 1
        return None
    value, times = _HALF_PAIR.subn("\ufffd", value.replace("\0", "\ufffd"))
    issues.n_replaced += max(times, 1)
    return value


def type_name(value: object) -> str:
    """What kind of value this is, in words; that of a Parquet file may be a date."""
    return _TYPE_NAMES.get(type(value), f"a {type(value).__name__}")
