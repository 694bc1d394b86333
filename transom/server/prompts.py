"""From what a client asks to requests of the engine: text to ids, messages through the template, bounds.

Everything here may take milliseconds (tokenising a megabyte takes seconds), so it runs in the pool, never on
the event loop. Read next: completions, chat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from transom.data.chat_template import Rendered
from transom.errors import Refused
from transom.inference.request import Request
from transom.inference.structured import JSON_OBJECT, Grammar, Stretch
from transom.sampling_params import SamplingParams
from transom.server_settings import LimitSettings

from .endpoint import Call
from .errors import ApiError
from .models import ServedModel
from .output_parser import OutputParser
from .schema import Sampling, at_most
from .tools_in_words import in_call_order, in_words, writes_tools

DEFAULT_COMPLETION = 16
"""Tokens of a completion for which no number was given, as in OpenAI's interface."""

Schema = dict[str, Any] | None


def for_completion(call: Call) -> list[Request]:
    """n requests for each prompt of a completion."""
    asked, queue = call.asked, call.state.settings.limits.queue
    at_most("n times the number of prompts", asked.n * len(asked.prompts), queue)
    params = sampling(call.served, asked, asked.max_tokens or DEFAULT_COMPLETION, asked.logprobs)
    return [
        request
        for at, prompt in enumerate(asked.prompts)
        for request in _requests(call, prompt, params, asked.prefix_tokens, f"{call.id}-{at}")
    ]


def for_chat(
    call: Call,
    messages: list[dict[str, Any]],
    *,
    tools: list[dict[str, Any]] | None,
    sampled: Sampling,
    max_tokens: int | None,
    logprobs: int | None,
    grammar: Grammar | None,
) -> list[Request]:
    """n requests that go on from the messages of a chat."""
    served = call.served
    prompt = render(served, messages, tools, call.asked.chat_template_kwargs).tokens
    room = served.room - len(prompt) - len(sampled.prefix_tokens)
    room = min(room, served.model.generation.max_new_tokens or room)
    assert served.template is not None
    params = sampling(served, sampled, max_tokens or max(room, 1), logprobs, chat=True)
    requests = _requests(
        call, prompt, params, sampled.prefix_tokens, call.id, grammar, served.markers, continues=False
    )
    for request in requests:
        request.ends |= frozenset() if sampled.ignore_eos else served.ends
    return requests


