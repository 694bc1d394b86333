"""`POST /v1/chat/completions`: the next message of a conversation. Read next: responses."""

from __future__ import annotations

from typing import Any

from transom.inference.request import Request

from .chat_schema import ChatBody, for_template
from .completions import FINGERPRINT
from .endpoint import DONE, Answer, Call, Frames, frame
from .logprobs import chat_entries
from .prompts import for_chat, plain_tools, schema_of
from .tool_calls import split_calls
from .writing import Part, Step, all_parts, prompt_tokens, usage, writing


async def chat(call: Call) -> Answer:
    """The assistant's message, whole or as a stream."""
    asked: ChatBody = call.asked
    requests = await call.state.text_work(_requests, call)
    n_prompt = prompt_tokens(requests, asked.n or 1)
    if asked.stream:
        return _stream(call, requests, n_prompt)
    parts = await all_parts(call, requests)
    return _object(
        call, "chat.completion", [_choice(call, part) for part in parts], usage=usage(parts, n_prompt)
    )


def _requests(call: Call) -> list[Request]:
    asked: ChatBody = call.asked
    return for_chat(
        call,
        for_template(asked.messages),
        tools=plain_tools(asked.tools) if asked.tool_choice == "auto" else None,
        sampled=asked,
        max_tokens=asked.most_tokens,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        schema=schema_of(asked.response_format, call.state.settings.limits),
    )


def _choice(call: Call, part: Part) -> dict[str, Any]:
    text, calls = split_calls(part.text) if _with_tools(call) else (part.text, [])
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not calls else None,
        "refusal": None,
    }
    if calls:
        message["tool_calls"] = calls
    return {
        "index": part.index,
        "message": message,
        "logprobs": _logprobs(call, part.tokens),
        "finish_reason": "tool_calls" if calls and part.finish_reason == "stop" else part.finish_reason,
    }


def _with_tools(call: Call) -> bool:
    return bool(call.asked.tools) and call.asked.tool_choice == "auto"


def _logprobs(call: Call, tokens: list[Any]) -> dict[str, Any] | None:
    if not call.asked.logprobs:
        return None
    return {"content": chat_entries(tokens), "refusal": None}


async def _stream(call: Call, requests: list[Request], n_prompt: int) -> Frames:
    """One chunk for each step of each part; with tools, a part is told whole, since it may be a call."""
    parts: dict[int, Part] = {}
    held = _with_tools(call)
    async with writing(call, requests) as steps:
        for index in range(len(requests)):
            yield frame(
                _chunk(
                    call, index, {"role": "assistant", "content": "" if not held else None, "refusal": None}
                )
            )
        async for step in steps:
            parts[step.part.index] = step.part
            for chunk in _held_chunks(call, step) if held else _chunks(call, step):
                yield frame(chunk)
    if call.asked.with_usage:
        total = usage([parts[index] for index in sorted(parts)], n_prompt)
        yield frame(_object(call, "chat.completion.chunk", [], usage=total))
    yield DONE


def _chunks(call: Call, step: Step) -> list[dict[str, Any]]:
    chunks, part = [], step.part
    if step.piece or (call.asked.logprobs and step.tokens):
        chunks.append(_chunk(call, part.index, {"content": step.piece}, _logprobs(call, step.tokens)))
    if part.finish_reason is not None:
        chunks.append(_chunk(call, part.index, {}, None, part.finish_reason))
    return chunks


def _held_chunks(call: Call, step: Step) -> list[dict[str, Any]]:
    if step.part.finish_reason is None:
        return []
    choice = _choice(call, step.part)
    delta = {
        name: value
        for name, value in choice["message"].items()
        if name in ("content", "tool_calls") and value
    }
    for place, one in enumerate(delta.get("tool_calls", ())):
        one["index"] = place
    first = _chunk(call, choice["index"], delta, choice["logprobs"])
    return [first, _chunk(call, choice["index"], {}, None, choice["finish_reason"])]


def _chunk(
    call: Call, index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    more = {"usage": None} if call.asked.with_usage else {}
    return _object(call, "chat.completion.chunk", [choice], **more)


def _object(call: Call, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{call.id}", "object": kind, "created": call.created, "model": call.served.name,
        "system_fingerprint": FINGERPRINT, "choices": choices, **more,
    }  # fmt: skip
