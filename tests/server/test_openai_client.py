"""What the official `openai` client expects of a server: forty contracts, each against the real thing."""

from __future__ import annotations

import inspect
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.resources.chat.completions import Completions as ChatResource
from openai.resources.completions import Completions as CompletionResource
from openai.resources.embeddings import Embeddings as EmbeddingResource
from openai.resources.responses import Responses as ResponseResource

from tests.server.conftest import Running
from transom.inference.generator import Generator
from transom.server.chat_schema import ChatBody, ResponseBody
from transom.server.schema import CompletionBody, EmbeddingBody

HELLO: Any = [{"role": "user", "content": "The crow"}]
GREEDY: dict[str, Any] = {"model": "crow", "temperature": 0}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none needed", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def crow(server: Running) -> Generator:
    """The same model, asked without a server."""
    return server.app.state.models["crow"].model


def chat(client: OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(messages=HELLO, **{**GREEDY, "max_tokens": 12, **more})


def complete(client: OpenAI, prompt: Any = "The crow", **more: Any) -> Any:
    return client.completions.create(prompt=prompt, **{**GREEDY, "max_tokens": 12, **more})


# Models


def test_models_are_listed_with_what_they_are_for(client: OpenAI):
    tasks = {model.id: model.task for model in client.models.list()}  # type: ignore[attr-defined]
    assert tasks == {
        "crow": "chat", "plain": "generate", "lstm": "generate", "moses": "translate", "sorter": "classify",
        "vector": "embed",
    }  # fmt: skip


def test_one_model_is_retrieved(client: OpenAI):
    found = client.models.retrieve("crow")
    assert (found.id, found.object, found.owned_by, found.max_len) == ("crow", "model", "transom", 256)  # type: ignore[attr-defined]


def test_an_unknown_model_is_not_found(client: OpenAI):
    with pytest.raises(openai.NotFoundError) as told:
        chat(client, model="crwo")
    assert told.value.code == "model_not_found" and "did you mean 'crow'" in told.value.message


def test_a_model_that_cannot_do_it_is_refused(client: OpenAI):
    with pytest.raises(openai.BadRequestError, match="/translate"):
        complete(client, model="moses")


# Completions


def test_a_completion_is_what_generate_writes(client: OpenAI, crow: Generator):
    done = complete(client)
    assert done.choices[0].text == crow.generate("The crow", max_tokens=12, temperature=0).text
    assert (done.object, done.model, done.choices[0].finish_reason) == ("text_completion", "crow", "length")


def test_the_same_seed_is_the_same_text_as_offline(client: OpenAI, crow: Generator):
    asked: dict[str, Any] = {"temperature": 1.3, "seed": 11, "top_p": 0.9, "max_tokens": 24}
    own = crow.generate("The crow", **asked)
    assert complete(client, **asked).choices[0].text == own.text == complete(client, **asked).choices[0].text


def test_another_seed_is_another_text(client: OpenAI):
    texts = {complete(client, temperature=1.5, seed=seed, max_tokens=24).choices[0].text for seed in range(4)}
    assert len(texts) == 4


def test_zero_is_a_temperature(client: OpenAI):
    assert len({complete(client, temperature=0).choices[0].text for _ in range(3)}) == 1


def test_several_prompts_with_several_answers_each_come_in_order(client: OpenAI, crow: Generator):
    done = complete(client, ["The crow", "One two"], n=2, temperature=1.0, seed=5)
    own = crow.generate(["The crow", "One two"], n=2, max_tokens=12, temperature=1.0, seed=5)
    assert [choice.text for choice in done.choices] == [one.text for one in own]
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]


def test_token_ids_are_a_prompt(client: OpenAI, crow: Generator):
    ids = crow.tokenizer.encode("The crow")
    assert complete(client, ids).choices[0].text == complete(client).choices[0].text
    assert complete(client, [ids, ids]).choices[1].text == complete(client).choices[0].text


def test_echo_gives_the_prompt_back(client: OpenAI):
    assert complete(client, echo=True).choices[0].text == "The crow" + complete(client).choices[0].text


def test_sixteen_tokens_are_the_default_of_a_completion(client: OpenAI):
    done = client.completions.create(model="plain", prompt="The", temperature=0)
    assert done.usage is not None and done.usage.completion_tokens <= 16


