"""`POST /v1/completions`: text that goes on from prompts. Read next: chat."""

from __future__ import annotations

from typing import Any

from transom import __version__
from transom.inference.request import TokenLogprob

from .endpoint import DONE, Answer, Call, Frames, frame
from .logprobs import completion_entries
from .prompts import for_completion
from .schema import CompletionBody
from .streaming import Part, Step, all_parts, n_values, prompt_tokens, stream_steps, usage

FINGERPRINT = f"transom-{__version__}"


async def completions(call: Call) -> Answer:
    """Return the completions of each prompt, whole or as a stream."""
    asked: CompletionBody = call.asked
    requests = await call.text_work(for_completion, call)
    n_prompt = prompt_tokens(requests, asked.n)
    echoes = await call.text_work(_echoes, call, len(requests)) if asked.echo else [""] * len(requests)
    if asked.stream:
        return _stream(call, requests, n_prompt, echoes)
    parts = await all_parts(call, requests)

    def made() -> dict[str, Any]:
        choices = [
            {
                "index": part.index,
                "text": echo + part.text,
                "logprobs": _logprobs(call, part, part.tokens),
                "finish_reason": part.finish_reason,
            }
            for part, echo in zip(parts, echoes, strict=True)
        ]
        return _object(call, choices, usage=usage(parts, n_prompt))

    return await call.whole(n_values(parts), made)


def _echoes(call: Call, count: int) -> list[str]:
    """Return what stands before each of so many answers, for a client that wants it back: its prompt."""
    tokenizer, n = call.served.model.tokenizer, call.asked.n
    texts = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in call.asked.prompts]
    return [text for text in texts for _ in range(n)]


async def _stream(call: Call, requests: list[Any], n_prompt: int, echoes: list[str]) -> Frames:
    parts: dict[int, Part] = {}
    async with stream_steps(call, requests) as steps:
        async for step in steps:
            parts[step.part.index] = step.part
            choice = _choice(call, step, echoes)
            if choice["text"] or choice["finish_reason"] or (choice["logprobs"] or {}).get("tokens"):
                yield frame(_object(call, [choice]))
    if call.asked.with_usage:
        yield frame(_object(call, [], usage=usage(list(parts.values()), n_prompt)))
    yield DONE


def _choice(call: Call, step: Step, echoes: list[str]) -> dict[str, Any]:
    index = step.part.index
    echo, echoes[index] = echoes[index], ""
    return {
        "index": index,
        "text": echo + step.piece,
        "logprobs": _logprobs(call, step.part, step.tokens),
        "finish_reason": step.part.finish_reason,
    }


def _logprobs(call: Call, part: Part, tokens: list[TokenLogprob]) -> dict[str, Any] | None:
    if call.asked.logprobs is None:
        return None
    return completion_entries(tokens, len(part.request.prefix_text))


def _object(call: Call, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": f"cmpl-{call.id}", "object": "text_completion", "created": call.created,
        "model": call.served.name, "system_fingerprint": FINGERPRINT, "choices": choices, **more,
    }  # fmt: skip
