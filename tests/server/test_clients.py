"""Tools, reasoning and schemas as the clients that people have ask for them, against a server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.server import models
from tests.server.conftest import Running, serving

ARGUMENTS = {"city": "Bern", "days": 3}
CALL = ["<tool_call>", f"\n{json.dumps({'name': 'weather', 'arguments': ARGUMENTS})}\n", "</tool_call>"]
TALKER = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.reasoning_content %}"
    "{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{- message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}{% endfor %}"
    "{{- '<|im_end|>' + '\\n' }}{% endfor %}"
    "{%- if tools %}{{- 'Tools: ' + tools | tojson + '\\n' }}{% endif %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)  # fmt: skip
OPENED = TALKER.replace("{% endif %}{% endif %}", "{% endif %}{{ '<think>\\n' }}{% endif %}")
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"The {name}.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Bern", "Wien"]}, "days": {"enum": [1, 2, 3]}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("time", "weather")
]
HELLO: Any = [{"role": "user", "content": "How is the weather in Bern?"}]


class Person(BaseModel, extra="forbid"):
    """Somebody."""

    name: Literal["fox", "crow"]
    age: Literal[1, 2, 3]


@pytest.fixture(scope="module")
def talkers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Models that call, that think, that do both, and one that says anything."""
    root = tmp_path_factory.mktemp("talkers")
    thought = ["<think>", "\nI look it up.\n", "</think>"]
    made = {
        "caller": models.chain(root / "caller", CALL, template=TALKER),
        "thinker": models.chain(root / "thinker", [*thought, "\n\nIt rains."], template=TALKER),
        "both": models.chain(root / "both", [*thought, "\n\nWell. ", *CALL], template=TALKER),
        "opened": models.chain(root / "opened", ["I look it up.", "</think>", "It rains."], template=OPENED),
        "hidden": models.chain(
            root / "hidden", CALL, template=TALKER, special=("<tool_call>", "</tool_call>")
        ),
        "crow": models.decoder(root / "crow", max_len=2048),
    }
    with serving(made, *made) as running:
        yield running