def test_a_recurrent_model_is_served_the_same_way(client: OpenAI, server: Running):
    own = server.app.state.models["lstm"].model.generate("The crow", max_tokens=12, temperature=0)
    assert complete(client, model="lstm").choices[0].text == own.text


def test_completion_logprobs_are_parallel_lists(client: OpenAI, crow: Generator):
    told = complete(client, logprobs=3).choices[0].logprobs
    own = crow.generate("The crow", max_tokens=12, temperature=0, logprobs=3).logprobs
    assert own is not None
    assert told.token_logprobs == pytest.approx([one.logprob for one in own], abs=1e-4)
    assert told.tokens == [one.text for one in own] and len(told.text_offset) == len(told.tokens)
    assert all(len(top) <= 3 and max(top.values()) <= 0 for top in told.top_logprobs)
    assert [one["token_id"] for one in told.content] == [one.token for one in own]


# Chats


def test_a_chat_is_what_the_template_and_generate_write(client: OpenAI, crow: Generator, server: Running):
    template = server.app.state.models["crow"].template
    assert template is not None
    prompt = template.render(HELLO, crow.tokenizer).tokens
    done = chat(client)
    assert done.choices[0].message.content == crow.generate(prompt, max_tokens=12, temperature=0).text
    assert (done.object, done.choices[0].message.role) == ("chat.completion", "assistant")
    assert done.usage.prompt_tokens == len(prompt)


def test_both_names_for_the_most_tokens(client: OpenAI):
    long = chat(client, max_tokens=9)
    short = chat(client, max_tokens=openai.NOT_GIVEN, max_completion_tokens=9)
    assert long.usage.completion_tokens == short.usage.completion_tokens == 9
    assert long.choices[0].message.content == short.choices[0].message.content


def test_usage_adds_up(client: OpenAI):
    usage = chat(client, n=3, temperature=1.0, seed=1).usage
    assert usage.completion_tokens == 36
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stop_string_ends_the_text_before_it(client: OpenAI):
    whole = chat(client, max_tokens=40).choices[0].message.content
    stop = whole[5:8]
    done = chat(client, max_tokens=40, stop=[stop, "never there"]).choices[0]
    assert done.message.content == whole[: whole.index(stop)] and done.finish_reason == "stop"


def test_length_is_a_reason_to_finish(client: OpenAI):
    assert chat(client, max_tokens=1).choices[0].finish_reason == "length"


def test_chat_logprobs(client: OpenAI):
    content = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    for one in content:
        assert len(one.top_logprobs) == 2 and math.isclose(one.logprob, one.top_logprobs[0].logprob)
        assert one.token_id == one.top_logprobs[0].token_id  # greedy takes the likeliest
        assert one.bytes is not None
    text = b"".join(bytes(one.bytes) for one in content).decode("utf-8", "replace")
    assert text == chat(client).choices[0].message.content


def test_logprobs_without_alternatives(client: OpenAI):
    content = chat(client, logprobs=True).choices[0].logprobs.content
    assert content and all(one.top_logprobs == [] for one in content)


def test_several_answers(client: OpenAI):
    done = chat(client, n=4, temperature=1.5, seed=2, max_tokens=20)
    assert len({choice.message.content for choice in done.choices}) == 4
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]


def test_a_bias_forbids_and_forces_tokens(client: OpenAI, crow: Generator):
    first = chat(client, logprobs=True, max_tokens=1).choices[0].logprobs.content[0].token_id
    other = chat(client, logprobs=True, max_tokens=1, logit_bias={str(first): -100})
    assert other.choices[0].logprobs.content[0].token_id != first
    forced = next(number for number in range(60, 90) if number != first)
    told = (
        chat(client, logprobs=True, max_tokens=3, logit_bias={str(forced): 100}).choices[0].logprobs.content
    )
    assert [one.token_id for one in told] == [forced] * 3


def test_penalties_change_what_is_repeated(client: OpenAI):
    forced = {"70": 8}
    plain = chat(client, logprobs=True, max_tokens=16, logit_bias=forced)
    calm = chat(
        client, logprobs=True, max_tokens=16, logit_bias=forced, presence_penalty=2, frequency_penalty=2
    )
    ids = [[one.token_id for one in done.choices[0].logprobs.content] for done in (plain, calm)]
    assert ids[1].count(70) <= ids[0].count(70) and ids[0] != ids[1]


