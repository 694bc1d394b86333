"""Conversations to learn answers from: messages, ShareGPT, Alpaca, prompt and completion, whatever the file.

The one idea: every format becomes the messages of the OpenAI API, and a row that cannot is refused with its
line, the key and how the line would be right. Blank lines before a text and white space behind it are
dropped. Conversations that open alike are held out together. Read next: formats, answer_rows,
prepare_examples.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

from transom.data.answer_rows import Talk
from transom.data.columns import MISSING
from transom.data.documents import printable
from transom.data.example_source import ExampleSource
from transom.data.formats import FORMATS, Columns, Format, Found, as_line, find_format, format_of
from transom.data.issues import Issues, as_policy
from transom.data.json_rows import inside_of, only_object
from transom.data.messages import ROLES, checked_messages, is_text_part, kind_of_part
from transom.data.rows import JSON, HubRows, Row, RowFile, first_rows, text_value, type_name
from transom.data.sources import open_rows
from transom.data.tables import TABLES, layout_of
from transom.data.textfile import skip_record
from transom.errors import Refused, nearest

Message = dict[str, Any]
Clean = Callable[..., str | None]
"""A text as it is kept, given its name; None for one that is not."""
Place = Callable[[str, int], str]
"""The name of the key that a message stands in, by its role and number."""


class Conversation(NamedTuple):
    """Messages, of which the assistant's are learned."""

    talk: str
    """{"messages": [...], "tools": [...]} as JSON."""
    opening: str
    """What is said before the first answer, as it is compared; the system text aside."""
    where: str
    """file:line"""


ConversationSource = ExampleSource[Conversation]

ROLE_OF = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "bot", "chatgpt", "model", "ai"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response"), "tool"),
    "function_call": "call",
}
"""What roles are called elsewhere; a `call` is a message of the assistant whose text is a call as JSON."""
ROLE, CONTENT = ("role", "from"), ("content", "value")
KEPT = ("name", "tool_call_id", "reasoning_content", "tool_calls", "weight")
"""Keys of a message that are kept besides its role and content; any others are not learned."""


def open_conversations(
    source: str, *, fields: Columns | None = None, on_error: str = "error"
) -> ConversationSource:
    """Open conversations: JSON lines, an array, CSV, TSV, Parquet, standard input or a data set of the hub.

    `fields` names columns for fields that are called otherwise. Raises Refused where none are found.
    """
    return opened(source, "sft", ConversationReader, ("conversation",), talks_of, fields or {}, on_error)


def opened(
    source: str,
    task: str,
    reader: type[ConversationReader],
    sides: tuple[str, ...],
    talks: Callable[[Conversation], tuple[Talk, ...]],
    fields: Columns,
    on_error: str,
) -> ConversationSource:
    """Open rows in a format that teaches a task. Raises Refused where they are in none."""
    policy = as_policy(on_error)
    file = open_rows(source, "give JSON lines, a JSON array, CSV or Parquet with conversations")
    try:
        first_rows(file, "skip")
        found = format_of(file, fields)  # a broken row is met again where it is known what it should hold
    except Refused:
        found = format_of(file, fields, policy)
    if found is None or found.kind.task != task:
        line, first = first_rows(file, policy)[0]
        if isinstance(first, dict) and (name := only_object(first)):
            raise Refused(f"{file.where}:{line}: {inside_of(file.where, name)}")
        raise Refused(f"{file.where}:{line}: {_unknown(first, fields, task)}")
    _refuse_unwanted(file, found)
    return ConversationSource(
        file.where, reader(file, found.kind, found.columns, found.header), (file,), sides,
        (found.kind.name, found.columns), policy, notes=(str(found), *file.notes()), known_by=(1,),
        talks=talks,
    )  # fmt: skip


JUDGED = ("label", "kto_tag")
"""Columns that say whether an answer is wanted (KTO)."""


