"""Calls of tools in what a model wrote: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

The spelling of Hermes and Qwen, which their templates ask for. What is not such a call stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

_CALL = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)


def split_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The text without its calls, and the calls as OpenAI has them."""
    calls: list[dict[str, Any]] = []

    def taken(found: re.Match[str]) -> str:
        call = _call(found[1])
        if call is None:
            return found[0]
        calls.append(call)
        return ""

    rest = _CALL.sub(taken, text)
    return rest, calls


def _call(said: str) -> dict[str, Any] | None:
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    function = {"name": found["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
