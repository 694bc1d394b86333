"""Bad bodies: each is a 4xx in OpenAI's shape, one line, at once, with nothing from inside the server."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any

import httpx
import pytest

from tests.server.conftest import Running

INSIDE = re.compile(
    r"0x[0-9a-f]{6,}|Traceback|File \"|/(?:usr|home|root|tmp|work|site-packages)/|\.py\b|pydantic", re.I
)
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "x"}]
NUMBERS = (0, -1, 10**9, 1.5, "3", True, [], {}, 10**400)


def complete(**more: Any) -> tuple[str, Any]:
    return COMPLETE, {"model": "crow", "prompt": "x", "max_tokens": 2, **more}


def chat(**more: Any) -> tuple[str, Any]:
    return CHAT, {"model": "crow", "messages": USER, "max_tokens": 2, **more}


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


BAD: list[tuple[str, Any]] = [
    *[complete(n=value) for value in NUMBERS],
    *[complete(max_tokens=value) for value in NUMBERS],
    *[complete(top_k=value) for value in (0, -1, 1.5, "3", True)],
    *[complete(logprobs=value) for value in (-1, 21, 10**9, "3", True)],
    *[complete(temperature=value) for value in (-0.1, 101, "1", True, [])],
    *[complete(top_p=value) for value in (1.1, -1, "1")],
    *[complete(min_p=value) for value in (-0.1, 1.1)],
    *[complete(presence_penalty=value) for value in (-2.1, 2.1, "1")],
    *[complete(frequency_penalty=value) for value in (-2.1, 2.1)],
    *[complete(repetition_penalty=value) for value in (0, -1, 101)],
    *[complete(seed=value) for value in (1.5, "1", 2**63, -(2**63) - 1, True)],
    *[complete(stop=value) for value in ("", ["a"] * 5, ["a" * 257], ["é" * 129], [1], {}, [[]], [""])],
    *[
        complete(logit_bias=value)
        for value in (
            {"x": 1},
            {"1": 101},
            {"1": "1"},
            {"-1": 1},
            [1],
            {"²": 1},
            {"99999": 1},
            {str(at): 1 for at in range(301)},
        )
    ],
    *[
        complete(prompt=value)
        for value in (
            None,
            5,
            [],
            [[]],
            [1.5],
            ["a", 5],
            {},
            [10**9],
            [-1],
            ["a"] * 33,
            True,
            ["a", [1]],
            "x" * 4000,
            [70] * 300,
        )
    ],
    *[complete(prefix_tokens=value) for value in ("x", [-1], [10**9], [1.5], [70] * 300)],
    *[complete(stream=value) for value in ("yes", 1)],
    complete(stream_options={"include_usage": True}),
    complete(stream=True, stream_options={"include_usag": True}),
    complete(max_tokens=256),
    complete(max_tokens=255, prompt="The crow and the fox"),
    complete(n=8, prompt=["a"] * 32),
    complete(echo=True, logprobs=1),
    complete(suffix="x"),
    complete(best_of=3),
    complete(model=5),
    complete(model=""),
    complete(model="x" * 300),
    complete(model=None),
    complete(unheard=1),
    complete(**{"__class__": "x"}),
    complete(**{"x" * 5000: 1}),
    (COMPLETE, {"model": "crow"}),
    (COMPLETE, {}),
    (COMPLETE, []),
    (COMPLETE, "x"),
    (COMPLETE, 5),
    (COMPLETE, None),
    *[
        chat(messages=value)
        for value in (
            [],
            None,
            "x",
            {},
            [5],
            [[]],
            [{}],
            [{"role": "user"}],
            USER * 1001,
            [{"content": "x"}],
            [{"role": "boss", "content": "x"}],
            [{"role": "b" * 100_000, "content": "x"}],
            [{"role": "user", "content": "x", "y" * 100_000: 1}],
            [{"role": "user", "content": 5}],
            [{"role": "user", "content": [{"type": "image_url"}]}],
            [{"role": "tool", "content": "x"}],
            [{"role": "user", "content": "x", "weight": 1}],
            [{"role": "user", "content": None}],
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}],
            [{"role": "user", "content": "word " * 1000}],
        )
    ],
    chat(top_logprobs=2),
    chat(logprobs=True, top_logprobs=21),
    chat(logprobs=1),
    chat(n=9),
    chat(max_tokens=3, max_completion_tokens=4),
    chat(max_completion_tokens=0),
    chat(tool_choice="required"),
    chat(tools=[{"type": "function"}]),
    chat(tools=[{"type": "code"}]),
    chat(tools=5),
    chat(tools=[{"type": "function", "function": {"name": "a b"}}]),
    chat(tools=[{"type": "function", "function": {"name": "f"}}] * 129),
    chat(audio={}),
    chat(modalities=["audio"]),
    chat(functions=[{"name": "f"}]),
    chat(prediction={"content": "x"}),
    *[
        chat(response_format=value)
        for value in (
            5,
            {},
            {"type": "xml"},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["x" * 70_000]}}},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://127.0.0.1/x"}}},
        )
    ],
    ("/v1/responses", {"model": "crow", "input": []}),
    ("/v1/responses", {"model": "crow"}),
    ("/v1/responses", {"model": "crow", "input": "x", "background": True}),
    ("/v1/responses", {"model": "crow", "input": "x", "truncation": "auto"}),
    ("/v1/responses", {"model": "crow", "input": [{"type": "computer_call"}]}),
    ("/v1/responses", {"model": "crow", "input": "x", "tools": [{"type": "web_search"}]}),
    *[
        ("/v1/embeddings", {"model": "vector", "input": value})
        for value in ([], 5, [1], ["a"] * 1025, "word " * 200)
    ],
    ("/v1/embeddings", {"model": "vector", "input": "x", "dimensions": 5}),
    ("/v1/embeddings", {"model": "vector", "input": "x", "encoding_format": "hex"}),
    *[
        ("/translate", {"model": "moses", "text": value})
        for value in ("", [], 5, ["a"] * 33, "abc " * 30, ["a", ""])
    ],
    *[
        ("/translate", {"model": "moses", "text": "abc", "beam": value})
        for value in (0, 17, 10**9, "2", True)
    ],
    *[("/translate", {"model": "moses", "text": "abc", "max_tokens": value}) for value in (0, 49, 10**9)],
    ("/translate", {"model": "moses", "text": "abc", "length_penalty": 11}),
    ("/translate", {"model": "crow", "text": "abc"}),
    *[("/classify", {"model": "sorter", "text": "x", "reject_below": value}) for value in (-1, 2, "x")],
    ("/classify", {"model": "vector", "text": "x"}),
    ("/classify", {"model": "sorter", "text": "word " * 200}),
    ("/tokenize", {"model": "crow"}),
    ("/tokenize", {"model": "crow", "text": "x", "messages": USER}),
    ("/tokenize", {"model": "plain", "messages": USER}),
    ("/tokenize", {"model": "crow", "text": 5}),
    ("/detokenize", {"model": "crow"}),
    ("/detokenize", {"model": "crow", "tokens": "1 2"}),
    ("/detokenize", {"model": "crow", "tokens": [-1]}),
    ("/detokenize", {"model": "crow", "tokens": [10**9]}),
    ("/memory", {"text": ""}),
    ("/memory", {"text": "x" * 9000}),
    ("/memory", {"text": "x" * 1001}),
    ("/memory", {}),
    ("/memory/recall", {"text": 5}),
    ("/memory/recall", {"text": "x", "k": 0}),
]


def checked(response: httpx.Response, *codes: int) -> dict[str, Any]:
    """The error of a response that must be one, in OpenAI's shape and with nothing from inside."""
    assert response.status_code in codes, response.text[:300]
    error = response.json()["error"]
    assert set(error) <= {"message", "type", "param", "code", "retryable"} and error["message"]
    assert "\n" not in error["message"] and len(error["message"]) < 700
    assert not INSIDE.search(response.text), response.text[:500]
    return error


