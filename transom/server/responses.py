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
from .output_parser import ParsedOutput, parsed
from .prompts import for_chat, grammar_for, parser_of, plain_tools
from .streaming import Part, all_parts, n_values, stream_steps


async def responses(call: Call) -> Answer:
    """Return the response, whole or as a stream of events."""
    requests = await call.text_work(_requests, call)
    if call.asked.stream:
        return _stream(call, requests)
    parts = await all_parts(call, requests)
    part = parts[0]

    def made() -> dict[str, Any]:
        said = parsed(parser_of(call, part.request), part.text)
        return _response(call, _output(call, said, part), part)

    return await call.whole(n_values(parts), made)


def _requests(call: Call) -> list[Request]:
    asked: ResponseBody = call.asked
    format = asked.text.format if asked.text is not None else None
    return for_chat(
        call,
        asked.messages(),
        tools=plain_tools(asked.tools) if asked.tool_choice != "none" else None,
        sampled=asked.sampling,
        max_tokens=asked.max_output_tokens,
        logprobs=(asked.top_logprobs or 0) if asked.wants_logprobs else None,
        grammar=grammar_for(call, format),
    )


def _output(call: Call, said: ParsedOutput, part: Part) -> list[dict[str, Any]]:
    """Return the items of a response: what was thought, a message, and the tools that it calls."""
    items = [_reasoning(call, said.reasoning)] if said.reasoning else []
    if said.content or not said.calls:
        items.append(_message(call, [_content(call, said.content, part.tokens)], _status(part)))
    return items + [_called(one) for one in said.calls]


def _reasoning(call: Call, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {"id": f"rs_{call.id}", "type": "reasoning", "summary": [], "content": content}


def _called(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"fc_{one['id'].removeprefix('call_')}", "type": "function_call", "call_id": one["id"],
        "status": "completed", **one["function"],
    }  # fmt: skip


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
    """Return the response object; `part` is None while nothing is there yet."""
    asked, status = call.asked, _status(part)
    sampled = call.served.model.params(asked.sampling.drawn, chat=True)
    choice = asked.tool_choice
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
        "parallel_tool_calls": asked.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": sampled.temperature,
        "text": {"format": {"type": "text"} if format is None else format.model_dump(by_alias=True)},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in asked.tools or ()],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": sampled.top_p,
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
    """Yield the events of a response: each item begins, grows and ends before the next begins."""
    events = _Events(call)
    parser, told, part = parser_of(call, requests[0]), ParsedOutput(), None
    async with stream_steps(call, requests) as steps:
        yield events.event("response.created", response=_response(call, [], None))
        yield events.event("response.in_progress", response=_response(call, [], None))
        async for step in steps:
            part, said = step.part, parser.push(step.piece)
            if part.finish_reason is not None:
                said.add(parser.finish())
            told.add(said)
            for data in events.grown(said, told, step.tokens):
                yield data
    assert part is not None
    for data in await call.state.answer_work(n_values([part]), _ending, call, events, told, part):
        yield data


def _ending(call: Call, events: _Events, told: ParsedOutput, part: Part) -> list[bytes]:
    """Return all that is told once more when a response has ended."""
    output = _output(call, told, part)
    ends = events.ended(output)
    done = _response(call, output, part)
    kind = "response.incomplete" if done["status"] == "incomplete" else "response.completed"
    return [*ends, events.event(kind, response=done)]


class _Events:
    """The numbered events of one response."""

    def __init__(self, call: Call) -> None:
        self._call, self._numbers = call, count()
        self._open: str | None = None
        """The kind of the item that grows."""
        self._place = -1
        self._tokens: list[Any] = []

    def event(self, kind: str, **fields: Any) -> bytes:
        return frame({"type": kind, "sequence_number": next(self._numbers), **fields}, kind)

    def grown(self, said: ParsedOutput, told: ParsedOutput, tokens: list[Any]) -> list[bytes]:
        """Return what a step brings; calls come whole, after everything else is told."""
        self._tokens += tokens
        events: list[bytes] = []
        if said.reasoning:
            events += self._begin("reasoning") if self._open is None else []
            events.append(self.event("response.reasoning_text.delta", **self._where, delta=said.reasoning))
        if said.content:
            if self._open != "message":
                events += self._end_reasoning(told.reasoning) + self._begin("message")
            entries = _content(self._call, "", self._tokens)["logprobs"]
            self._tokens = []
            events.append(
                self.event("response.output_text.delta", **self._where, delta=said.content, logprobs=entries)
            )
        return events

    def ended(self, output: list[dict[str, Any]]) -> list[bytes]:
        """Return the ends of items, and those that have no beginning yet."""
        events: list[bytes] = []
        for item in output:
            if item["type"] == "reasoning":
                events += self._end_reasoning(item["content"][0]["text"])
            elif item["type"] == "message":
                events += self._begin("message") if self._open != "message" else []
                events += self._end_message(item)
            else:
                events += self._function_call(item)
        return events

    @property
    def _where(self) -> dict[str, Any]:
        item = f"{'rs' if self._open == 'reasoning' else 'msg'}_{self._call.id}"
        return {"item_id": item, "output_index": self._place, "content_index": 0}

    def _begin(self, kind: str) -> list[bytes]:
        self._open, self._place = kind, self._place + 1
        thinks = kind == "reasoning"
        item = _reasoning(self._call, "") if thinks else _message(self._call, [], "in_progress")
        part = {"type": "reasoning_text", "text": ""} if thinks else _content(self._call, "", [])
        return [
            self.event("response.output_item.added", output_index=self._place, item=item),
            self.event("response.content_part.added", **self._where, part=part),
        ]

    def _end_reasoning(self, text: str) -> list[bytes]:
        if self._open != "reasoning":
            return []
        where, item = self._where, _reasoning(self._call, text)
        self._open = None
        return [
            self.event("response.reasoning_text.done", **where, text=text),
            self.event("response.content_part.done", **where, part=item["content"][0]),
            self.event("response.output_item.done", output_index=where["output_index"], item=item),
        ]

    def _end_message(self, item: dict[str, Any]) -> list[bytes]:
        content = item["content"][0]
        told = {"text": content["text"], "logprobs": content["logprobs"]}
        return [
            self.event("response.output_text.done", **self._where, **told),
            self.event("response.content_part.done", **self._where, part=content),
            self.event("response.output_item.done", output_index=self._place, item=item),
        ]

    def _function_call(self, item: dict[str, Any]) -> list[bytes]:
        self._open, self._place = "function_call", self._place + 1
        begun = {**item, "arguments": "", "status": "in_progress"}
        called = {"item_id": item["id"], "output_index": self._place}
        done = {**called, "name": item["name"], "arguments": item["arguments"]}
        return [
            self.event("response.output_item.added", output_index=self._place, item=begun),
            self.event("response.function_call_arguments.delta", **called, delta=item["arguments"]),
            self.event("response.function_call_arguments.done", **done),
            self.event("response.output_item.done", output_index=self._place, item=item),
        ]
