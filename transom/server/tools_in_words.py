"""Tools for a model whose chat template writes none: described in the system text, calls and results in text.

The words are those that Hermes and Qwen were taught, which the parser reads back (tool_calls.HERMES). A model
that learned no such thing may still answer in prose; `tool_choice` can demand a call. Read next: prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

Message = Mapping[str, Any]

DESCRIPTION = """# Tools

You may call one or more functions to help with the user's request. These are their signatures:
<tools>
{signatures}
</tools>

For each call, write a JSON object with the function's name and its arguments between these tags:
<tool_call>
{{"name": <name>, "arguments": <arguments as an object>}}
</tool_call>"""

_NAMES_TOOLS = re.compile(r"\btools\b")


def writes_tools(template: str) -> bool:
    """Return whether a chat template says anything of tools."""
    return _NAMES_TOOLS.search(template) is not None


def in_call_order(messages: Sequence[Message]) -> list[Message]:
    """Return the same messages with the results of calls in the order of the calls: most templates, and the
    words here, tell results apart by nothing else.
    """
    ordered: list[Message] = []
    for are_results, run in groupby(messages, key=lambda message: message["role"] == "tool"):
        if are_results:
            calls: Any = ordered[-1].get("tool_calls") or () if ordered else ()
            place: dict[Any, int] = {call.get("id"): n for n, call in enumerate(calls)}
            run = sorted(run, key=lambda result: place.get(result.get("tool_call_id"), len(place)))
        ordered += run
    return ordered


def in_words(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, default_system: str | None
) -> list[Message]:
    """Return the same conversation in system, user and assistant messages; every content is a text already.

    default_system: what the template writes where no system text is given, which must not be lost by giving
    one; None where it takes none, and the tools are described above the first other message.
    """
    said = [_in_words(message) for message in messages]
    if not tools:
        return said
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    description = DESCRIPTION.format(signatures=signatures)
    system = bool(said) and said[0]["role"] in ("system", "developer")
    if system or default_system is None:
        own = said[0]["content"] if said else ""
        parts = [own, description] if system else [description, own]
        role = said[0]["role"] if said else "user"
        return [{"role": role, "content": "\n\n".join(filter(None, parts))}, *said[1:]]
    content = "\n\n".join(filter(None, [default_system, description]))
    return [{"role": "system", "content": content}, *said]


def _in_words(message: Message) -> Message:
    if message["role"] == "tool":
        result = message["content"]
        return {"role": "user", "content": f"<tool_response>\n{result}\n</tool_response>"}
    if message.get("tool_calls"):
        calls = [
            f"<tool_call>\n{json.dumps(_called(call), ensure_ascii=False)}\n</tool_call>"
            for call in message["tool_calls"]
        ]
        content = "\n".join(filter(None, [message["content"], *calls]))
        return {"role": "assistant", "content": content}
    return message


def _called(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        with suppress(ValueError):  # what is no JSON goes on as what it is: a text
            arguments = json.loads(arguments or "{}")
    return {"name": function["name"], "arguments": arguments}