def _refuse_unwanted(file: RowFile | HubRows, found: Found) -> None:
    """Raise Refused where a column says that some answers are not wanted: all of them would be learned."""
    for name, value in found.first.items():
        if name.lower() in JUDGED and str(value).lower() in ("true", "false"):
            kept = f": jq -c 'select(.{name}) | del(.{name})' {shlex.quote(file.where)} > wanted.jsonl"
            raise Refused(
                f"{file.where}:{found.line}: '{name}' says which answers are wanted (KTO), which nothing "
                "here learns, and the others would be learned too; keep the rows where it is true, without "
                f"this column{kept if file.kind in JSON[:2] else ''}, or give pairs of chosen and rejected"
            )


def talks_of(example: Conversation) -> tuple[Talk, ...]:
    """The conversation as the template takes it."""
    said = json.loads(example.talk)
    return (Talk(said["messages"], said.get("tools")),)


WHAT = {
    "sft": ("conversation", "--map prompt=COLUMN --map completion=COLUMN"),
    "preference": ("preference pair", "--map prompt=COLUMN --map chosen=COLUMN --map rejected=COLUMN"),
}
"""Task -> what a row holds, and how its columns are named."""


def _unknown(first: Row, given: Columns, task: str) -> str:
    """What to say of rows that hold nothing for a task."""
    has = [printable(name)[:40] for name in first]
    missing = [column for column in given.values() if column.lower() not in map(str.lower, map(str, first))]
    if missing:
        known = nearest(missing[0], has) or f"; it has {', '.join(has[:12])}"
        return f"no column is named '{printable(missing[0])}' (--map){known}"
    formats = "; ".join(" and ".join(one.needs) for one in FORMATS if one.task == task)
    line = as_line(next(one.example for one in FORMATS if one.task == task))
    what, maps = WHAT[task]
    return (
        f"no {what} in the columns {', '.join(has[:8])}: it takes {formats}; name them by {maps}, or write "
        f"lines such as {line}"
    )


MENDINGS = 64
"""Faults of one row that are put right to show it as it would be taken."""


def _as_it_is(text: Any, _place: str) -> str:
    """A text of a row that is shown, not kept."""
    return str(text)


class Fault(Exception):
    """What is wrong with a row: the kind, in words, and the row as it would be right."""

    def __init__(self, kind: str, says: str, mended: Mapping[str, Any]) -> None:
        self.kind, self.says, self.mended = kind, says, mended


