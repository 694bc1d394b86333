"""Triples: a text, one that belongs to it, and one that does not though it may seem to (a hard negative).

The one idea: a row with several negatives is as many triples; a step tells every first text from the partners
and the negatives of all its rows. Read next: pairs, formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from transom.data.documents import printable
from transom.data.example_source import ExampleSource
from transom.data.formats import Columns, Found, format_of
from transom.data.issues import Issues, as_policy
from transom.data.rows import HubRows, RowFile, text_value
from transom.data.sources import open_rows
from transom.data.task_guess import rows_there
from transom.data.textfile import skip_record
from transom.errors import Refused

TRIPLES = "triples"
CONTRASTIVE = ("anchor", "positive", "negative", "negatives")
"""The fields of pairs and triples, which `--map FIELD=COLUMN` names."""
FIX = "give a TSV, a CSV, JSON lines or Parquet"


class Triple(NamedTuple):
    """A text, one that belongs to it, and one that does not."""

    source: str
    target: str
    negative: str
    where: str
    """file:line"""


def contrast_columns(source: str, given: Columns) -> Found | None:
    """Which columns of a file are the sides of triples or of contrastive pairs; None where none are named so.

    given: the columns that a person named. Raises Refused where there is nothing to read.
    """
    file = rows_there(source)
    found = None if file is None else format_of(file, given)
    return found if found is not None and found.kind.task == "embed" else None


def open_triples(
    source: str, *, fields: Columns | None = None, on_error: str = "error"
) -> ExampleSource[Triple]:
    """Open triples; `fields` names columns for fields that are called otherwise. Raises Refused."""
    policy, file = as_policy(on_error), open_rows(source, FIX)
    found = format_of(file, fields or {}, policy)
    if found is None or found.kind.name != TRIPLES:
        raise Refused(
            f"{file.where}: no columns are called anchor, positive and negative, as those to learn from are; "
            "name others by --map negative=COLUMN"
        )
    return ExampleSource(
        file.where, partial(_triples, file, found), (file,), sides=("anchor", "positive", "negative"),
        settings=(tuple(found.columns.items()),), on_error=policy, notes=(f"read as {found}", *file.notes()),
        known_by=(0, 1),
    )  # fmt: skip


def _triples(file: RowFile | HubRows, found: Found, issues: Issues) -> Iterator[Triple]:
    rows = file.rows(issues, list(found.columns.values()))
    if found.header is not None:
        next(rows, None)
    for line, row in rows:
        cells = row if isinstance(row, dict) else dict(zip(found.header or (), row, strict=False))
        values = {field: cells.get(column) for field, column in found.columns.items()}
        said = _texts(values, found, file.where, line, issues)
        if said is None:
            continue
        anchor, positive, *negatives = said
        if not all(said) or not negatives:
            says = "one of its texts is empty, or it has no negative; fill it in or remove the row"
            skip_record(issues, "empty sides", file.where, line, says)
            continue
        issues.n_records += 1
        for negative in negatives:
            yield Triple(anchor, positive, negative, f"{file.where}:{line}")


def _texts(values: dict[str, Any], found: Found, where: str, line: int, issues: Issues) -> list[str] | None:
    """The anchor, the positive and the negatives of a row; None where one is no text, which is noted."""
    texts: list[str] = []
    for field in ("anchor", "positive", *found.kind.needs[2:]):
        value = values[field]
        value = value.tolist() if hasattr(value, "tolist") else value
        for one in value if isinstance(value, list) and field == "negatives" else [value]:
            text = text_value(one, printable(found.columns[field]), where, line, issues)
            if text is None:
                return None
            texts.append(text.strip())
    return texts
