"""JSON as rows, each with its line: one value a line, or the items of one array or object.

The one idea: neither is held whole, so a corpus larger than memory works. Read next: rows.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
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
_COLON = re.compile(r"\s*:\s*")
_BETWEEN_ITEMS = re.compile(r"\s*,?\s*")
_SPARE_COMMA = re.compile(r",\s*(?=[}\]])")
_CLOSINGS = ("}", '"}', "]}", "}]}", '"}]}', "]", "}]", '"}]')
_MENDED_CHARACTERS = 1 << 16
SHOWN_CHARACTERS, LONGEST_LINE = 60, 400
"""Of a text, and of a whole line, that a refusal shows."""


def begins_an_array(path: Path, where: str) -> bool:
    """Whether a JSON file is one array; any other is read as JSON lines."""
    return head_of(path, where).lstrip().startswith(b"[")


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
            mended = mended_json(text)
            fix = "" if mended is None else f"; write {json_line(mended)}"
            says = f"not a JSON object on one line ({json_fault(error)}){fix}"
            skip_record(issues, "broken JSON", where, line, says)


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
    """A value as a line of JSON for a person to read: its texts, lists and all of it shortened."""
    line = json.dumps(shortened(value), ensure_ascii=False)
    return printable(line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "…")


def shortened(value: Any) -> Any:
    """A value whose texts and lists are short enough to be shown."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN_CHARACTERS else value[: SHOWN_CHARACTERS - 1] + "…"
    if isinstance(value, Mapping):
        return {key: shortened(one) for key, one in value.items()}
    return [shortened(one) for one in value[:3]] if isinstance(value, list) else value


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
