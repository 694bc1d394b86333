"""`POST /v1/chat/completions`: the next message of a conversation. Read next: responses."""

from __future__ import annotations

from functools import partial
from typing import Any

from transom.inference.request import Request

from .chat_schema import ChatBody, for_template
from .completions import FINGERPRINT
from .endpoint import DONE, Answer, Call, Frames, frame
from .knowledge import grounded
from .logprobs import chat_entries
from .output_parser import OutputParser, ParsedOutput, parsed
from .prompts import for_chat, grammar_for, parser_of, plain_tools
from .streaming import Part, Step, all_parts, n_values, prompt_tokens, stream_steps, usage


async def chat(call: Call) -> Answer:
    """Return the assistant's message, whole or as a stream."""
    asked: ChatBody = call.asked
    if asked.grounding is not None:
        return await grounded(call, partial(_object, call))
    requests = await call.text_work(_requests, call)
    n_prompt = prompt_tokens(requests, asked.n)
    if asked.stream:
        return _stream(call, requests, n_prompt)
    parts = await all_parts(call, requests)
    return await call.whole(n_values(parts), lambda: _object(
        call, "chat.completion", [_choice(call, part) for part in parts], usage=usage(parts, n_prompt)
    ))  # fmt: skip


def _requests(call: Call) -> list[Request]:
    asked: ChatBody = call.asked
    return for_chat(
        call,
        for_template(asked.messages),
        tools=plain_tools(asked.tools) if asked.tool_choice != "none" else None,
        sampled=asked,
        max_tokens=asked.most_tokens,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        grammar=grammar_for(call, asked.response_format),
    )


def _choice(call: Call, part: Part) -> dict[str, Any]:
    said = parsed(_parser(call, part), part.text)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": said.content if said.content or not said.calls else None,
        "refusal": None,
    }
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.calls:
        message["tool_calls"] = said.calls
    return {
        "index": part.index,
        "message": message,
        "logprobs": _logprobs(call, part.tokens),
        "finish_reason": _finish_reason(part, bool(said.calls)),
    }


def _parser(call: Call, part: Part) -> OutputParser:
    return parser_of(call, part.request, part.request.prefix_text, separate=call.asked.separate_reasoning)


def _finish_reason(part: Part, called: bool) -> str | None:
    return "tool_calls" if called and part.finish_reason == "stop" else part.finish_reason


def _logprobs(call: Call, tokens: list[Any]) -> dict[str, Any] | None:
    if not call.asked.logprobs:
        return None
    return {"content": chat_entries(tokens), "refusal": None}


async def _stream(call: Call, requests: list[Request], n_prompt: int) -> Frames:
    """Chunks for each step of each part: what is certain of it by then."""
    writers: dict[int, _Writer] = {}
    async with stream_steps(call, requests) as steps:
        for index in range(len(requests)):
            yield frame(_chunk(call, index, {"role": "assistant", "content": "", "refusal": None}))
        async for step in steps:
            index = step.part.index
            if index not in writers:
                writers[index] = _Writer(call, step.part)
            for chunk in writers[index].chunks(step):
                yield frame(chunk)
    if call.asked.with_usage:
        total = usage([writers[index].part for index in sorted(writers)], n_prompt)
        yield frame(_object(call, "chat.completion.chunk", [], usage=total))
    yield DONE


class _Writer:
    """One part as it streams."""

    def __init__(self, call: Call, part: Part) -> None:
        self.call, self.part, self._parser, self._n_calls = call, part, _parser(call, part), 0

    def chunks(self, step: Step) -> list[dict[str, Any]]:
        """Say what a step brings: content with the step's log-probabilities, and at the end why it ended."""
        call, part, said = self.call, self.part, self._parser.push(step.piece)
        if part.finish_reason is not None:
            said.add(self._parser.finish())
        chunks: list[dict[str, Any]] = []
        delta = self._delta(said)
        if delta or (call.asked.logprobs and step.tokens):
            chunks.append(_chunk(call, part.index, delta or {"content": ""}, _logprobs(call, step.tokens)))
        if part.finish_reason is not None:
            reason = _finish_reason(part, self._n_calls > 0)
            chunks.append(_chunk(call, part.index, {}, None, reason))
        return chunks

    def _delta(self, said: ParsedOutput) -> dict[str, Any]:
        delta: dict[str, Any] = {"reasoning_content": said.reasoning} if said.reasoning else {}
        if said.content:
            delta["content"] = said.content
        if said.calls:
            delta["tool_calls"] = [
                {"index": at, **one} for at, one in enumerate(said.calls, start=self._n_calls)
            ]
            self._n_calls += len(said.calls)
        return delta


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
