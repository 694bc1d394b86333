"""JSON as rows, each with its line: one value a line, or the items of one array or object.

The one idea: neither is held whole, so a corpus larger than memory works. Read next: rows.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from transom.data.documents import printable
from transom.data.issues import MAX_RECORD_BYTES, Issues
from transom.data.textfile import head_of, read_lines, read_text, skip_record
from transom.errors import Refused

_START = re.compile(r"\s*[\[{]\s*")
_KEYED = re.compile(r'\s*\{\s*("(?:[^"\\]|\\.)*")\s*:\s*\{')
_SQUAD = re.compile(r'\s*\{\s*(?:"version"\s*:\s*"[^"]*"\s*,\s*)?"data"\s*:\s*\[\s*\{[^{]*"paragraphs"\s*:')
_WRAPPED = re.compile(
    r'\s*\{(?:\s*"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[\w.+-]+)\s*,){0,20}\s*"([^"\\]+)"\s*:\s*\[\s*\{'
)
_COLON = re.compile(r"\s*:\s*")
_BETWEEN_ITEMS = re.compile(r"\s*,?\s*")
_SPARE_COMMA = re.compile(r",\s*(?=[}\]])")
_CLOSINGS = ("}", '"}', "]}", "}]}", '"}]}', "]", "}]", '"}]')
_MENDED_CHARACTERS = 1 << 16
SHOWN_CHARACTERS, LONGEST_LINE = 60, 400
"""Of a text, and of a whole line, that a refusal shows."""


def begins_an_array(path: Path, where: str, *, lines: bool = False) -> bool:
    """Whether a JSON file is one array; any other is read as JSON lines.

    lines: its name says that it holds lines, so one that is whole by itself is a record, but for a list of
    objects.
    """
    head = head_of(path, where).lstrip()
    if not head.startswith(b"[") or not lines:
        return head.startswith(b"[")
    try:
        first = json.loads(head.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return True
    return all(isinstance(one, dict) for one in first) and bool(first)


def begins_keyed(path: Path, where: str) -> bool:
    """Whether a JSON file is one object over many lines, whose values are objects: rows by their keys."""
    head = head_of(path, where).decode("utf-8", "ignore")
    if _KEYED.match(head) is None:
        return False
    try:
        json.loads(head.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return True
    return False


def begins_squad(path: Path, where: str) -> bool:
    """Whether a JSON file is SQuAD's: {"data": [{"paragraphs": [{"context": ..., "qas": [...]}]}]}."""
    return _SQUAD.match(head_of(path, where).decode("utf-8", "ignore")) is not None