def test_roles_and_parts(client: OpenAI):
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "The "}, {"type": "text", "text": "crow"}]},
        {"role": "assistant", "content": "caw"},
        {"role": "user", "name": "ann", "content": "again"},
    ]
    done = client.chat.completions.create(messages=messages, max_tokens=4, **GREEDY)
    assert done.choices[0].message.role == "assistant"


def test_tools_pass_through_the_template(client: OpenAI):
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    without, with_tools = chat(client), chat(client, tools=[tool])
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 10
    assert chat(client, tools=[tool], tool_choice="none").usage.prompt_tokens == without.usage.prompt_tokens


def test_calls_and_their_results_are_messages(client: OpenAI):
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
    }
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    done = client.chat.completions.create(messages=messages, max_tokens=4, **GREEDY)
    assert done.usage is not None and done.usage.prompt_tokens > 40


def test_a_picture_is_refused(client: OpenAI):
    messages: Any = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
    ]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(messages=messages, **GREEDY)


def test_a_model_without_template_does_not_chat(client: OpenAI):
    with pytest.raises(openai.BadRequestError) as told:
        chat(client, model="plain")
    assert told.value.code == "no_chat_template" and "--chat-template" in told.value.message


# Streams


def test_a_chat_stream_is_the_whole_in_pieces(client: OpenAI):
    chunks = list(chat(client, stream=True, max_tokens=40))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert (
        "".join(delta.content or "" for delta in deltas)
        == chat(client, max_tokens=40).choices[0].message.content
    )
    assert [chunk.choices[0].finish_reason for chunk in chunks].count("length") == 1
    assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_if_asked(client: OpenAI):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == chat(client).usage


def test_a_stream_of_several_answers(client: OpenAI):
    texts = ["", "", ""]
    for chunk in chat(client, stream=True, n=3, temperature=1.0, seed=4):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    done = chat(client, n=3, temperature=1.0, seed=4)
    assert texts == [choice.message.content for choice in done.choices]


def test_streamed_logprobs_are_those_of_the_whole(client: OpenAI):
    told = [
        one.token_id
        for chunk in chat(client, stream=True, logprobs=True)
        for choice in chunk.choices
        for one in (choice.logprobs.content if choice.logprobs else [])
    ]
    assert told == [one.token_id for one in chat(client, logprobs=True).choices[0].logprobs.content]


def test_a_completion_stream_is_the_whole_in_pieces(client: OpenAI):
    text = "".join(chunk.choices[0].text for chunk in complete(client, stream=True, max_tokens=40))
    assert text == complete(client, max_tokens=40).choices[0].text


async def _many(server: Running) -> list[str]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        stream = await client.chat.completions.create(messages=HELLO, max_tokens=12, stream=True, **GREEDY)
        return [chunk.choices[0].delta.content or "" async for chunk in stream]


def test_the_asynchronous_client(client: OpenAI, server: Running):
    import asyncio

    assert "".join(asyncio.run(_many(server))) == chat(client).choices[0].message.content


# Responses


def test_a_response_is_the_chat(client: OpenAI):
    done = client.responses.create(model="crow", input="The crow", temperature=0, max_output_tokens=12)
    assert done.output_text == chat(client).choices[0].message.content
    assert done.status == "incomplete" and done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens"
    assert done.usage is not None and done.usage.output_tokens == 12


def test_a_response_takes_a_conversation(client: OpenAI):
    said: Any = [
        {"role": "user", "content": "The crow"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "caw"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "again"}]},
    ]
    done = client.responses.create(
        model="crow", input=said, instructions="Be brief.", temperature=0, max_output_tokens=4
    )
    same: Any = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "The crow"},
        {"role": "assistant", "content": "caw"}, {"role": "user", "content": "again"},
    ]  # fmt: skip
    own = client.chat.completions.create(messages=same, max_tokens=4, **GREEDY)
    assert done.output_text == own.choices[0].message.content


