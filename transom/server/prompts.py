"""From what a client asks to requests of the engine: text to ids, messages through the template, bounds.

Everything here may take milliseconds (tokenising a megabyte takes seconds), so it runs in the pool, never on
the event loop. Read next: completions, chat.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transom.data.chat_template import Rendered
from transom.errors import Refused
from transom.inference.request import Request
from transom.inference.sampling import SamplingParams
from transom.inference.structured import JSON_OBJECT
from transom.server_settings import LimitSettings

from .endpoint import Call
from .errors import ApiError
from .schema import Sampling, at_most
from .served import Served

DEFAULT_COMPLETION = 16
"""Tokens of a completion for which no number was given, as in OpenAI's interface."""

Schema = dict[str, Any] | None


def for_completion(call: Call) -> list[Request]:
    """n requests for each prompt of a completion."""
    asked, queue = call.asked, call.state.settings.limits.queue
    at_most("n times the number of prompts", (asked.n or 1) * len(asked.prompts), queue)
    params = sampling(asked, asked.max_tokens or DEFAULT_COMPLETION, asked.logprobs)
    return [
        request
        for at, prompt in enumerate(asked.prompts)
        for request in _requests(call, prompt, params, asked.prefix_tokens, None, f"{call.id}-{at}")
    ]


def for_chat(
    call: Call,
    messages: list[dict[str, Any]],
    *,
    tools: list[dict[str, Any]] | None,
    sampled: Sampling,
    max_tokens: int | None,
    logprobs: int | None,
    schema: Schema,
) -> list[Request]:
    """n requests that go on from the messages of a chat."""
    served = call.served
    prompt = render(served, messages, tools).tokens
    room = served.room - len(prompt) - len(sampled.prefix_tokens)
    assert served.template is not None
    params = sampling(sampled, max_tokens or max(room, 1), logprobs, served.template.stop)
    requests = _requests(call, prompt, params, sampled.prefix_tokens, schema, call.id, continues=False)
    for request in requests:
        request.ends |= frozenset() if sampled.ignore_eos else served.ends
    return requests


def render(
    served: Served, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> Rendered:
    """Messages as the model's template writes them; raises ApiError where it has none."""
    if served.template is None:
        raise ApiError(
            400,
            f"{served.name} has no chat template, so it cannot chat; /v1/completions goes on from a"
            " text (the operator may start the server with --chat-template plain, chatml or a FILE)",
            param="model",
            code="no_chat_template",
        )
    try:
        return served.template.render(
            messages, served.model.tokenizer, tools=tools, add_generation_prompt=True
        )
    except Refused as refused:
        raise ApiError(400, str(refused), param="messages", code="template_refused") from None


def sampling(
    asked: Sampling, max_tokens: int, logprobs: int | None, stop: tuple[str, ...] = ()
) -> SamplingParams:
    """The engine's own settings, which checks every number once more; `stop`: what always ends an answer.

    What the answer is given to begin with counts as made for the engine, and not for the client.
    """
    given: dict[str, Any] = {
        "max_tokens": max_tokens + len(asked.prefix_tokens),
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "logprobs": logprobs,
        "stop": asked.stops + stop,
        "n": asked.n or 1,
    }
    same = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
            "logit_bias", "ignore_eos")  # fmt: skip
    given |= {name: getattr(asked, name) for name in same if getattr(asked, name) is not None}
    return SamplingParams.of(given)


def _requests(
    call: Call,
    prompt: str | list[int],
    params: SamplingParams,
    begins: Sequence[int],
    schema: Schema,
    id: str,
    *,
    continues: bool = True,
) -> list[Request]:
    """The requests for one prompt; `continues` as for `Generator.request`.

    Raises ApiError with the numbers where it does not fit.
    """
    generator = call.served.model
    grammar = None if schema is None else call.served.grammars.compile(schema)
    try:
        requests = generator.request(
            prompt, params, continues=continues, begins=begins, scope=call.scope, grammar=grammar, id=id
        )
    except Refused as refused:
        if "max_len" in str(refused):
            raise ApiError(400, str(refused), param="messages", code="context_length_exceeded") from None
        raise
    return requests


def schema_of(format: Any, limits: LimitSettings) -> Schema:
    """The schema that a response format asks for; None: any text."""
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return JSON_OBJECT
    holder = getattr(format, "json_schema", format)
    schema = JSON_OBJECT if holder.schema_ is None else holder.schema_
    size = len(json.dumps(schema))
    if size > limits.schema_bytes:
        raise ApiError(400, f"the schema has {size:,} bytes; the limit is {limits.schema_bytes:,}",
                       param="response_format", code="above_limit")  # fmt: skip
    return schema


def plain_tools(tools: list[Any] | None) -> list[dict[str, Any]] | None:
    """Tools of either interface as templates take them."""
    if not tools:
        return None
    functions = [getattr(tool, "function", tool) for tool in tools]
    names = ("name", "description", "parameters")
    return [
        {"type": "function", "function": {n: getattr(f, n) for n in names if getattr(f, n) is not None}}
        for f in functions
    ]