@dataclass(frozen=True)
class ConversationReader:
    """Reads all conversations of a file once."""

    file: RowFile | HubRows
    kind: Format
    columns: Columns
    header: list[str] | None

    def __call__(self, issues: Issues) -> Iterator[Conversation]:
        where = self.file.where
        issues.meant = self.meant
        rows = self.file.rows(issues, list(self.columns.values()))
        if self.header is not None:
            next(rows, None)
        for number, (line, row) in enumerate(rows, start=1):
            named = row if isinstance(row, dict) else dict(zip(self.header or (), row, strict=True))
            values = self._values(named)
            try:
                talk, clean = self.talk(values, partial(text_value, where=where, line=line, issues=issues))
            except Fault as fault:
                item = f"item {number}: " if self.file.kind == ".json" else ""  # many may share a line
                says, meant = self._meant(named, fault)
                skip_record(issues, fault.kind, where, line, f"{item}{says}; write {self._line(meant)}")
                continue
            if clean:
                issues.n_records += 1
                yield Conversation(json.dumps(talk, ensure_ascii=False), opening_of(talk), f"{where}:{line}")

    def _values(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a row, of its values by column."""
        return {field: named[column] for field, column in self.columns.items() if column in named}

    def _meant(self, named: Mapping[str, Any], fault: Fault) -> tuple[str, Mapping[str, Any]]:
        """What is wrong with a row, and the row as it was meant: with a column that is misspelt, in another
        format of this task, or as the fault says.
        """
        lost = [column for field, column in self.columns.items() if field in self.kind.needs]
        unknown = [name for name in named if name not in self.columns.values()]
        for column in (column for column in lost if column not in named):
            if close := nearest(column, unknown):
                name = close.partition("'")[2].partition("'")[0]
                mended = {column: named[name], **{key: one for key, one in named.items() if key != name}}
                return f"{fault.says}{close}", self.right(self._values(mended))
        other = find_format(list(named), {}) if not any(column in named for column in lost) else None
        if other is not None and other[0].task == self.kind.task == "sft":
            reader = ConversationReader(self.file, *other, None)
            with contextlib.suppress(Fault):
                row = self.written(reader.talk(reader._values(named), _as_it_is)[0]["messages"])
                return f"{fault.says}, for the row holds {other[0].name}", self.right(row)
        return fault.says, self.right(fault.mended)

    def written(self, messages: list[Message]) -> dict[str, Any]:
        """Messages as a row of this format. Raises Fault where that has no room for all of them."""
        field = self.kind.needs[0]
        if field == "messages":
            return {field: messages}
        if field == "conversations":
            names = {"user": "human", "assistant": "gpt"}
            said = [{"from": names.get(m["role"], m["role"]), "value": m["content"]} for m in messages]
            return {field: said}
        texts = {one["role"]: one["content"] for one in messages}
        if len(texts) < len(messages) or not {"user", "assistant"} <= texts.keys() <= {*ROLES[:4]}:
            raise Fault("messages that are none", "it has more messages than two", self.kind.example)
        sides = dict(zip(self.kind.needs, (texts["user"], texts["assistant"]), strict=True))
        return {**sides, **({"system": texts["system"]} if "system" in texts else {})}

    def meant(self, value: Any) -> str:
        """A record as a line that is right: one that was broken, or was no object at all."""
        row = self._values(value) if isinstance(value, dict) else self.kind.example
        return self._line(self.right(row))

    def right(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row, mended until it can be learned from; the format's example where that leads nowhere."""
        for _ in range(MENDINGS):
            try:
                self.talk(copy.deepcopy(dict(values)), _as_it_is)
                return values
            except Fault as fault:
                values = fault.mended
        return self.kind.example

    def _line(self, mended: Mapping[str, Any]) -> str:
        """A row as a line of this file would have it."""
        row = {self.columns.get(field, field): value for field, value in mended.items()}
        return as_line(row, self.header, self._separator)

    @cached_property
    def _separator(self) -> str:
        """What stands between the cells of a table."""
        file = self.file
        if isinstance(file, RowFile) and file.kind in TABLES:
            return layout_of(file.path, file.kind, file.where).separator
        return "\t"

    def talk(self, values: dict[str, Any], clean: Clean) -> tuple[dict[str, Any], bool]:
        """The conversation of a row, and whether its texts may be kept. Raises Fault."""
        self.refuse_missing(values)
        field = self.kind.needs[0]
        if field in ("messages", "conversations"):
            items = json_of(values[field], self.columns[field], self.kind.example)
            messages = messages_of(items, self.columns[field], field, self.kind.example)
            _refuse_answerless(messages, items, self.columns[field], field)
        else:
            messages = self._asked_and_answered(values)
        messages, ok = self.cleaned(with_system(messages, values), self._place, clean)
        talk: dict[str, Any] = {"messages": messages}
        if values.get("tools"):
            tools = json_of(values["tools"], self.columns["tools"], {**self.kind.example, "tools": []})
            talk["tools"] = tools
        return talk, ok

    def refuse_missing(self, values: Mapping[str, Any]) -> None:
        """Raise Fault for a row without what it needs."""
        for field in self.kind.needs:
            value = values.get(field, MISSING)
            if value in (MISSING, None, "", []):
                says = "is missing" if value is MISSING else "is null" if value is None else "is empty"
                mended = {**values, field: self.kind.example[field]}
                raise Fault("records without the field", f"'{self.columns[field]}' {says}", mended)

    def cleaned(self, messages: list[Message], place: Place, clean: Clean) -> tuple[list[Message], bool]:
        """Messages as templates take them, texts trimmed, and whether these may be kept. Raises Fault."""
        ok = True
        for number, message in enumerate(messages):
            text = message["content"]
            if isinstance(text, str):
                kept = clean(text, place(message["role"], number))
                ok, message["content"] = ok and kept is not None, trimmed(kept or "")
        try:
            checked = _checked(messages)
        except Refused as refused:
            raise Fault("messages that are none", str(refused), self.kind.example) from None
        for number, one in enumerate(checked):  # a list of parts may hold no text
            spoken = (
                one["content"].strip() or one.get("tool_calls") or one["role"] not in ("user", "assistant")
            )
            if ok and not spoken:
                says = f"{place(one['role'], number)} holds no text"
                raise Fault("empty messages", says, self.kind.example)
        return checked, ok

    def _place(self, role: str, number: int) -> str:
        """The name of the key that a message stands in."""
        asked, *answered = self.kind.needs
        if not answered:
            return f"{self.columns[asked]}[{number}].content"
        return self.columns[{"user": asked, "assistant": answered[0]}.get(role, "system")]

    def _asked_and_answered(self, values: dict[str, Any]) -> list[Message]:
        """A question and its answer as messages. Raises Fault."""
        asked, answered = self.kind.needs
        for field in (asked, answered, "input"):
            value = values.get(field)
            if field == "input" and isinstance(value, list) and all(isinstance(one, str) for one in value):
                value = values[field] = "\n\n".join(value)  # passages to answer from
            if not isinstance(value, str) and not (value is None and field == "input"):
                says = f"'{self.columns[field]}' is {type_name(value)}, not text"
                raise Fault("fields that are not text", says, {**values, field: _as_text(value)})
            if value is not None and not value.strip() and field != "input":
                says = f"'{self.columns[field]}' holds nothing but white space"
                raise Fault("empty fields", says, {**values, field: self.kind.example[field]})
        more = (values.get("input") or "").strip("\n")
        question = f"{values[asked].rstrip()}\n\n{more}" if more.strip() else values[asked]
        return [{"role": "user", "content": question}, {"role": "assistant", "content": values[answered]}]


def trimmed(text: str) -> str:
    """A text without blank lines before it and white space behind it; the first line keeps its indent."""
    return text.rstrip().lstrip("\r\n")


def opening_of(talk: Mapping[str, Any]) -> str:
    """What is said before the first answer, case and white space aside."""
    said = []
    for message in talk["messages"]:
        if message["role"] == "assistant":
            break
        if message["role"] != "system":
            said.append(str(message["content"]))
    return " ".join("\n".join(said).casefold().split())


def with_system(messages: list[Message], values: Mapping[str, Any]) -> list[Message]:
    """Messages that begin with the system text of a row, where it has one."""
    system = values.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages


def json_of(value: Any, name: str, example: Mapping[str, Any]) -> list[Any]:
    """A list, which may be written as JSON in a text, as tables have it. Raises Fault."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Fault("lists that are none", f"'{name}' is text that is no JSON list", example) from None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list):
        raise Fault("lists that are none", f"'{name}' is {type_name(value)}, not a list", example)
    return value


def _refuse_pictures(parts: list[Any], where: str, mended: Callable[[Any], dict[str, Any]]) -> None:
    """Raise Fault where a list of parts holds another kind than text; mended: the row with other parts."""
    other = next((at for at, part in enumerate(parts) if not is_text_part(part)), None)
    if other is not None:
        says = f"{where}[{other}] is of type {kind_of_part(parts[other])}; parts of type 'text' are read"
        raise Fault("parts that are not text", says, mended([*filter(is_text_part, parts)] or "..."))


def messages_of(items: list[Any], name: str, field: str, example: Mapping[str, Any]) -> list[Message]:
    """Messages with the roles of the OpenAI API, from items of any dialect. Raises Fault."""
    messages: list[Message] = []
    for number, item in enumerate(items):
        where = f"{name}[{number}]"
        if not isinstance(item, dict):
            raise Fault("messages that are none", f"{where} is {type_name(item)}, not an object", example)
        role_key = next((key for key in ROLE if key in item), None)
        text_key = next((key for key in CONTENT if key in item), None)

        def mended(key: str, value: Any, number: int = number, item: dict[str, Any] = item) -> dict[str, Any]:
            """The row with one key of this message put right."""
            right = ({key: value} if key in ROLE else {}) | item | {key: value}
            return {field: [*items[:number], right, *items[number + 1 :]]}

        usual = (ROLE[1], CONTENT[1]) if field == "conversations" else (ROLE[0], CONTENT[0])
        turn = ("user", "assistant")[number % 2]
        if role_key is None:
            raise Fault("messages without a role", f"{where} has no '{usual[0]}'", mended(usual[0], turn))
        role = ROLE_OF.get(str(item[role_key]).lower())
        if role is None:
            close = nearest(str(item[role_key]), ROLE_OF) or f"; it is one of {', '.join(ROLES)}"
            says = f"{where}.{role_key} is {printable(repr(item[role_key])[:40])}{close}"
            meant = close.partition("'")[2].partition("'")[0] or turn
            raise Fault("unknown roles", says, mended(role_key, meant))
        calls = item.get("tool_calls")
        if text_key is None and not calls:
            says = f"{where} has no '{usual[1]}'"
            raise Fault("messages without content", says, mended(usual[1], "..."))
        text = item.get(text_key) if text_key else None
        if isinstance(text, list):
            _refuse_pictures(text, f"{where}.{text_key}", partial(mended, str(text_key)))
        elif text is None and calls:
            pass
        elif not isinstance(text, str):
            says = f"{where}.{text_key} is {type_name(text)}, not text"
            raise Fault("contents that are not text", says, mended(str(text_key), _as_text(text)))
        elif not text.strip() and not calls and role in ("user", "assistant"):
            says = f"{where}.{text_key} is empty"
            raise Fault("empty messages", says, mended(str(text_key), "..."))
        message: Message = {
            "role": role,
            "content": text,
            **{k: item[k] for k in KEPT if item.get(k) is not None},
        }
        if role == "call":
            message = {"role": "assistant", "content": None, "tool_calls": [_call(text, where, example)]}
        if message.get("weight", 1) not in (0, 1):
            raise Fault(
                "weights", f"{where}.weight is {message['weight']!r}; it is 0 or 1", mended("weight", 1)
            )
        messages.append(message)
    return messages


def _refuse_answerless(messages: list[Message], items: list[Any], name: str, field: str) -> None:
    """Raise Fault where there is no answer to learn, or the first one answers nothing."""
    said = [message["role"] for message in messages]
    if "assistant" not in said or not any(m.get("weight", 1) for m in messages if m["role"] == "assistant"):
        says = f"'{name}' has no message of the assistant to learn"
        raise Fault("conversations without an answer", says, {field: [*items, *_added(field)[1:]]})
    if said[0] not in ("system", "user", "developer"):
        says = f"{name}[0] is of the {said[0]}; a conversation begins with a user's message"
        raise Fault("conversations that begin with an answer", says, {field: [*_added(field)[:1], *items]})


def _added(field: str) -> list[dict[str, str]]:
    """A question and an answer as this field has them."""
    example = next(one.example for one in FORMATS if one.needs == (field,))
    return list(example[field])


def _call(text: Any, where: str, example: Mapping[str, Any]) -> dict[str, Any]:
    """A call that is written as JSON. Raises Fault."""
    try:
        call = json.loads(text)
        return {
            "type": "function", "function": {"name": call["name"], "arguments": call.get("arguments") or {}},
        }  # fmt: skip
    except (ValueError, TypeError, KeyError, RecursionError):
        says = f'{where}.value is no call such as {{"name": "add", "arguments": {{}}}}'
        raise Fault("calls that are none", says, example) from None


def _checked(messages: list[Message]) -> list[Message]:
    """Messages as templates take them, each with its weight. Raises Refused."""
    bare = [{k: v for k, v in one.items() if k != "weight"} for one in messages]
    checked = checked_messages(bare, "developer")
    for one, message in zip(checked, messages, strict=True):
        one.pop("thinking", None)
        if message.get("weight", 1) == 0:
            one["weight"] = 0
    return checked


def _as_text(value: Any) -> str:
    return "..." if value is None or isinstance(value, dict | list) else str(value)