def label(case: tuple[str, Any]) -> str:
    return f"{case[0]} {str(case[1])[:60]}"


@pytest.mark.parametrize("case", BAD, ids=label)
def test_a_bad_body_is_the_clients_own_mistake(http: httpx.Client, case: tuple[str, Any]):
    path, body = case
    checked(http.post(path, content=json.dumps(body), headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"model":"crow","prompt":NaN}',
        b'{"model":"crow","temperature":Infinity}',
        b'{"prompt":"\\ud800"}',
        b'{"a":1}trailing',
        b"[" * 100_000,
        b'{"a":' * 500,
        b"null",
        b'"text"',
        b"\x00",
        b'{"model":"crow","prompt":"x","temperature":1e999}',
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
def test_what_is_not_json_is_refused(http: httpx.Client, body: bytes):
    checked(http.post(COMPLETE, content=body, headers={"content-type": "application/json"}), 400)


def test_brackets_are_counted(http: httpx.Client):
    deep = checked(http.post(COMPLETE, json={"model": "crow", "prompt": nested(80)}), 400)
    assert "nested deeper than 64" in deep["message"]


def test_a_body_that_says_it_is_too_large_is_not_read(server: Running):
    """Refused on its header alone, while the body is still to come."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as wire:
        wire.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 1073741824\r\n\r\n")  # fmt: skip
        answer = wire.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer


def test_a_body_that_does_not_say_is_cut_at_the_limit(server: Running):
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as wire:
        wire.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        try:
            for _ in range(1000):
                wire.sendall(chunk)
                sent += 65536
        except OSError:
            pass
    assert 4_000_000 <= sent < 12_000_000  # what the limit and the buffers between us hold


@pytest.mark.parametrize(
    ("headers", "code"),
    [({"content-type": "text/plain"}, 415), ({"content-type": "multipart/form-data; boundary=x"}, 415),
     ({"content-type": "application/x-www-form-urlencoded"}, 415), ({}, 415),
     ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
     ({"content-type": "application/json", **{f"x-{at}": "1" for at in range(80)}}, 431)],
)  # fmt: skip
def test_headers_are_checked(server: Running, headers: dict[str, str], code: int):
    with httpx.Client(base_url=server.url) as bare:
        checked(bare.post(COMPLETE, content=b'{"model":"crow","prompt":"x"}', headers=headers), code)


def test_a_header_that_never_ends_is_refused(server: Running):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as wire:
        wire.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000)
        assert wire.recv(4096).startswith(b"HTTP/1.1 4")


def test_half_a_million_stop_strings_cost_nothing(http: httpx.Client):
    body = json.dumps({"model": "crow", "prompt": "x", "stop": ["abc"] * 500_000}).encode()
    began = time.perf_counter()
    checked(http.post(COMPLETE, content=body, headers={"content-type": "application/json"}), 400)
    assert time.perf_counter() - began < 2


def test_nothing_of_it_harmed_the_server(http: httpx.Client, server: Running):
    assert http.get("/health").json() == {"status": "ok", "failed": []}
    assert all(model.worker.restarts == 0 for model in server.app.state.models.values())


@pytest.mark.parametrize("room", [0, 1, -1])
def test_the_context_is_filled_to_the_last_token(http: httpx.Client, room: int):
    prompt = [70] * 250
    response = http.post(
        COMPLETE, json={"model": "crow", "prompt": prompt, "max_tokens": 6 - room, "ignore_eos": True}
    )
    if room < 0:
        error = checked(response, 400)
        assert (
            (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
            and "250" in error["message"]
            and "256" in error["message"]
        )
    else:
        assert response.json()["usage"]["completion_tokens"] == 6 - room


def test_unknown_paths_and_methods(http: httpx.Client):
    checked(http.get("/v2/models"), 404)
    assert http.get("/page/../settings.py").status_code == http.get("/page/%2e%2e/app.py").status_code == 404
    checked(http.get(COMPLETE), 405)
    checked(http.put(COMPLETE, json={}), 405)
    checked(http.delete("/health"), 405)
    checked(http.post("/memory/99999", json={}), 405)
    checked(http.delete("/memory/99999"), 400)
