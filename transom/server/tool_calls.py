"""How families of models write calls of tools, and how a call reads once it is whole.

Hermes and Qwen write `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; Mistral `[TOOL_CALLS]` and a
list of such objects, or a name and its arguments; Llama 3 an object with "parameters", bare or behind
`<|python_tag|>`. What is not a whole call stays text. Read next: output_parser.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from dataclasses import dataclass
from typing import Any

Call = dict[str, Any]
"""A call as OpenAI has it: id, type, and function with name and arguments, which are JSON."""


@dataclass(frozen=True)
class CallSyntax:
    """How one family writes calls."""

    opener: str
    closer: str = ""
    """Ends a call; where there is none, what follows the opener is calls to the end of the answer."""
    bare: bool = False
    """Whether an answer that is nothing but such objects is calls too."""
    arguments: str = "arguments"
    """What the object calls them."""
    id_length: int = 24
    """Mistral's templates turn down any length but 9."""


HERMES = CallSyntax("<tool_call>", "</tool_call>")
MISTRAL = CallSyntax("[TOOL_CALLS]", id_length=9)
LLAMA = CallSyntax("<|python_tag|>", bare=True, arguments="parameters")

_BETWEEN = re.compile(r"(?:[\s;,]|\[TOOL_CALLS\])*")
_NAMED = re.compile(r"([\w.-]{1,128})(?:\[CALL_ID\]\w{1,64})?(?:\[ARGS\])?(?=\s?\{)")


def syntax_of(template: str) -> CallSyntax:
    """The syntax that a chat template writes its examples in; that of Hermes where it has none of its own."""
    if "<tool_call>" in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    return LLAMA if "<|python_tag|>" in template or '"parameters": ' in template else HERMES


def calls_in(written: str, syntax: CallSyntax) -> list[Call]:
    """Return the calls that a stretch of text consists of; none where any of it is something else."""
    try:
        found = [_call(name, arguments, syntax) for name, arguments in _read(written)]
    except (
        ValueError,
        RecursionError,
    ):  # no JSON, no text (half of a surrogate pair), or an abyss of brackets
        return []
    return found


def _read(written: str) -> list[tuple[Any, Any]]:
    """Names and arguments, one after the other."""
    decoder, found, at = json.JSONDecoder(parse_constant=_no_number), [], 0
    while (at := _end(_BETWEEN.match(written, at))) < len(written):
        named = _NAMED.match(written, at)
        if named:
            at = named.end() + (written[named.end()] != "{")
        value, at = decoder.raw_decode(written, at)
        if named:
            found.append((named[1], value))
            continue
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                raise ValueError("a call is an object")
            found.append((one.get("name"), one.get("arguments", one.get("parameters", {}))))
    return found


def _end(found: re.Match[str] | None) -> int:
    assert found is not None  # both patterns match the empty text
    return found.end()


def _no_number(said: str) -> None:
    raise ValueError(f"{said} is no JSON")


def _call(name: Any, arguments: Any, syntax: CallSyntax) -> Call:
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("a call has a name, and arguments by name")
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False, allow_nan=False)}
    "".join(function.values()).encode()
    return {"id": _new_id(syntax), "type": "function", "function": function}


def _new_id(syntax: CallSyntax) -> str:
    letters = string.ascii_letters + string.digits
    drawn = "".join(secrets.choice(letters) for _ in range(syntax.id_length))
    return drawn if syntax.id_length == MISTRAL.id_length else f"call_{drawn}"
