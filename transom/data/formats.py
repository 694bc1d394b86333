"""The formats of conversations and preferences: which fields a row has, told from the names of its columns.

The one idea: a format is a line of a table (what it is called, which fields it needs, what it teaches, how a
row of it looks), and whatever columns are called, a person can say which is which field (`--map
FIELD=COLUMN`). Read next: conversations, task_guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transom.data.columns import header_names
from transom.data.documents import printable
from transom.data.issues import Policy
from transom.data.json_rows import json_line, shortened
from transom.data.rows import RECORDS, HubRows, RowFile, first_rows, refuse_twins
from transom.data.tables import table_line
from transom.errors import Refused, nearest

SAID = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]


@dataclass(frozen=True)
class Format:
    """What the rows of a file hold."""

    name: str
    task: Literal["sft", "embed", "preference"]
    """What it teaches; a task that nothing here learns yet is named all the same."""
    needs: tuple[str, ...]
    example: Mapping[str, Any]
    """A row that is right."""
    takes: tuple[str, ...] = ()
    """Fields that it may have besides."""

    @property
    def fields(self) -> tuple[str, ...]:
        return self.needs + self.takes


FORMATS = (
    Format(
        "preference pairs", "preference", ("chosen", "rejected"),
        {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"}, ("prompt", "conversations", "system"),
    ),
    Format("messages", "sft", ("messages",), {"messages": SAID}, ("tools",)),
    Format(
        "ShareGPT", "sft", ("conversations",),
        {"conversations": [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "4"}]},
        ("system", "tools"),
    ),
    Format(
        "triples", "embed", ("anchor", "positive", "negative"),
        {"anchor": "a cat", "positive": "a kitten", "negative": "a car"},
    ),
    Format(
        "triples", "embed", ("anchor", "positive", "negatives"),
        {"anchor": "a cat", "positive": "a kitten", "negatives": ["a car", "a cap"]},
    ),
    Format("contrastive pairs", "embed", ("anchor", "positive"), {"anchor": "a cat", "positive": "a kitten"}),
    Format(
        "Alpaca", "sft", ("instruction", "output"),
        {"instruction": "Add the numbers.", "input": "2 and 2", "output": "4"}, ("input", "system"),
    ),
    Format(
        "prompt and completion", "sft", ("prompt", "completion"),
        {"prompt": "What is 2 + 2?", "completion": "4"}, ("input", "system"),
    ),
)  # fmt: skip
"""The first whose needs are met is what a file is taken for."""

ALSO = {
    "conversations": ("conversation",),
    "prompt": ("question", "query"),
    "completion": ("response", "answer"),
    "output": ("response",),
    "input": ("context",),
    "system": ("system_prompt",),
}
"""Field -> other names that its column goes by."""
ALL_FIELDS = tuple(dict.fromkeys(field for one in FORMATS for field in one.fields))

Columns = Mapping[str, str]
"""Field -> the name of its column."""

ELSEWHERE = {"text": "field", "source": "field", "target": "target_field", "label": "label"}
"""Fields of the other tasks, by the setting of data that names their column."""
MAPPABLE = (*ALL_FIELDS, *ELSEWHERE)


def named_fields(pairs: Sequence[str]) -> dict[str, str]:
    """Field -> column, of texts FIELD=COLUMN. Raises Refused for a field that no format has."""
    fields: dict[str, str] = {}
    for pair in pairs:
        field, _, column = pair.partition("=")
        if not column:
            raise Refused(
                f"--map {printable(pair)}: give a field and its column, such as --map prompt=question"
            )
        if field not in MAPPABLE:
            known = nearest(field, MAPPABLE) or f"; there are {', '.join(MAPPABLE)}"
            raise Refused(f"--map {printable(pair)}: no format has a field '{printable(field)}'{known}")
        fields[field] = column
    return fields


@dataclass(frozen=True)
class Found:
    """The format of a file, told from its first rows."""

    kind: Format
    columns: dict[str, str]
    """Field -> its column."""
    header: list[str] | None
    """The names of a table's columns, which are its first row; None where every row has its names."""
    first: Mapping[str, Any]
    """The first row by the names of its columns."""
    line: int

    def __str__(self) -> str:
        named = ", ".join(
            field if field == column else f"{field} from {printable(column)}"
            for field, column in self.columns.items()
        )
        unread = [printable(name) for name in self.first if name not in self.columns.values()]
        rest = f"; not read: {', '.join(unread[:8])}" if unread else ""
        return f"{self.kind.name}: {named}{rest} (--map FIELD=COLUMN says otherwise)"

    @property
    def shown(self) -> str:
        """The first row, its texts shortened."""
        return as_line({column: self.first.get(column) for column in self.columns.values()})


def format_of(file: RowFile | HubRows, given: Columns, policy: Policy = "skip") -> Found | None:
    """The format of a file, None for none that is known; `given` are the columns that a person named.

    Raises Refused where there is nothing to read.
    """
    if file.kind not in RECORDS:
        return None
    rows = first_rows(file, policy)
    line, first = rows[0]
    found = find_format(list(first), given)
    if found is None:
        return None
    if isinstance(first, dict):
        return Found(*found, None, first, line)
    refuse_twins(header_names(first), map(str.lower, found[1].values()), file.where)
    second = rows[min(1, len(rows) - 1)]
    cells = dict(zip(first, second[1], strict=False))
    return Found(*found, list(first), cells, second[0])


def find_format(names: Sequence[str], given: Columns) -> tuple[Format, dict[str, str]] | None:
    """The format whose fields are among these names of columns, and its columns by field."""
    known = dict(zip(reversed(header_names(names)), reversed(names), strict=True))
    for one in FORMATS:
        columns = {}
        for field in one.fields:
            wanted = [given[field]] if field in given else [field, *ALSO.get(field, ())]
            found = [known[name.lower()] for name in wanted if name.lower() in known]
            if found:
                columns[field] = found[0]
        if all(field in columns for field in one.needs) and given.keys() <= columns.keys():
            return one, columns
    return None


def lacking(names: Sequence[str], given: Columns) -> str:
    """Which columns have to be named besides those that a person named; "" where no format has these."""
    known = [name.strip().lower() for name in names]
    least: tuple[int, str] | None = None
    for one in FORMATS:
        more = [
            field for field in one.needs if field not in given
            and not {field, *ALSO.get(field, ())} & {*known}
        ]  # fmt: skip
        if given.keys() <= {*one.fields} and more and (least is None or len(more) < least[0]):
            maps = " ".join(f"--map {field}=COLUMN" for field in more)
            least = len(more), f"{one.name} takes {' and '.join(more)} besides: add {maps}"
    return least[1] if least else ""


def as_line(row: Mapping[str, Any], table: Sequence[str] | None = None, separator: str = ",") -> str:
    """A row as a line of a file that would be right, its texts shortened; `table`: the names of a header."""
    if table is None:
        return json_line(row)
    short = shortened(row)
    cells = [short.get(name, "") for name in table]
    texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in cells]
    return table_line(texts, separator)
