"""Parallel text: pairs of a source and a target, from two aligned files, TSV, CSV or JSON lines.

The one idea: line n of one side belongs to line n of the other, so a file that has lost a line teaches wrong
translations without a sign; both are counted to the end, and an empty side is refused with its line. White
space around a side is dropped. Read next: labelled, prepare_examples.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from transom.data.columns import SIDES, Columns, header_names, named_columns
from transom.data.dates import DATES, date_pairs
from transom.data.documents import printable
from transom.data.example_source import ExampleSource
from transom.data.issues import Issues, Policy, as_policy
from transom.data.rows import RECORDS, HubRows, Row, RowFile, first_rows, refuse_twins, text_value
from transom.data.sources import open_rows
from transom.data.tables import TABLES
from transom.data.textfile import opened, plain_lines, skip_record
from transom.errors import Refused
from transom.units import counted

N_DATES, N_HELD_OUT_DATES = 50_000, 1_000


class Pair(NamedTuple):
    """A text and its translation."""

    source: str
    target: str
    where: str
    """file:line"""


PairSource = ExampleSource[Pair]

UNNAMED = ("column 1", "column 2")
"""What they are called where nothing names them."""

_LANGUAGES = frozenset(
    re.findall(
        r"\S+",
        "ar bg bn ca cs cy da de el en es et eu fa fi fr ga gl he hi hr hu hy id is it ja ka ko lt lv mk ms "
        "nb nl nn no pl pt ro ru sk sl sq sr sv sw ta te th tr uk ur vi zh english german french spanish "
        "italian portuguese dutch polish czech russian chinese japanese deutsch français español",
    )
)


def open_pairs(
    source: str, target: str | None = None, *, fields: tuple[str, str] | None = None, on_error: str = "error"
) -> PairSource:
    """Open parallel text: two aligned files, one file with both sides, or `dates` (made by rule).

    `fields` names the two sides in a file with several columns or fields, or numbers them from 1. Raises
    Refused where the layout is not clear.
    """
    policy = as_policy(on_error)
    known = _dates()
    if target is None and source in known:
        return known[source]
    fix = "give two aligned files, a TSV, a CSV or JSON lines"
    file = open_rows(source, fix)
    if target is not None:
        other = open_rows(target, fix)
        if isinstance(file, HubRows) or isinstance(other, HubRows):
            raise Refused(
                f"{source} and {target}: a data set of the hub has both sides; leave out --data.target"
            )
        read = partial(_aligned, file.path, file.where, other.path, other.where)
        return PairSource(f"{file.where} and {other.where}", read, (file, other), on_error=policy)
    columns = pair_columns(file, fields, policy)
    notes = (f"pairs are read from {columns}", *file.notes())
    return PairSource(
        file.where,
        partial(_one_file, file, columns),
        (file,),
        settings=(columns,),
        on_error=policy,
        notes=notes,
    )


def _dates() -> dict[str, PairSource]:
    """The pairs that are always at hand: dates in words to ISO dates, and those kept for measuring."""

    def made(name: str, n: int, held_out: bool) -> PairSource:
        def read(issues: Issues) -> Iterator[Pair]:
            for number, (text, iso) in enumerate(date_pairs(n, held_out=held_out), start=1):
                issues.n_records += 1
                yield Pair(text, iso, f"{name}:{number}")

        return PairSource(name, read, settings=(n,), tokenizer="chars")

    held_out = made(f"{DATES}:held-out", N_HELD_OUT_DATES, held_out=True)
    return {held_out.name: held_out, DATES: replace(made(DATES, N_DATES, held_out=False), held_out=held_out)}


# One file with both sides


def pair_columns(file: RowFile | HubRows, fields: tuple[str, str] | None, policy: Policy) -> Columns:
    """Which columns or fields of a file are source and target. Raises Refused where that is not clear."""
    kind, where = file.kind, file.where
    if kind not in RECORDS and not any(
        "\t" in text for _, text in itertools.islice(file.lines(Issues(policy)), 1)
    ):
        raise Refused(
            f"{where}: one column of text, where pairs have two sides; name the file of the other side as "
            "--data.target, or give a TSV, a CSV or JSON lines"
        )
    rows = first_rows(file, policy)
    line, first = rows[0]
    if fields is not None:
        return named_columns([row for _, row in rows], fields, where, _are_sides)
    if isinstance(first, dict):
        return _object_sides(first, where, line)
    return _table_sides(first, where, line, has_names=TABLES.get(kind) == ",")


def _object_sides(first: dict[str, object], where: str, line: int) -> Columns:
    inner = first.get("translation")
    if isinstance(inner, dict) and len(inner) == 2:
        one, other = inner
        return Columns((("translation", one), ("translation", other)), (one, other))
    for one, other in SIDES:
        if one in first and other in first:
            return Columns(((one,), (other,)), (one, other))
    if len(first) == 2 and all(_is_language(name) for name in first):
        one, other = first
        return Columns(((one,), (other,)), (one, other))
    raise _unclear(first, where, line)


def _table_sides(first: list[str], where: str, line: int, *, has_names: bool) -> Columns:
    """`has_names`: the first line is a header, as in CSV, even where its names mean nothing to us."""
    names = header_names(first)
    for one, other in SIDES:
        if one in names and other in names:
            refuse_twins(names, (one, other), where)
            return Columns(((names.index(one),), (names.index(other),)), (one, other), header=True)
    if len(first) == 2:
        header = _are_sides(names[0], names[1])
        if header or not has_names:
            labels = (names[0], names[1]) if header else UNNAMED
            return Columns(((0,), (1,)), labels, header)
    raise _unclear(first, where, line)


def _are_sides(one: str, other: str) -> bool:
    """Whether two cells of a first line name the sides: source and target, or two languages."""
    return (one, other) in SIDES or one != other and _is_language(one) and _is_language(other)


def _is_language(name: str) -> bool:
    return re.split(r"[-_]", name.strip().lower())[0] in _LANGUAGES


def _unclear(first: Row, where: str, line: int) -> Refused:
    has = [printable(name)[:40] for name in first]
    n = len(first)
    what = "field" if isinstance(first, dict) else "column"
    numbers = "" if what == "field" else ", to names or to numbers from 1"
    return Refused(
        f"{where}:{line}: which of {n} {what}{'s' * (n != 1)} ({', '.join(has[:8])}) are source and target? "
        f"Set --data.field and --data.target-field{numbers}"
    )


def _one_file(file: RowFile | HubRows, columns: Columns, issues: Issues) -> Iterator[Pair]:
    where = file.where
    for line, source, target in columns.values(file, issues):
        one = text_value(source, columns.names[0], where, line, issues)
        other = text_value(target, columns.names[1], where, line, issues) if one is not None else None
        if one is not None and other is not None:
            yield from _pair(one, other, where, where, line, issues)


# Two aligned files


def _aligned(path: Path, where: str, other: Path, there: str, issues: Issues) -> Iterator[Pair]:
    """Line n of one file with line n of the other; Refused, with both counts, when one has more lines."""
    with opened(path, where) as one_file, opened(other, there) as other_file:
        streams = _Counted(one_file), _Counted(other_file)
        lines = [
            plain_lines(cast(BinaryIO, stream), name, issues)
            for stream, name in zip(streams, (where, there), strict=True)
        ]
        yield from _joined(lines[0], lines[1], where, there, issues)
        for side in lines:
            for _ in side:
                pass
    n, m = (stream.n_lines for stream in streams)
    if n != m:
        raise Refused(
            f"{where} has {counted(n, 'line')} and {there} has {m:,}: aligned files have equally many, line n"
            " of one being the translation of line n of the other; find where a line was lost or added"
        )


def _joined(
    one: Iterator[tuple[int, str]],
    other: Iterator[tuple[int, str]],
    where: str,
    there: str,
    issues: Issues,
) -> Iterator[Pair]:
    """Pairs of equal line numbers; a line that was left out on one side takes its partner with it."""
    with contextlib.suppress(StopIteration):
        line, text = next(one)
        number, translation = next(other)
        while True:
            if line == number:
                yield from _pair(text, translation, where, there, line, issues)
                line, text = next(one)
                number, translation = next(other)
            elif line < number:
                line, text = next(one)
            else:
                number, translation = next(other)


class _Counted:
    """A file that counts the lines it gives."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ended = 0
        self._open = False

    def readline(self, limit: int) -> bytes:
        row = self._file.readline(limit)
        if row:
            self._open = not row.endswith(b"\n")
            self._ended += not self._open
        return row

    @property
    def n_lines(self) -> int:
        return self._ended + self._open


def _pair(source: str, target: str, where: str, there: str, line: int, issues: Issues) -> Iterator[Pair]:
    """The pair of a line, unless both sides are blank; a blank side is a fault."""
    source, target = source.strip(), target.strip()
    if source and target:
        issues.n_records += 1
        yield Pair(source, target, f"{where}:{line}")
    elif source or target:
        side, file = ("target", there) if source else ("source", where)
        says = f"the {side} side is empty while the other is not; fill it in or remove the pair"
        skip_record(issues, "empty sides", file, line, says)
    else:
        issues.n_empty += 1