def refuse_wrapped(path: Path, where: str) -> None:
    """Raise Refused where a JSON file is one object over many lines with the rows in a list inside of it."""
    head = head_of(path, where).decode("utf-8", "ignore")
    found = _WRAPPED.match(head)
    if found is None:
        return
    try:
        json.loads(head.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        raise Refused(wrapped(where, found[1])) from None


def wrapped(where: str, name: str) -> str:
    """What to say of rows that are a list inside of one object."""
    command = f"jq -c {shlex.quote(f'.[{json.dumps(name)}][]')} {shlex.quote(where)} > rows.jsonl"
    return f"{where}: one object, whose '{printable(name)}' holds the rows; write each on a line: {command}"


def only_object(row: dict[str, Any]) -> str:
    """The one field of a row that holds the rest of it, where no other holds texts or lists; else ""."""
    objects = [name for name, value in row.items() if isinstance(value, dict) and value]
    others = any(isinstance(value, str | list) for value in row.values())
    return objects[0] if len(objects) == 1 and not others else ""


def inside_of(where: str, name: str) -> str:
    """What to say of rows whose fields are an object inside of each."""
    command = f"jq -c {shlex.quote(f'.[{json.dumps(name)}]')} {shlex.quote(where)} > rows.jsonl"
    return f"the fields stand inside of '{printable(name)}'; write them as the row itself: {command}"


def squad_rows(stream: BinaryIO, where: str, issues: Issues) -> Iterator[tuple[int, Any]]:
    """Yield (number, row) of the questions of a SQuAD file that have an answer, with their passage and the
    first answer. Raises Refused.
    """
    try:
        articles = json.loads("".join(read_text(stream, where, issues)))["data"]
        number = 0
        for article in articles:
            for passage in article["paragraphs"]:
                for asked in passage["qas"]:
                    number += 1
                    if answers := asked["answers"]:
                        row = {"question": asked["question"], "context": passage["context"]}
                        yield number, row | {"answer": answers[0]["text"]}
    except (ValueError, RecursionError, KeyError, TypeError, IndexError) as error:
        says = f"no {error}" if isinstance(error, KeyError) else str(error) or "nested too deeply"
        raise Refused(f"{where}: begins like a SQuAD file and is none ({says}); mend it") from None


def json_rows(stream: BinaryIO, where: str, issues: Issues) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of one JSON value a line."""
    for line, text in read_lines(stream, where, issues):
        if not text.strip():
            continue
        try:
            yield line, json.loads(text.rstrip("\r\n"))
        except (ValueError, RecursionError) as error:
            says = f"not a JSON object on one line ({json_fault(error)}){_fix(text, where, issues)}"
            skip_record(issues, "broken JSON", where, line, says)


def _fix(text: str, where: str, issues: Issues) -> str:
    """What to do about a line that is no JSON, where that can be told."""
    if "\r" in text.strip():
        return "; its lines end in CR alone; write LF instead (tr '\\r' '\\n')"
    if text.strip() in ("{", "[", "[{"):
        one_each = f"jq -c . {shlex.quote(where)} > lines.jsonl"
        return f"; if objects go over several lines, write each on one: {one_each}"
    mended = mended_json(text)
    if mended is None or not (mended or issues.meant):
        return ""
    return f"; write {json_line(mended) if issues.meant is None else issues.meant(mended)}"


def mended_json(text: str) -> dict[str, Any] | list[Any] | None:
    """A broken line of JSON as it was meant, where one common slip is all: a comma or a bracket too many or
    too few, single quotes and the words of Python, a second object behind the first. None where it is not.
    """
    text = text.strip().rstrip(",")
    if len(text) > _MENDED_CHARACTERS:
        return None
    tries = [text, _SPARE_COMMA.sub("", text), text.replace("\t", "\\t"), *(text + end for end in _CLOSINGS)]
    for attempt in tries:
        try:
            value = json.loads(attempt)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict | list):
            return value
    for read in (ast.literal_eval, lambda one: json.JSONDecoder().raw_decode(one)[0]):
        try:
            value = read(text)
            json.dumps(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return None


def json_line(value: Any) -> str:
    """A value as a line of JSON for a person to read: its texts, lists and all of it shortened, and whole
    JSON as long as texts can give way.
    """
    lines = (json.dumps(shortened(value, most), ensure_ascii=False) for most in (SHOWN_CHARACTERS, 20, 8))
    line = next((line for line in lines if len(line) <= LONGEST_LINE), "")
    return printable(line or f"{json.dumps(shortened(value, 8), ensure_ascii=False)[:LONGEST_LINE]}…")


def shortened(value: Any, most: int = SHOWN_CHARACTERS) -> Any:
    """A value whose texts and lists are short enough to be shown; of a list its first two and its last."""
    if isinstance(value, str):
        return value if len(value) <= most else value[: most - 1] + "…"
    if isinstance(value, Mapping):
        return {key: shortened(one, most) for key, one in value.items()}
    if not isinstance(value, list):
        return value
    return [shortened(one, most) for one in (value if len(value) < 4 else [*value[:2], value[-1]])]


def json_fault(error: Exception) -> str:
    """What is wrong with a piece of JSON, in words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def array_items(
    stream: BinaryIO, where: str, issues: Issues, *, keyed: bool = False
) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of the items of a JSON array, holding little more than the longest item.

    keyed: of an object, whose keys are left out.
    """
    scan = _keyed_value if keyed else json.JSONDecoder().raw_decode
    what, closing = ("object", "}") if keyed else ("array", "]")
    held, line, begun, ended = "", 1, False, False
    fault: Exception | None = None
    pieces = read_text(stream, where, issues)
    for piece in pieces:
        held, at = held + piece, 0
        while True:
            separators = _BETWEEN_ITEMS.match(held, at) if begun else _START.match(held, at)
            if separators is not None:
                line += separators[0].count("\n")
                at, begun = separators.end(), True
            ended = held.startswith(closing, at)
            if at >= len(held) or ended:
                break
            try:
                value, end = scan(held, at)
            except (ValueError, RecursionError) as error:
                fault = error
                break
            yield line, value
            line += held.count("\n", at, end)
            at = end
        held = held[at:]
        if ended or len(held) > MAX_RECORD_BYTES or isinstance(fault, RecursionError):
            break
    if ended:
        _refuse_more(itertools.chain([held[1:]], pieces), where, line, what)
    else:
        why = f" ({json_fault(fault)})" if fault is not None and held else ""
        says = (
            "no whole JSON value within 8 MB"
            if len(held) > MAX_RECORD_BYTES
            else f"the JSON {what} breaks off here"
        )
        opening = "{" if keyed else "["
        mended = mended_json(opening + held[:_MENDED_CHARACTERS] + closing * (not held.strip()))
        fix = "mend it" if mended is None else f"write {json_line(mended)[1:]}"
        raise Refused(f"{where}:{line}: {says}{why}; {fix}, or write one object a line (.jsonl)")


def _keyed_value(text: str, at: int) -> tuple[Any, int]:
    """The value behind a key and its colon, and where it ends. Raises ValueError where they are not whole."""
    scan = json.JSONDecoder().raw_decode
    _, end = scan(text, at)
    colon = _COLON.match(text, end)
    if colon is None:
        raise json.JSONDecodeError("Expecting ':' delimiter", text, end)
    return scan(text, colon.end())


def _refuse_more(pieces: Iterable[str], where: str, line: int, what: str) -> None:
    """Raise Refused where anything but white space follows the end of an array or object."""
    for piece in pieces:
        rest = piece.lstrip()
        line += piece.count("\n", 0, len(piece) - len(rest))
        if rest:
            fix = f"make one {what} of all, or write one object a line (.jsonl)"
            raise Refused(f"{where}:{line}: the JSON {what} ends before the file does; {fix}")
