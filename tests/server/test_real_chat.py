"""A real chat model behind the server: SmolLM2-135M-Instruct, as OpenAI's client asks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.server.conftest import Running, serving

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Bern", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[Running]:
    with serving({"smollm2": smollm2}, "smollm2") as running:
        yield running


@pytest.fixture(scope="module")
def client(real: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: OpenAI, messages: Any = PARIS, **more: Any) -> Any:
    return client.chat.completions.create(model="smollm2", messages=messages, temperature=0, **more)


def test_it_answers_and_streams_the_same_with_bytes_that_add_up(client: OpenAI):
    answer = ask(client, logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content and choice.finish_reason == "stop"
    told = b"".join(bytes(one.bytes) for one in choice.logprobs.content)
    assert told.decode() == choice.message.content
    pieces = [part.choices[0].delta.content or "" for part in ask(client, stream=True)]
    assert "".join(pieces) == choice.message.content and len(pieces) > 5


def test_chat_in_python_gives_the_same_and_goes_on(client: OpenAI, real: Running):
    model = real.app.state.models["smollm2"].model
    answer = model.chat(PARIS[0]["content"], temperature=0)
    assert answer.text == model.chat(PARIS, temperature=0).text == ask(client).choices[0].message.content
    assert answer.finish_reason == "stop"
    more = [*PARIS, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "Of Germany?"}]
    assert "Berlin" in model.chat(more, temperature=0).text


def test_tools_are_told_to_a_model_whose_template_writes_none(client: OpenAI):
    """They stand in the prompt; a call that is demanded comes, and its result can be answered."""
    plain, told = ask(client, max_tokens=1), ask(client, max_tokens=1, tools=[WEATHER])
    assert told.usage.prompt_tokens > plain.usage.prompt_tokens + 50
    asked = [{"role": "user", "content": "What is the weather in Bern?"}]
    called = ask(client, asked, tools=[WEATHER], tool_choice="required").choices[0]
    (call,) = called.message.tool_calls
    assert called.finish_reason == "tool_calls" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Bern"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain, 7 degrees"}
    message = called.message.model_dump(exclude_none=True)
    answer = ask(client, [*asked, message, result], tools=[WEATHER]).choices[0].message.content
    assert "7 degrees" in answer


def test_an_answer_is_json_of_a_schema(client: OpenAI):
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 20}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    said = ask(client, response_format=format)
    assert set(json.loads(said.choices[0].message.content)) == {"capital"}
