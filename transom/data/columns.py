"""Which two values of a row are meant: found by their names, by number, or named by the person.

The one idea: the layout of a file is told from its first rows, before anything is learned from it, and what
is not clear is asked for in one line. Read next: pairs, labelled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transom.data.documents import printable
from transom.data.issues import Issues
from transom.data.rows import HubRows, Row, RowFile, refuse_twins
from transom.data.textfile import skip_record
from transom.errors import Refused, nearest

Place = tuple[int | str, ...]
"""Where a value lies in a row: the number of a cell, or the names of nested fields."""

MISSING = object()

SIDES = (("source", "target"), ("src", "tgt"), ("src", "trg"), ("input", "output"))
"""What the two sides of a pair are called in headers and records."""
LABEL_NAMES = ("label", "class", "category", "target", "labels", "sentiment", "topic", "intent", "y")
TEXT_NAMES = (
    "text",
    "sentence",
    "abstract",
    "content",
    "body",
    "review",
    "comment",
    "question",
    "utterance",
    "message",
    "document",
    "description",
    "docstring",
    "x",
)


@dataclass(frozen=True)
class Columns:
    """The places of the two values in every row of a file."""

    places: tuple[Place, Place]
    names: tuple[str, str]
    """What messages call them."""
    header: bool = False
    """Whether the first row names the columns."""

    def __str__(self) -> str:
        named = " (the first line names the columns)" if self.header else ""
        return f"{printable(self.names[0])} and {printable(self.names[1])}{named}"

    def values(self, file: RowFile | HubRows, issues: Issues) -> Iterator[tuple[int, Any, Any]]:
        """Yield (line, one, other) of every row that has both fields; tables have, by their width."""
        rows = file.rows(issues, [str(place[0]) for place in self.places])
        if self.header:
            next(rows, None)
        for line, row in rows:
            one, other = value_at(row, self.places[0]), value_at(row, self.places[1])
            if one is MISSING or other is MISSING:
                name = self.names[0 if one is MISSING else 1]
                fields = list(row) if isinstance(row, dict) else []
                says = f"the record has no field '{printable(name)}'{_has(name, fields)}"
                skip_record(issues, "records without the field", file.where, line, says)
                continue
            yield line, one, other


def value_at(row: Row, place: Place) -> Any:
    """The value at a place of a row, or MISSING."""
    value: Any = row
    for step in place:
        if isinstance(step, int) or isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return MISSING
    return value


def named_columns(
    rows: Sequence[Row], names: tuple[str, str], where: str, is_header: Callable[[str, str], bool]
) -> Columns:
    """The columns that a person named, by name or by number from 1.

    By number too the first line may name the columns: `is_header` knows by its two cells, which then are met
    in no other of these first rows.
    """
    first = rows[0]
    if isinstance(first, dict):
        return Columns((field_place(first, names[0], where), field_place(first, names[1], where)), names)
    if names[0] == names[1]:
        raise Refused(f"{where}: '{printable(names[0])}' is named for both values of a row; name two columns")
    if all(is_number(name) for name in names):
        shown = (f"column {names[0]}", f"column {names[1]}")
        places = _number(names[0], first, where), _number(names[1], first, where)
        one, other = (header_names([row[place] for row in rows]) for place in places)  # type: ignore[index]
        alone = one.count(one[0]) == 1 == other.count(other[0])
        return Columns(((places[0],), (places[1],)), shown, alone and is_header(one[0], other[0]))
    one, other = (cell_number(first, name, where) for name in names)
    return Columns(((one,), (other,)), names, header=True)


def ends_in_name(cell: str, known: Sequence[str]) -> bool:
    """Whether a cell ends in one of these names, as `Review Text` does; a name of one letter is a word."""
    long = tuple(name for name in known if len(name) > 1)
    return cell.endswith(long) or re.split(r"\W|_", cell)[-1] in known


def field_place(first: dict[str, Any], name: str, where: str) -> Place:
    """Where a JSON object has a field, at the top or inside of `translation`. Raises Refused."""
    inner = first.get("translation")
    if name not in first and isinstance(inner, dict) and name in inner:
        return "translation", name
    if name in first:
        return (name,)
    raise Refused(f"{where}:1: the record has no field '{printable(name)}'{_has(name, list(first))}")


def cell_number(first: list[str], name: str, where: str) -> int:
    """Which column the first line of a table names so, counted from 0. Raises Refused."""
    names, wanted = header_names(first), name.strip().lower()
    if wanted in names:
        refuse_twins(names, [wanted], where)
        return names.index(wanted)
    raise Refused(
        f"{where}:1: no column is named '{printable(name)}'{_has(name, first)}; a table without a header "
        "takes column numbers from 1"
    )


def header_names(first: Sequence[str]) -> list[str]:
    """The cells of a header as they are compared."""
    return [cell.strip().lower() for cell in first]


def is_number(name: str) -> bool:
    """Whether a person means a column by its number."""
    return re.fullmatch("[0-9]{1,9}", name) is not None


def _number(name: str, first: list[str], where: str) -> int:
    if not 1 <= int(name) <= len(first):
        raise Refused(f"{where}:1: there is no column {name}; the rows have {len(first)}")
    return int(name) - 1


def _has(name: str, fields: list[str]) -> str:
    shown = [printable(field)[:40] for field in fields]
    return nearest(name, shown) or f"; it has {', '.join(shown[:12]) or 'none'}"
