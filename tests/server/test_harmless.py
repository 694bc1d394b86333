"""What clients send without meaning anything by it, and what they send back of what they were told."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI

from tests.server.conftest import Running
from transom.server.app import POSTS
from transom.server.schema import read
from transom.server_settings import LimitSettings

USER = [{"role": "user", "content": "The crow"}]
LEAST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/responses": {"input": "a"},
    "/v1/completions": {"prompt": "a"},
    "/v1/embeddings": {"input": "a"},
    "/translate": {"text": "a"},
    "/classify": {"text": "a"},
    "/tokenize": {"text": "a"},
    "/detokenize": {"tokens": [1]},
    "/ask": {"question": "a"},
    "/passage": {"document": "a", "start": 0, "end": 0},
    "/look": {"view": "tokens", "prompt": "a", "answer": [1]},
}


def taken(path: str, **more: Any) -> Any:
    asked, left_out = read(POSTS[path][0], {**LEAST[path], **more}, LimitSettings())
    assert not left_out
    return asked


@pytest.mark.parametrize("path", POSTS)
def test_null_is_not_given(path: str):
    body = POSTS[path][0]
    plain = taken(path)
    for name, field in body.model_fields.items():
        if name not in LEAST[path] and not field.is_required():
            assert taken(path, **{name: None}) == plain, name
    for name in (*body.ignored, *body.fixed):
        assert taken(path, **{name: None}) == plain, name


def said(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", **more}]}


def called(**more: Any) -> dict[str, Any]:
    call = {"function": {"name": "f", "arguments": "{}"}, **more}
    return {"messages": [{"role": "assistant", "tool_calls": [call]}]}


CHAT = "/v1/chat/completions"
NESTED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        CHAT,
        {"stream": True, "stream_options": {"include_usage": None}},
        {"stream": True, "stream_options": {}},
    ),
    (CHAT, said(content="a", name=None), said(content="a")),
    (
        CHAT,
        said(content=[{"type": "text", "text": "a", "refusal": None}]),
        said(content=[{"type": "text", "text": "a"}]),
    ),
    (CHAT, called(type=None, id=None, index=None), called()),
    (
        "/v1/responses",
        {"input": [{"type": None, "role": "user", "content": "a", "status": None}]},
        {"input": [{"role": "user", "content": "a"}]},
    ),
]


@pytest.mark.parametrize(("path", "sent", "meant"), NESTED)
def test_null_is_not_given_inside_either(path: str, sent: dict[str, Any], meant: dict[str, Any]):
    assert taken(path, **sent) == taken(path, **meant)


def test_null_in_a_schema_is_a_value():
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", None], "default": None}},
        "required": ["a"],
    }
    format = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": None}}
    assert taken("/v1/chat/completions", response_format=format).response_format.json_schema.schema_ == schema


@pytest.mark.parametrize(
    ("path", "numbers"),
    [
        ("/v1/chat/completions", {"max_tokens": 12.0, "n": 1.0, "seed": 42.0, "top_k": 3.0}),
        ("/v1/completions", {"max_tokens": 12.0, "logprobs": 2.0}),
        ("/v1/responses", {"max_output_tokens": 12.0}),
        ("/v1/embeddings", {"dimensions": 32.0}),
        ("/translate", {"beam": 4.0}),
    ],
)
def test_whole_numbers_may_have_a_point(path: str, numbers: dict[str, float]):
    whole = {name: int(value) for name, value in numbers.items()}
    assert taken(path, **numbers) == taken(path, **whole)


def test_a_broken_number_is_still_refused(http: httpx.Client):
    for wrong in (12.5, "12", True, -1.0):
        told = http.post("/v1/completions", json={"model": "crow", "prompt": "x", "max_tokens": wrong})
        assert told.status_code == 400 and told.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/completions", {"suffix": ""}),
        ("/v1/completions", {"best_of": 1}),
        ("/v1/completions", {"best_of": 1.0}),
        ("/v1/completions", {"top_p": 0}),
        ("/v1/chat/completions", {"top_logprobs": 0, "logprobs": False}),
        ("/v1/chat/completions", {"top_logprobs": 0}),
        ("/v1/chat/completions", {"tools": [], "tool_choice": "auto"}),
    ],
)
def test_what_changes_nothing_is_taken(path: str, more: dict[str, Any]):
    taken(path, **more)


def test_no_share_is_the_likeliest_token(http: httpx.Client):
    asked = {"model": "crow", "prompt": "The crow", "max_tokens": 24}
    greedy = http.post("/v1/completions", json={**asked, "temperature": 0}).json()["choices"][0]["text"]
    for seed in range(3):
        told = http.post(
            "/v1/completions", json={**asked, "temperature": 1.5, "top_p": 0, "seed": seed}
        ).json()
        assert told["choices"][0]["text"] == greedy


def test_an_answer_is_taken_back_with_all_its_fields(http: httpx.Client):
    """As the openai client, LangChain and LiteLLM put one together."""
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said: dict[str, Any] = {
        "role": "assistant", "content": "caw", "refusal": None, "annotations": [{"type": "url_citation"}],
        "audio": None, "function_call": None, "tool_calls": [call], "reasoning_content": "",
        "reasoning": None,
    }  # fmt: skip
    result = {"role": "tool", "tool_call_id": "c1", "content": "x"}
    asked = {"model": "crow", "max_tokens": 1}
    for more in ({}, {"reasoning_content": "hm"}, {"reasoning": "hm"}, {"content": None, "refusal": "No."}):
        messages = [*USER, {**said, **more}, result]
        told = http.post("/v1/chat/completions", json={**asked, "messages": messages})
        assert told.status_code == 200, told.text


# Schemas as pydantic and zod write them

NUMBER = {"type": "integer", "minimum": 0, "maximum": 9}


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


INNER = {"definitions": {"y": NUMBER}, **closed(k={"$ref": "#/definitions/x/definitions/y"})}
PLACES = closed(a={"$ref": "#/$defs/A%5Bint%5D"}, b={"$ref": "#/$defs/a~1b"})
MAP = {"type": "object", "additionalProperties": NUMBER}
ZOD: dict[str, tuple[dict[str, Any], str]] = {
    "a reference to a property": (
        closed(
            a={"type": "array", "items": closed(n=NUMBER), "maxItems": 2}, b={"$ref": "#/properties/a/items"}
        ),
        "",
    ),
    "definitions within definitions": (
        {"definitions": {"x": INNER}, **closed(a={"$ref": "#/definitions/x"})},
        "",
    ),
    "names with signs": ({"$defs": {"A[int]": NUMBER, "a/b": NUMBER}, **PLACES}, ""),
    "an unknown format": (closed(a={"enum": ["/x"], "format": "path"}), "response_format: format"),
    "a set": (
        {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 3},
        "response_format: uniqueItems",
    ),
    "names from a list": ({**MAP, "propertyNames": {"enum": ["a", "b"]}}, ""),
    "any name": ({**MAP, "propertyNames": {"type": "string"}, "maxProperties": 1}, ""),
}


@pytest.mark.parametrize("name", ZOD)
def test_schemas_are_kept_to(http: httpx.Client, name: str):
    import jsonschema

    schema, left_out = ZOD[name]
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked = {"model": "crow", "messages": USER, "seed": 1, "response_format": format, "max_tokens": 150}
    told = http.post("/v1/chat/completions", json=asked)
    assert told.status_code == 200, told.text
    assert told.headers.get("x-transom-ignored", "") == left_out
    choice = told.json()["choices"][0]
    if choice["finish_reason"] == "stop":
        jsonschema.validate(json.loads(choice["message"]["content"]), {**schema, "uniqueItems": False})


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "#/default/x", "default": {"x": {"pattern": "(a+)+"}}}, "$ref is"),
        ({"$ref": "#/nowhere"}, "$ref is"),
        ({"$ref": "other.json#/a"}, "$ref is"),
        (closed(a={"$id": "x:y", "$ref": "#/a"}), "$id"),
        ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"not": {"type": "string"}}, "not"),
    ],
)
def test_what_cannot_be_kept_to_is_refused(http: httpx.Client, schema: dict[str, Any], says: str):
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    told = http.post(
        "/v1/chat/completions",
        json={"model": "crow", "messages": USER, "response_format": format, "max_tokens": 3},
    )
    assert told.status_code == 400 and says in told.json()["error"]["message"]


# Embeddings


def test_blank_texts_have_a_vector(server: Running):
    with OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        texts = ["The crow", " ", "\n", ""]
        done = client.embeddings.create(model="vector", input=texts)
        assert client.embeddings.create(model="vector", input="").data[0].embedding
    vectors = np.array([one.embedding for one in done.data])
    assert np.isfinite(vectors).all() and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    own = server.app.state.models["vector"].model.embed(texts)
    assert np.allclose(vectors, own, atol=1e-5)


def test_a_long_text_is_cut_where_that_is_asked_for(http: httpx.Client, server: Running):
    model = server.app.state.models["vector"].model
    long = "The crow and the fox. " * 40
    asked = {"model": "vector", "input": [long, "x"]}
    assert http.post("/v1/embeddings", json=asked).status_code == 400
    told = http.post("/v1/embeddings", json={**asked, "truncate_prompt_tokens": -1}).json()
    assert np.allclose(told["data"][0]["embedding"], model.embed(long, cut=True), atol=1e-5)
    assert told["usage"]["prompt_tokens"] == 64 + len(model.tokenizer.framed("x"))
    short = http.post("/v1/embeddings", json={**asked, "truncate_prompt_tokens": 8}).json()
    assert short["usage"]["prompt_tokens"] == 8 + len(model.tokenizer.framed("x"))
    few = http.post("/v1/embeddings", json={**asked, "truncate_prompt_tokens": 2})
    assert few.status_code == 400 and "nothing is left" in few.text
    cut = http.post("/classify", json={"model": "sorter", "text": long, "truncate_prompt_tokens": -1})
    assert cut.status_code == 200
