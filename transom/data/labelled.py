"""Labelled text: a text and its class, from CSV, TSV, JSON lines or fastText lines.

The one idea: which column is the class is told from its name, or from its values (few different ones, and
short); what is not clear is asked for in one line. A label is the text that stands there, so the number 3 is
the label `3`. White space around both is dropped. Read next: pairs, prepare_examples.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from transom.data.columns import (
    LABEL_NAMES,
    TEXT_NAMES,
    Columns,
    Place,
    cell_number,
    ends_in_name,
    field_place,
    header_names,
    named_columns,
    value_at,
)
from transom.data.documents import printable
from transom.data.example_source import ExampleSource
from transom.data.issues import Issues, Policy, as_policy
from transom.data.rows import RECORDS, HubRows, Row, RowFile, first_rows, refuse_twins, text_value
from transom.data.sources import open_rows
from transom.data.stdlib_labels import STDLIB_LABELS, stdlib_labels
from transom.data.textfile import skip_record
from transom.errors import Refused


class Labelled(NamedTuple):
    """A text and its class."""

    text: str
    label: str
    where: str
    """file:line"""


LabelledSource = ExampleSource[Labelled]

SIDES = ("text",)
LONGEST_LABEL = 100
"""Characters; what is longer is a text."""

_PREFIX = "__label__"
_NAME = re.compile(r"\w{1,40}")
_ASIDE = re.compile(r"\(.*?\)|:$|(?<=\bNr)\.$|(?<=\bNo)\.$")
_WORDS = re.compile(r"\w{1,40}( \w{1,40}){0,2}")
_ENOUGH_ROWS = 10
_EXACT = 2**53


def open_labelled(
    source: str, *, text_field: str | None = None, label_field: str | None = None, on_error: str = "error"
) -> LabelledSource:
    """Open labelled text: a CSV, TSV, JSON-lines or fastText file, or `stdlib-labels` (made from Python's
    own library).

    `text_field` and `label_field` name columns or fields, or number the columns of a table without a header
    from 1. Raises Refused where the layout is not clear.
    """
    policy = as_policy(on_error)
    known = _embedded()
    if source in known:
        return known[source]
    file = open_rows(source, "give a CSV, a TSV, JSON lines or fastText lines")
    if is_fasttext(file, policy):
        return LabelledSource(file.where, partial(_fasttext, file), (file,), SIDES, on_error=policy)
    columns = label_columns(file, text_field, label_field, policy)
    notes = [f"text and label are read from {columns}", *file.notes()]
    if not columns.header and _may_be_header(file, columns, policy):
        notes.append("the first line is read as an example; if it names the columns, name them as it does")
    return LabelledSource(
        file.where, partial(_rows, file, columns), (file,), SIDES, (columns,), policy, notes=tuple(notes)
    )


def _embedded() -> dict[str, LabelledSource]:
    """The labelled set that is always at hand, and its part for measuring."""

    def made(name: str, held_out: bool) -> LabelledSource:
        def read(issues: Issues) -> Iterator[Labelled]:
            for text, label, where in stdlib_labels(held_out=held_out):
                issues.n_records += 1
                yield Labelled(text, label, where)

        return LabelledSource(name, read, sides=SIDES, settings=(sys.version,))

    held_out = made(f"{STDLIB_LABELS}:held-out", held_out=True)
    whole = replace(made(STDLIB_LABELS, held_out=False), held_out=held_out)
    return {held_out.name: held_out, STDLIB_LABELS: whole}


# Reading


def _rows(file: RowFile | HubRows, columns: Columns, issues: Issues) -> Iterator[Labelled]:
    where = file.where
    for line, text, label in columns.values(file, issues):
        clean = text_value(text, columns.names[0], where, line, issues)
        if clean is not None and isinstance(label, str):
            label = text_value(label, columns.names[1], where, line, issues)
            clean = clean if label is not None else None
        if clean is not None:
            yield from _example(clean, _label(label), where, line, issues)


def _label(value: Any) -> str | None:
    """A label as text: numbers and truth values as JSON writes them (1.0 is 1, NaN is none), nothing else."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() and abs(value) < _EXACT else value
    return str(value) if isinstance(value, (str, int, float)) else None


