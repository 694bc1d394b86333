"""Rows written beside what was answered to them: a table, JSON lines or Parquet, in a stream.

The one idea: what a file can hold is seen from the rows alone, before anything is answered, and then one row
after the other is written; no more than a thousand are held. Read next: lines.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.data.documents import printable
from transom.data.rows import PARQUET, file_kind
from transom.data.tables import TABLES, layout_of
from transom.errors import Refused
from transom.output import writable

WRITTEN = (*TABLES, ".jsonl", PARQUET)
"""Files that answers are written to, by their extension."""
AT_ONCE = 1000
Row = dict[str, Any]
ERROR = "error"
"""The column that says why a row has no answer; there where one has none."""


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


@dataclass(frozen=True)
class RowWriter:
    """Writes rows with their answers into a file of one kind."""

    kind: str
    """The extension that says which."""
    names: tuple[str, ...]
    """The columns of the rows, then those of the answers."""
    schema: Any = None
    """Of the rows, for Parquet."""
    separator: str = ","
    """Of a table."""

    @classmethod
    def of(
        cls, out: Path, rows: Iterable[Row], columns: Iterable[str], path: Path | None = None
    ) -> RowWriter:
        """Look at all rows. columns: of the answers. path: where the rows come from, whose separator and
        types are kept. Raises Refused where an answer has no room, and for what such a file cannot hold.
        """
        kind, names = out.suffix.lower(), dict[str, None]()
        taken, source = {*columns, ERROR}, "" if path is None else file_kind(path)

        def seen() -> Iterator[Row]:
            for row in rows:
                if not names.keys() >= row.keys():
                    names.update(dict.fromkeys(row))
                    if twins := row.keys() & taken:
                        has = f"the rows have a field '{sorted(twins)[0]}' already"
                        raise Refused(f"{has}; rename it, and the answer has room")
                yield row

        schema = _schema(seen(), out, path if source == PARQUET else None) if kind == PARQUET else None
        for _ in seen() if schema is None else ():
            pass
        separator = TABLES.get(kind, "")
        if path is not None and source == kind and separator:
            separator = layout_of(path, kind, str(path)).separator
        return cls(kind, (*names, *columns), schema, separator)

    def write(self, file: Path, rows: Iterable[Row], *, errors: bool = False) -> None:
        """Write rows, each with its answer's fields, or with `error` where there may be `errors`."""
        names = (*self.names, ERROR) if errors else self.names
        if self.kind == PARQUET:
            self._parquet(file, rows, names)
        elif self.kind in TABLES:
            with open(file, "w", encoding="utf-8", errors="replace", newline="") as stream:
                table = csv.writer(stream, delimiter=self.separator, lineterminator="\n")
                table.writerow(names)
                table.writerows([_cell(row.get(name, "")) for name in names] for row in rows)
        else:
            with open(file, "wb") as stream:
                stream.writelines(map(_json_line, rows))

    def _parquet(self, file: Path, rows: Iterable[Row], names: Iterable[str]) -> None:
        import pyarrow as arrow
        from pyarrow import parquet

        types = {"embedding": arrow.list_(arrow.float32()), "confidence": arrow.float64()}
        own = {*self.schema.names}
        added = [arrow.field(name, types.get(name, arrow.string())) for name in names if name not in own]
        schema = arrow.schema([*self.schema, *added])
        with parquet.ParquetWriter(file, schema) as table:
            for some in _batches(rows):
                table.write_table(arrow.Table.from_pylist(some, schema))


def _schema(rows: Iterable[Row], out: Path, path: Path | None) -> Any:
    """The Parquet schema of rows: that of the Parquet file that they come from, else by their values."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise Refused(f"{out}: Parquet needs pyarrow: pip install 'transom[data]'") from None
    known = arrow.schema([]) if path is None else parquet.read_schema(path).remove_metadata()
    try:
        for some in _batches(rows):
            if path is None:
                found = arrow.Table.from_pylist(some).schema
                known = arrow.unify_schemas([known, found], promote_options="permissive")
    except (arrow.ArrowException, UnicodeEncodeError) as error:
        says = str(error).splitlines()[0]
        raise Refused(
            f"{out}: a column of Parquet has one type ({says}); --out FILE.jsonl holds any"
        ) from None
    return known


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while some := list(itertools.islice(rows, AT_ONCE)):
        yield some


def _json_line(row: Row) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
        return (json.dumps(row, default=str) + "\n").encode()


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
