"""`POST /v1/responses` in its text form: the same conversation under OpenAI's newer interface.

Nothing is stored: a client sends the whole conversation each time. Read next: chat.
"""

from __future__ import annotations

import time
from itertools import count
from typing import Any

from transom.inference.request import Request

from .chat_schema import ResponseBody
from .endpoint import Answer, Call, Frames, frame
from .logprobs import chat_entries
from .prompts import for_chat, plain_tools, schema_of
from .schema import Sampling
from .tool_calls import split_calls
from .writing import Part, all_parts, writing


async def responses(call: Call) -> Answer:
    """The response, whole or as a stream of events."""
    requests = await call.state.text_work(_requests, call)
    if call.asked.stream:
        return _stream(call, requests)
    parts = await all_parts(call, requests)
    return _response(call, _output(call, parts[0]), parts[0])


def _requests(call: Call) -> list[Request]:
    asked: ResponseBody = call.asked
    format = asked.text.format if asked.text is not None else None
    return for_chat(
        call,
        asked.messages(),
        tools=plain_tools(asked.tools) if asked.tool_choice == "auto" else None,
        sampled=Sampling(temperature=asked.temperature, top_p=asked.top_p),
        max_tokens=asked.max_output_tokens,
        logprobs=(asked.top_logprobs or 0) if asked.wants_logprobs else None,
        schema=schema_of(format, call.state.settings.limits),
    )


def _output(call: Call, part: Part) -> list[dict[str, Any]]:
    """The items of a response: a message, and the tools that it calls."""
    text, calls = split_calls(part.text) if call.asked.tools else (part.text, [])
    items = [_message(call, [_content(call, text, part.tokens)], _status(part))] if text or not calls else []
    return items + [
        {
            "id": f"fc_{one['id'][5:]}", "type": "function_call", "call_id": one["id"], "status": "completed",
            **one["function"],
        }
        for one in calls
    ]  # fmt: skip


def _message(call: Call, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    return {
        "id": f"msg_{call.id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _content(call: Call, text: str, tokens: list[Any]) -> dict[str, Any]:
    entries = chat_entries(tokens) if call.asked.wants_logprobs else []
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": entries}


def _status(part: Part | None) -> str:
    if part is None or part.finish_reason is None:
        return "in_progress"
    return "incomplete" if part.finish_reason == "length" else "completed"


def _response(call: Call, output: list[dict[str, Any]], part: Part | None) -> dict[str, Any]:
    """The response object; `part` is None while nothing is there yet."""
    asked, status = call.asked, _status(part)
    format = asked.text.format if asked.text is not None and asked.text.format is not None else None
    return {
        "id": f"resp_{call.id}",
        "object": "response",
        "created_at": call.created,
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "model": call.served.name,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "text": {"format": {"type": "text"} if format is None else format.model_dump(by_alias=True)},
        "tool_choice": asked.tool_choice,
        "tools": [tool.model_dump() for tool in asked.tools or ()],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "truncation": "disabled",
        "metadata": {},
        "usage": None if part is None else _usage(part),
    }


def _usage(part: Part) -> dict[str, Any]:
    n_prompt = len(part.request.prompt)
    return {
        "input_tokens": n_prompt, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": part.n_made, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": n_prompt + part.n_made,
    }  # fmt: skip


async def _stream(call: Call, requests: list[Request]) -> Frames:
    """The events of a response; with tools its text is told at the end, since it may be a call."""
    numbers = count()

    def event(kind: str, **fields: Any) -> bytes:
        return frame({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    where = {"item_id": f"msg_{call.id}", "output_index": 0, "content_index": 0}
    part: Part | None = None
    async with writing(call, requests) as steps:
        yield event("response.created", response=_response(call, [], None))
        yield event("response.in_progress", response=_response(call, [], None))
        if not call.asked.tools:
            yield event("response.output_item.added", output_index=0, item=_message(call, [], "in_progress"))
            yield event("response.content_part.added", **where, part=_content(call, "", []))
        async for step in steps:
            part = step.part
            if step.piece and not call.asked.tools:
                entries = _content(call, "", step.tokens)["logprobs"]
                yield event("response.output_text.delta", **where, delta=step.piece, logprobs=entries)
    assert part is not None
    output = _output(call, part)
    for place, item in enumerate(output):
        if call.asked.tools:
            yield event(
                "response.output_item.added", output_index=place, item={**item, "status": "in_progress"}
            )
        if item["type"] == "message":
            content = item["content"][0]
            if call.asked.tools:
                yield event("response.content_part.added", **where, part=_content(call, "", []))
                yield event("response.output_text.delta", **where, delta=content["text"], logprobs=[])
            yield event(
                "response.output_text.done", **where, text=content["text"], logprobs=content["logprobs"]
            )
            yield event("response.content_part.done", **where, part=content)
        else:
            called = {"item_id": item["id"], "output_index": place, "name": item["name"]}
            yield event("response.function_call_arguments.delta", **called, delta=item["arguments"])
            yield event("response.function_call_arguments.done", **called, arguments=item["arguments"])
        yield event("response.output_item.done", output_index=place, item=item)
    done = _response(call, output, part)
    yield event(
        "response.incomplete" if done["status"] == "incomplete" else "response.completed", response=done
    )