def _example(text: str, label: str | None, where: str, line: int, issues: Issues) -> Iterator[Labelled]:
    """The example of a row, where it has both a text and a label."""
    if label is None:
        says = "the label is neither text nor a number; give one class for each text"
        skip_record(issues, "labels that are no label", where, line, says)
    elif not label.strip():
        skip_record(issues, "empty labels", where, line, "the label is empty; name the class of this text")
    elif len(label.strip()) > LONGEST_LABEL:
        says = f"a label of {len(label)} characters (the limit is {LONGEST_LABEL}); is the column right?"
        skip_record(issues, "over-long labels", where, line, says)
    elif not text.strip():
        skip_record(issues, "empty texts", where, line, "the text is empty; fill it in or remove the line")
    else:
        issues.n_records += 1
        yield Labelled(text.strip(), label.strip(), f"{where}:{line}")


def is_fasttext(file: RowFile | HubRows, policy: Policy) -> bool:
    """Tell whether a file's first line that is not blank begins with `__label__`."""
    if file.kind in RECORDS:
        return False
    lines = (text for _, text in file.lines(Issues(policy)))
    return next((text for text in lines if text.strip()), "").startswith(_PREFIX)


def _fasttext(file: RowFile | HubRows, issues: Issues) -> Iterator[Labelled]:
    """Lines such as `__label__sport The match was drawn`."""
    where = file.where
    for line, row in file.lines(issues):
        if not row.strip():
            continue
        head, _, text = row.strip().partition(" ")
        if not head.startswith(_PREFIX):
            says = f"the line does not begin with {_PREFIX}, as the first one does; add its class"
            skip_record(issues, "lines without a label", where, line, says)
        elif text.startswith(_PREFIX):
            says = "the line has more than one label; give one class for each text"
            skip_record(issues, "lines with several labels", where, line, says)
        else:
            yield from _example(text, head.removeprefix(_PREFIX), where, line, issues)


# The layout


def label_columns(
    file: RowFile | HubRows, text_field: str | None, label_field: str | None, policy: Policy
) -> Columns:
    """Which columns or fields of a file hold the text and its class. Raises Refused where it is not clear."""
    rows, where = first_rows(file, policy), file.where
    line, first = rows[0]
    if text_field is not None and label_field is not None:
        cells = [row for _, row in rows]
        return named_columns(
            cells, (text_field, label_field), where,
            lambda text, label: text in TEXT_NAMES or ends_in_name(label, LABEL_NAMES),
        )  # fmt: skip
    if isinstance(first, dict):
        return _object_columns([row for _, row in rows], where, line, text_field, label_field)
    if text_field is None and label_field is None and not _is_header(first):
        return _by_values([row for _, row in rows if isinstance(row, list)], where, line)
    return _header_columns([row for _, row in rows], where, line, text_field, label_field)


def _header_columns(
    rows: list[Row], where: str, line: int, text_field: str | None, label_field: str | None
) -> Columns:
    """The columns of a table whose first line names them; one may have been named by the person."""
    first: Any = rows[0]
    names = header_names(first)
    text = cell_number(first, text_field, where) if text_field else None
    label = cell_number(first, label_field, where) if label_field else _named(names, LABEL_NAMES, text)
    text = _named(names, TEXT_NAMES, label) if text is None else text
    if text is None or label is None:
        raise _unclear(rows, where, line)
    refuse_twins(names, (names[text], names[label]), where)
    return Columns(((text,), (label,)), (names[text], names[label]), header=True)


def _object_columns(
    rows: list[Row], where: str, line: int, text_field: str | None, label_field: str | None
) -> Columns:
    first: Any = rows[0]
    names = list(first)
    places: list[Place] = []
    for name, known, other in (
        (text_field, TEXT_NAMES, label_field),
        (label_field, LABEL_NAMES, text_field),
    ):
        taken = names.index(other) if other in names else None
        found = _named(header_names(names), known, taken) if name is None else None
        if name is None and found is None:
            raise _unclear(rows, where, line)
        places.append(field_place(first, name, where) if name is not None else (names[found or 0],))
    return Columns((places[0], places[1]), (str(places[0][-1]), str(places[1][-1])))


def _named(names: Sequence[str], known: tuple[str, ...], taken: int | None) -> int | None:
    """The column that one of `known` names, whole or as its last word; else the only one left."""
    free = [at for at in range(len(names)) if at != taken]
    for name in known:
        for at in free:
            if names[at] == name:
                return at
    ending = [at for at in free if ends_in_name(names[at], known)]
    if len(ending) == 1:
        return ending[0]
    return free[0] if taken is not None and len(free) == 1 else None


def _is_header(first: list[str]) -> bool:
    """Whether the cells are names, one of them a label's; names of several words need a text's too."""
    names = header_names(first)
    label = _named(names, LABEL_NAMES, None)
    if label is None or len(first) < 2:
        return False
    if all(_NAME.fullmatch(name) for name in names):
        return True
    text = _named(names, TEXT_NAMES, label)
    named = text is not None and ends_in_name(names[text], TEXT_NAMES)
    return named and all(_WORDS.fullmatch(name) for name in names)


