"""Calls of tools in what a model wrote: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

The spelling of Hermes and Qwen, which their templates ask for. What is not such a call stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

_BEGIN, _END = "<tool_call>", "</tool_call>"
_SPACE = re.compile(r"\s*")


def split_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The text without its calls, and the calls as OpenAI has them; in time linear in the text."""
    calls: list[dict[str, Any]] = []
    rest: list[str] = []
    at = 0
    while (begin := text.find(_BEGIN, at)) >= 0 and (end := text.find(_END, begin)) >= 0:
        after = end + len(_END)
        call = _call(text[begin + len(_BEGIN) : end])
        if call is None:
            rest.append(text[at:after])
        else:
            rest.append(text[at:begin].rstrip())
            calls.append(call)
            after = _after_space(text, after)
        at = after
    return "".join([*rest, text[at:]]), calls


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _call(said: str) -> dict[str, Any] | None:
    """One call, or None for what cannot be handed on as JSON: NaN, half of a surrogate pair, an abyss."""
    try:
        found = json.loads(said)
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            return None
        arguments = found.get("arguments", {})
        if not isinstance(arguments, dict):
            return None
        function = {
            "name": found["name"],
            "arguments": json.dumps(arguments, ensure_ascii=False, allow_nan=False),
        }
        "".join(function.values()).encode()
    except (ValueError, RecursionError):
        return None
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