def test_the_events_of_a_response(client: OpenAI):
    events = list(
        client.responses.create(
            model="crow", input="The crow", temperature=0, max_output_tokens=12, stream=True
        )
    )
    kinds, deltas = [event.type for event in events], [event for event in events if "delta" in event.type]
    final: Any = events[-1]
    assert "".join(event.delta for event in deltas) == final.response.output_text  # type: ignore[union-attr]
    assert final.response.output_text == chat(client).choices[0].message.content
    assert [event.sequence_number for event in events] == list(range(len(events)))
    start = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[:4] == start
    end = [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [kind for kind in kinds if "delta" not in kind][4:] == end


def test_a_response_ends_with_the_token_of_the_template(
    client: OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch
):
    tokens = [one.token_id for one in chat(client, logprobs=True).choices[0].logprobs.content]
    last = next(place for place in range(4, 12) if tokens[place] not in tokens[:place])
    monkeypatch.setattr(server.app.state.models["crow"], "ends", frozenset([tokens[last]]))
    with client.responses.stream(model="crow", input="The crow", temperature=0) as stream:
        final = stream.get_final_response()
    assert final.status == "completed" and final.usage is not None and final.usage.output_tokens == last + 1
    done = chat(client, logprobs=True, max_tokens=openai.NOT_GIVEN)
    assert done.choices[0].message.content == final.output_text and done.choices[0].finish_reason == "stop"
    assert [one.token_id for one in done.choices[0].logprobs.content] == tokens[:last]


def test_a_response_has_no_memory_of_others(client: OpenAI):
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="crow", input="x", previous_response_id="resp_1")


# Embeddings


def test_embeddings_are_those_of_the_model(client: OpenAI, server: Running):
    texts = ["The crow", "and the fox", "One two three"]
    done = client.embeddings.create(model="vector", input=texts)  # the client asks for base64
    own = server.app.state.models["vector"].model.embed(texts)
    for one, vector in zip(done.data, own, strict=True):
        assert one.embedding == pytest.approx(vector.tolist(), abs=1e-5)
    floats = client.embeddings.create(model="vector", input=texts[0], encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(own[0].tolist(), abs=1e-5)
    assert done.usage.prompt_tokens == done.usage.total_tokens > 3


def test_an_embedding_of_ids_is_refused_with_the_way_out(client: OpenAI):
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
        client.embeddings.create(model="vector", input=[[1, 2, 3]])


# Errors


def test_an_error_has_the_shape_that_the_client_reads(client: OpenAI):
    with pytest.raises(openai.BadRequestError) as told:
        complete(client, "The " * 400)
    error = told.value
    assert (error.status_code, error.code, error.type) == (
        400,
        "context_length_exceeded",
        "invalid_request_error",
    )
    assert "256" in error.message and error.request_id is None or error.request_id


def test_a_misspelled_field_is_named(client: OpenAI):
    with pytest.raises(openai.BadRequestError) as told:
        complete(client, extra_body={"temprature": 1})
    assert "did you mean 'temperature'" in told.value.message and told.value.param == "temprature"


def test_our_own_settings_go_in_the_extra_body(client: OpenAI, crow: Generator):
    done = complete(client, temperature=1.0, seed=3, extra_body={"top_k": 2, "repetition_penalty": 1.2})
    own = crow.generate("The crow", max_tokens=12, temperature=1.0, seed=3, top_k=2, repetition_penalty=1.2)
    assert done.choices[0].text == own.text


def test_a_harmless_field_is_named_in_a_header(client: OpenAI):
    raw = client.chat.completions.with_raw_response.create(
        messages=HELLO, max_tokens=2, user="ann", store=True, **GREEDY
    )
    assert set(raw.headers["x-transom-ignored"].split(", ")) == {"user", "store"}
    assert raw.parse().choices[0].message.role == "assistant"


@pytest.mark.parametrize(
    ("resource", "body"),
    [(ChatResource, ChatBody), (CompletionResource, CompletionBody), (EmbeddingResource, EmbeddingBody),
     (ResponseResource, ResponseBody)],
)  # fmt: skip
def test_every_field_that_the_client_can_send_is_known(resource: Any, body: Any):
    """Obeyed, ignored or refused by name; never 'not a field'."""
    transport = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    sent = set(inspect.signature(resource.create).parameters) - transport
    known = {field.alias or name for name, field in body.model_fields.items()}
    assert not sent - known - set(body.ignored) - set(body.fixed)


def test_the_lines_of_the_readme_run(server: Running):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "import OpenAI" in block)
    here = code.replace("http://127.0.0.1:8000", server.url).replace('"notes"', '"crow"')
    assert here.count(server.url) == 1 and '"crow"' in here
    ran = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and ran.stdout, ran.stderr