def _by_values(rows: Sequence[list[str]], where: str, line: int) -> Columns:
    """The columns of a table without a header: the label is the one with few different, short values."""
    if len(rows[0]) != 2:
        raise _unclear(rows, where, line)
    few = [looks_like_labels([row[at] for row in rows]) for at in (0, 1)]
    if few[0] == few[1]:
        raise _unclear(rows, where, line)
    label = few.index(True)
    values = [row[label] for row in rows]
    if len(rows) >= _ENOUGH_ROWS and values.count(values[0]) == 1:
        raise _unclear(rows, where, line)  # a header with names that we do not know
    names = ("column 1", "column 2")
    return Columns(((1 - label,), (label,)), (names[1 - label], names[label]))


def _may_be_header(file: RowFile | HubRows, columns: Columns, policy: Policy) -> bool:
    """Tell whether the label of a table's first row is met in none of many others, which look like labels."""
    rows = [row for _, row in first_rows(file, policy)]
    values = [value_at(row, columns.places[1]) for row in rows if isinstance(row, list)]
    return len(values) >= _ENOUGH_ROWS and values.count(values[0]) == 1 and looks_like_labels(values[1:])


def looks_like_labels(values: Sequence[object]) -> bool:
    """Whether these values of many rows are classes: short, and each but few of them met again."""
    texts = [label.strip() for label in map(_label, values) if label is not None]
    if len(texts) < len(values):
        return False
    return max(map(len, texts), default=0) <= LONGEST_LABEL and len(set(texts)) <= max(2, len(texts) // 2)


def proposed_fields(rows: Sequence[Row]) -> str:
    """The options that name the text and its label in these first rows: the longest column, and the only one
    that looks like labels; "" where that tells nothing, or of fewer rows than say what a column holds.
    """
    if len(rows) < _ENOUGH_ROWS:
        return ""
    columns = text_columns(rows)
    few = [name for name, values in columns.items() if looks_like_labels(values)]
    words = [name for name in few if all(map(_has_letter, columns[name]))]
    labels = words if len(few) > 1 else few  # a date or a number beside it is no class
    texts = sorted(columns.keys() - set(few), key=lambda name: -sum(map(len, columns[name])))
    if len(labels) != 1 or not texts:
        return ""
    return f"--data.field {shlex.quote(texts[0])} --data.label {shlex.quote(labels[0])}"


def text_columns(rows: Sequence[Row]) -> dict[str, Sequence[str]]:
    """The columns of these rows that hold texts alone, by name; by number where the first row names none."""
    first = rows[0]
    named = isinstance(first, dict) or names_columns(first)
    names = list(map(str, first)) if named else [str(number + 1) for number in range(len(first))]
    below = rows[named and not isinstance(first, dict) :]
    values = [list(row.values()) if isinstance(row, dict) else row for row in below]
    columns = dict(zip(names, zip(*values, strict=False), strict=False))
    return {name: cells for name, cells in columns.items() if all(isinstance(cell, str) for cell in cells)}


def names_columns(first: Sequence[str]) -> bool:
    """Whether the cells of a first row may be names: a few words each, with letters and no full stop."""
    cells = [_ASIDE.sub("", cell).strip() for cell in first]
    return all(_WORDS.fullmatch(cell) and _has_letter(cell) for cell in cells)


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


def _unclear(rows: Sequence[Row], where: str, line: int) -> Refused:
    first = rows[0]
    n, is_object = len(first), isinstance(first, dict)
    has = [printable(name)[:40] for name in first]
    if n == 1 and not is_object:
        return Refused(
            f"{where}:{line}: one column, where a labelled text has two; give a CSV, a TSV or JSON lines "
            f"with a text and a label, or lines that begin with {_PREFIX}"
        )
    what = "fields" if is_object else "columns"
    numbers, such_as = "" if is_object else ", to names or to numbers from 1", proposed_fields(rows)
    if isinstance(first, list) and len(rows) >= _ENOUGH_ROWS and not names_columns(first):
        numbers = ", to numbers from 1, for the file seems to have no header"
        such_as = such_as or f"--data.field 1 --data.label {n}"
    return Refused(
        f"{where}:{line}: which of the {n} {what} ({', '.join(has[:8])}) hold the text and its label? "
        f"Set --data.field and --data.label{numbers}{such_as and ', such as '}{such_as}"
    )