def render(
    served: ServedModel,
    messages: Sequence[Mapping[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Rendered:
    """Write messages as the model's template writes them, tools in words where it writes none; raises
    ApiError where the model has no template.
    """
    if served.template is None:
        raise ApiError(
            400,
            f"{served.name} has no chat template, so it cannot chat; /v1/completions goes on from a"
            " text (the operator may start the server with --chat-template plain, chatml or a FILE)",
            param="model",
            code="no_chat_template",
        )
    messages = in_call_order(messages)
    calls = any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
    if (tools or calls) and not writes_tools(served.template.all_text):
        messages, tools = in_words(messages, tools, served.default_system), None
    try:
        return served.template.render(
            messages, served.model.tokenizer, tools=tools, add_generation_prompt=True, variables=variables
        )
    except Refused as refused:
        raise ApiError(400, str(refused), param="messages", code="template_refused") from None


def sampling(
    served: ServedModel,
    asked: Sampling,
    max_tokens: int,
    logprobs: int | None,
    *,
    chat: bool = False,
) -> SamplingParams:
    """Return the same as settings of the engine; what is left out is as the folder says
    (`GenerationConfig.draws`).

    What the answer is given to begin with counts as made for the engine, and not for the client.
    """
    stops = served.template.stop if chat and served.template else ()
    own = {"max_tokens": max_tokens + len(asked.prefix_tokens), "logprobs": logprobs}
    return served.model.params({**asked.drawn, **own, "stop": [*asked.stop, *stops]}, chat=chat)


def _requests(
    call: Call,
    prompt: str | list[int],
    params: SamplingParams,
    begins: Sequence[int],
    id: str,
    grammar: Grammar | None = None,
    markers: Mapping[int, str] = MappingProxyType({}),
    *,
    continues: bool = True,
) -> list[Request]:
    """Return the requests for one prompt; `continues` as for `Generator.request`.

    Raises ApiError with the numbers where it does not fit.
    """
    generator = call.served.model
    try:
        requests = generator.request(
            prompt,
            params,
            continues=continues,
            prefix_tokens=begins,
            tenant=call.tenant,
            grammar=grammar,
            id=id,
            markers=markers,
        )
    except Refused as refused:
        if refused.code == "context_length_exceeded":
            param = "prompt" if continues else "messages"
            raise ApiError(400, str(refused), param=param, code=refused.code) from None
        raise
    return requests


def grammar_for(call: Call, format: Any) -> Grammar | None:
    """Return what the answer must follow: the schema of a format, the call that `tool_choice` asks for, the
    schemas of strict tools; None: it is free. Takes up to seconds.
    """
    asked, grammars = call.asked, call.served.model.grammars if _bound(call.asked, format) else None
    schema = _schema_of(format, call.state.settings.limits)
    if grammars is None:
        return None
    functions = [getattr(tool, "function", tool) for tool in asked.tools or () if asked.tool_choice != "none"]
    if not isinstance(asked.tool_choice, str):
        functions = [one for one in functions if one.name == asked.tool_choice.name]
    forced = asked.tool_choice not in ("auto", "none")
    calls = [_spelled(call.served, one, forced) for one in functions]
    if forced:
        return grammars.compile_choice(calls)
    if schema is not None:
        return (
            grammars.compile_choice([Stretch("", schema, ""), *calls]) if calls else grammars.compile(schema)
        )
    syntax = call.served.call_syntax
    return grammars.compile_choice(calls, after="" if syntax.bare else syntax.opener)


def _bound(asked: Any, format: Any) -> bool:
    """Return whether anything is asked of the form of an answer."""
    if format is not None and format.type != "text" or asked.tool_choice not in ("auto", "none"):
        return True
    strict = any(getattr(tool, "function", tool).strict for tool in asked.tools or ())
    return strict and asked.tool_choice == "auto"


def _spelled(served: ServedModel, function: Any, forced: bool) -> Stretch:
    """Return a call as the model's family writes it: the arguments of a strict tool follow its schema, and
    those of another where its call is asked for and its schema can be kept to.
    """
    syntax = served.call_syntax
    named = json.dumps(function.name, ensure_ascii=False)
    schema = (function.parameters if function.strict or forced else None) or JSON_OBJECT
    if not function.strict and forced:
        try:
            served.model.grammars.compile(schema)
        except Refused:
            schema = JSON_OBJECT
    begin, end = f'{{"name": {named}, "{syntax.arguments}": ', "}"
    if syntax.closer:
        begin, end = f"{syntax.opener}\n{begin}", f"{end}\n{syntax.closer}"
    elif not syntax.bare:
        begin, end = f"{syntax.opener}[{begin}", f"{end}]"
    return Stretch(begin, schema, end)


def parser_of(call: Call, request: Request, given: str = "", *, separate: bool = True) -> OutputParser:
    """Return what takes an answer apart; `given`: what it begins with and does not tell again."""
    asked, served = call.asked, call.served
    names = [getattr(tool, "function", tool).name for tool in asked.tools or ()]
    thinks = separate and served.thinks
    parser = OutputParser(
        syntax=served.call_syntax if names and asked.tool_choice != "none" else None,
        names=names,
        parallel=asked.parallel_tool_calls,
        thinks=thinks,
        # What a grammar decides is no reasoning, wherever the prompt ends.
        opened=thinks and request.grammar is None and served.opens_reasoning(request.prompt),
    )
    parser.push(given)
    return parser


def _schema_of(format: Any, limits: LimitSettings) -> Schema:
    """Return the schema that a response format asks for; None: any text."""
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
    """Return tools of either interface as templates take them."""
    if not tools:
        return None
    functions = [getattr(tool, "function", tool) for tool in tools]
    names = ("name", "description", "parameters")
    return [
        {"type": "function", "function": {n: getattr(f, n) for n in names if getattr(f, n) is not None}}
        for f in functions
    ]
