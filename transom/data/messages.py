"""What a message of a conversation may hold: the messages of the OpenAI API, as chat templates expect them.

The one idea: everything a template gets to see was checked here, is plain JSON, and is content; only the role
is chosen from a list, because templates write roles into their scaffold. Read next: chat_template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transom.data.documents import printable
from transom.errors import Refused, nearest

MAX_MESSAGES, MAX_OBJECTS, MAX_DEPTH = 4096, 128, 32

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_PARTS = ("text", "input_text", "output_text")
"""Kinds of parts of a content that are read."""
_TEXT_FIELDS = ("name", "tool_call_id", "reasoning_content")


def checked_messages(messages: Any, template: str) -> list[dict[str, Any]]:
    """The messages of a conversation for a template. Raises Refused with the place of what is wrong."""
    checked = [_message(message, i, template) for i, message in enumerate(_listed(messages, "messages"))]
    if not checked or len(checked) > MAX_MESSAGES:
        raise Refused(f"messages holds {len(checked)}; a conversation has 1 to {MAX_MESSAGES}")
    return checked


def checked_objects(values: Any, where: str) -> list[dict[str, Any]] | None:
    """Tools, documents or calls: a list of JSON objects, neither too many nor too deep."""
    if values is None:
        return None
    listed = _listed(values, where)
    if len(listed) > MAX_OBJECTS:
        raise Refused(f"{where} holds {len(listed)}; the limit is {MAX_OBJECTS}")
    for i, value in enumerate(listed):
        if not isinstance(value, dict) or _deep(value):
            raise Refused(f"{where}[{i}] must be an object of at most {MAX_DEPTH} levels")
    return listed


def _message(message: Any, place: int, template: str) -> dict[str, Any]:
    """One message of the OpenAI API as templates expect it. Raises Refused with its place."""
    where = f"messages[{place}]"
    if not isinstance(message, Mapping):
        raise Refused(f"{where} is a {type(message).__name__}; it must be an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        says = printable(repr(role)[:40])
        raise Refused(
            f"{where}.role is {says}{nearest(str(role)[:40], ROLES)}; it is one of {', '.join(ROLES)}"
        )
    if role == "developer" and "developer" not in template:
        role = "system"  # its newer name, which this template does not know
    known = ("role", "content", "tool_calls", "thinking", *_TEXT_FIELDS)
    for field, value in message.items():
        if field not in known and value:  # the official client sends empty ones back
            raise Refused(
                f"{where} has a field '{printable(str(field)[:40])}'{nearest(str(field)[:40], known)}"
            )
    checked: dict[str, Any] = {"role": role, "content": _text(message.get("content"), where)}
    for field in _TEXT_FIELDS:
        value = message.get(field, message.get("thinking") if field == "reasoning_content" else None)
        if value is not None:
            checked[field] = _string(value, f"{where}.{field}")
    if "reasoning_content" in checked:
        checked["thinking"] = checked["reasoning_content"]  # what some templates call it
    if message.get("tool_calls"):
        calls = checked_objects(message["tool_calls"], f"{where}.tool_calls") or []
        checked["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return checked


def _text(content: Any, where: str) -> str:
    """A content as one text: its text parts line by line, nothing where there is none."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for i, part in enumerate(_listed(content, f"{where}.content")):
        if not is_text_part(part):
            says = kind_of_part(part)
            raise Refused(
                f"{where}.content[{i}] is of type {says}; this model reads parts of type 'text' only"
            )
        texts.append(_string(part.get("text"), f"{where}.content[{i}].text"))
    return "\n".join(texts)


def is_text_part(part: Any) -> bool:
    """Whether a part of a content is one of text."""
    return isinstance(part, Mapping) and part.get("type") in TEXT_PARTS


def kind_of_part(part: Any) -> str:
    """The type of a part as it is shown."""
    return printable(repr(part.get("type") if isinstance(part, Mapping) else type(part).__name__)[:40])


def _tool_call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A call as templates expect it: arguments as an object, not as the JSON that the API has."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Refused(f"{where}.function must be an object with name and arguments")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise Refused(f"{where}.function.arguments is not JSON") from None
    if not isinstance(arguments, dict) or _deep(arguments):
        raise Refused(f"{where}.function.arguments must be an object of at most {MAX_DEPTH} levels")
    checked: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        checked["id"] = _string(call["id"], f"{where}.id")
    return checked | {"function": {"name": function["name"], "arguments": arguments}}


def _listed(values: Any, where: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise Refused(f"{where} is a {type(values).__name__}; it must be a list")
    return list(values)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Refused(f"{where} is {printable(repr(value)[:40])}; it must be a string")
    return value


def json_levels(value: Any) -> Iterator[list[Any]]:
    """The objects and lists of JSON, level by level, the outermost first; without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    while level:
        yield level
        inner = (part.values() if isinstance(part, dict) else part for part in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]


def _deep(value: Any) -> bool:
    return any(depth > MAX_DEPTH for depth, _ in enumerate(json_levels(value), 1))