@pytest.fixture(scope="module")
def client(talkers: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{talkers.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def ask(client: OpenAI, model: str, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 60, **more}
    )


def whole(stream: Any) -> tuple[dict[str, Any], str, int]:
    """The message that a stream's deltas make, why it ended, and how many chunks told something of it."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    finish, told = "", 0
    for chunk in stream:
        choice = chunk.choices[0]
        delta = choice.delta.model_dump(exclude_none=True)
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name, "")
        message["tool_calls"] += delta.get("tool_calls", [])
        told += bool(delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"))
        finish = choice.finish_reason or finish
    return message, finish, told


@pytest.mark.parametrize("model", ["caller", "hidden"])
def test_a_call_is_a_call_whatever_its_marker_is_to_the_tokenizer(client: OpenAI, model: str):
    choice = ask(client, model, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == ARGUMENTS


def test_reasoning_is_told_apart(client: OpenAI):
    for model in ("thinker", "opened"):
        message = ask(client, model).choices[0].message
        assert (message.reasoning_content, message.content) == ("I look it up.", "It rains.")
    marked = ask(client, "thinker", extra_body={"separate_reasoning": False}).choices[0].message
    assert marked.content == "<think>\nI look it up.\n</think>\n\nIt rains."
    assert "reasoning_content" not in marked.model_dump()


def test_a_stream_is_the_answer_in_pieces_and_goes_back_as_it_came(client: OpenAI):
    message, finish, told = whole(ask(client, "both", tools=TOOLS, stream=True))
    answer = ask(client, "both", tools=TOOLS).choices[0].message
    assert finish == "tool_calls" and told == 3
    assert (message["reasoning_content"], message["content"]) == ("I look it up.", "Well.")
    assert (answer.reasoning_content, answer.content) == ("I look it up.", "Well.")
    assert message["tool_calls"][0]["index"] == 0
    assert message["tool_calls"][0]["function"] == answer.tool_calls[0].function.model_dump()
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}
    for said in (message, answer.model_dump()):
        called = ask(client, "thinker", messages=[*HELLO, said, result], tools=TOOLS)
        assert called.choices[0].message.content == "It rains."


def test_text_streams_while_tools_are_given(client: OpenAI):
    asked: dict[str, Any] = {"max_tokens": 40, "temperature": 1, "seed": 3}
    _, _, told = whole(ask(client, "crow", tools=TOOLS, stream=True, **asked))
    _, _, without = whole(ask(client, "crow", stream=True, **asked))
    assert told > without / 2 > 10
    message = whole(ask(client, "crow", tools=TOOLS, stream=True, **asked))[0]
    assert message["content"] == ask(client, "crow", tools=TOOLS, **asked).choices[0].message.content


def test_log_probabilities_stream_with_tools(client: OpenAI):
    asked: dict[str, Any] = {"tools": TOOLS, "logprobs": True}
    told = [
        one.token_id
        for chunk in ask(client, "both", stream=True, **asked)
        for one in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert told == [one.token_id for one in ask(client, "both", **asked).choices[0].logprobs.content]


@pytest.mark.parametrize("model", ["crow", "caller", "hidden"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_asked_for_comes(client: OpenAI, model: str, stream: bool):
    named = {"type": "function", "function": {"name": "time"}}
    for choice, names in (("required", {"time", "weather"}), (named, {"time"})):
        answer = ask(client, model, tools=TOOLS, tool_choice=choice, max_tokens=200, stream=stream)
        message = whole(answer)[0] if stream else answer.choices[0].message.model_dump()
        (call,) = message["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        assert call["function"]["name"] in names and not message["content"]
        assert arguments["city"] in ("Bern", "Wien") and arguments["days"] in (1, 2, 3)


def test_a_choice_of_no_tool_is_refused(client: OpenAI):
    with pytest.raises(openai.BadRequestError, match="there are no tools"):
        ask(client, "crow", tool_choice="required")
    with pytest.raises(openai.BadRequestError, match="'wether'.*did you mean 'weather'"):
        ask(client, "crow", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "wether"}})


def test_a_strict_tool_gets_what_its_schema_says(client: OpenAI):
    """The script says Bern and 3 days, which this schema does not allow."""
    strict: Any = json.loads(json.dumps(TOOLS[1]))
    strict["function"] |= {"strict": True}
    strict["function"]["parameters"]["properties"] = {"city": {"const": "Wien"}, "days": {"enum": [5]}}
    for model in ("caller", "both", "hidden"):
        message = ask(client, model, tools=[strict], max_tokens=300).choices[0].message
        (call,) = message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Wien", "days": 5}
    assert ask(client, "thinker", tools=[strict]).choices[0].message.content == "It rains."


def test_a_template_is_told_its_variables(talkers: Running):
    with talkers.client() as http:
        lengths = [
            http.post("/tokenize", json={"model": "thinker", "messages": HELLO, **more}).json()["n_tokens"]
            for more in ({}, {"chat_template_kwargs": {"enable_thinking": False}})
        ]
        chat = {"model": "thinker", "messages": HELLO, "chat_template_kwargs": {"enable_thinking": False}}
        told = http.post("/v1/chat/completions", json=chat).json()
        assert told["usage"]["prompt_tokens"] == lengths[1] > lengths[0]
        refused = http.post(
            "/v1/chat/completions", json={**chat, "chat_template_kwargs": {"enable_thinkin": True}}
        )
        assert refused.status_code == 400 and "did you mean 'enable_thinking'" in refused.text


# Responses


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_its_parts_and_is_input_again(client: OpenAI, stream: bool):
    flat: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
    asked: dict[str, Any] = {"model": "both", "tools": flat, "temperature": 0}
    if stream:
        events = list(client.responses.create(input="Hello", stream=True, **asked))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        response = events[-1].response  # type: ignore[union-attr]
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [one.model_dump() for one in done] == [one.model_dump() for one in response.output]
        deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert deltas == response.output_text
    else:
        response = client.responses.create(input="Hello", **asked)
    thought, message, call = response.output
    assert [thought.type, message.type, call.type] == ["reasoning", "message", "function_call"]
    assert thought.content[0].text == "I look it up." and response.output_text == "Well."
    assert call.name == "weather" and json.loads(call.arguments) == ARGUMENTS
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    said: Any = [{"role": "user", "content": "Hello"}, *response.output, result]
    again = client.responses.create(**{**asked, "model": "thinker"}, input=said)
    assert again.output_text == "It rains."


def test_no_tool_is_no_call(client: OpenAI):
    flat: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
    events = list(
        client.responses.create(
            model="caller", input="x", tools=flat, tool_choice="none", temperature=0, stream=True
        )
    )
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert deltas == CALL and [item.type for item in events[-1].response.output] == ["message"]  # type: ignore[union-attr]


def test_a_response_calls_what_it_is_told_to(client: OpenAI):
    flat: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
    done = client.responses.create(
        model="crow", input="x", tools=flat, tool_choice={"type": "function", "name": "time"}, temperature=0
    )
    (call,) = done.output
    assert call.type == "function_call" and call.name == "time"


# Other clients


@pytest.fixture
def langchain(talkers: Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A chat model of LangChain for one of ours."""
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    from langchain_openai import ChatOpenAI

    def made(model: str, **more: Any) -> Any:
        return ChatOpenAI(base_url=f"{talkers.url}/v1", api_key="none", model=model, temperature=0, **more)

    return made


def test_langchain_calls_tools_and_goes_on(langchain: Any):
    from langchain_core.messages import HumanMessage, ToolMessage

    bound = langchain("both").bind_tools(TOOLS)
    said = bound.invoke("How is the weather?")
    assert said.content == "Well." and said.tool_calls[0]["args"] == ARGUMENTS
    pieces = list(bound.stream("How is the weather?"))
    streamed = sum(pieces[1:], pieces[0])
    assert streamed.content == "Well." and streamed.tool_calls[0]["args"] == ARGUMENTS
    for message in (said, streamed):
        result = ToolMessage("rain", tool_call_id=message.tool_calls[0]["id"])
        again = langchain("thinker").invoke([HumanMessage("How is the weather?"), message, result])
        assert again.content == "It rains."


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_has_structured_output(langchain: Any, method: str):
    model = langchain("crow").with_structured_output(Person, method=method)
    assert isinstance(model.invoke("Who?"), Person)


LITELLM = """
import json, sys
import litellm

url, tools, hello = json.loads(sys.argv[1])
asked = {"api_base": url, "api_key": "none", "temperature": 0, "tools": tools}
said = litellm.completion(model="openai/both", messages=hello, **asked).choices[0].message
assert (said.reasoning_content, said.content) == ("I look it up.", "Well."), said
chunks = list(litellm.completion(model="openai/both", messages=hello, stream=True, **asked))
streamed = litellm.stream_chunk_builder(chunks, messages=hello).choices[0].message
for message in (said, streamed):
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    for sent in (message, message.model_dump()):
        again = litellm.completion(model="openai/thinker", messages=[*hello, sent, result], **asked)
        assert again.choices[0].message.content == "It rains.", again
    print(message.tool_calls[0].function.arguments)
"""


def test_litellm_calls_tools_and_goes_on(talkers: Running):
    """In a process of its own, since it leaves sockets and an event loop open."""
    given = json.dumps([f"{talkers.url}/v1", TOOLS, HELLO])
    local = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # or it asks a server for prices
    command = [sys.executable, "-c", LITELLM, given]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=local)
    assert ran.returncode == 0, ran.stderr
    assert [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")] == [ARGUMENTS] * 2


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor_gets_its_model(client: OpenAI, mode: str):
    import instructor

    patched = instructor.from_openai(client, mode=instructor.Mode[mode])
    asked: dict[str, Any] = {"model": "crow", "messages": HELLO, "response_model": Person, "max_retries": 0}
    assert isinstance(patched.chat.completions.create(**asked), Person)
