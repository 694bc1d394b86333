"""Streams: the pieces are the whole, no frame is cut, and whoever leaves frees what they held."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from tests.server.conftest import Running, serving
from transom.server.worker import Worker

COMPLETE = "/v1/completions"
HEAD = f"POST {COMPLETE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
LONG: dict[str, Any] = {
    "model": "crow",
    "prompt": "The crow",
    "max_tokens": 250,
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> Iterator[Running]:
    """A server whose slots nobody else uses: two rows, a short queue."""
    with serving(folders, "crow", max_rows=2, **{"limits.queue": 8}) as running:
        yield running


def frames(response: httpx.Response) -> list[Any]:
    """The events of a stream, each of which must be whole JSON in whole UTF-8; [DONE] last and once."""
    parts = response.content.split(b"\n\n")
    assert parts.pop() == b"" and parts.pop() == b"data: [DONE]"
    return [json.loads(part.removeprefix(b"data: ").decode("utf-8", "strict")) for part in parts]


def wait_until(done: Any, seconds: float = 3.0) -> float:
    """How long it took; fails when it did not happen."""
    began = time.perf_counter()
    while not done():
        assert time.perf_counter() - began < seconds, "it did not happen in time"
        time.sleep(0.005)
    return time.perf_counter() - began


@settings(max_examples=scaled(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(max_size=12), seed=st.integers(0, 99), temperature=st.sampled_from([0, 0.7, 1.5]),
    stop=st.lists(st.sampled_from(["e", "\ufffd", "he", "<|", " ", "世"]), max_size=3), n=st.integers(1, 3),
    model=st.sampled_from(["crow", "lstm"]), logprobs=st.sampled_from([None, 0, 2]),
)  # fmt: skip
def test_the_pieces_joined_are_the_whole(
    http: httpx.Client, prompt: str, stop: list[str], n: int, **more: Any
):
    body = {"prompt": prompt, "stop": stop, "n": n, "max_tokens": 20, **more}
    whole = http.post(COMPLETE, json=body).json()
    response = http.post(COMPLETE, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, last = frames(response)
    for choice in whole["choices"]:
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in own) == choice["text"]
        assert [one["finish_reason"] for one in own if one["finish_reason"]] == [choice["finish_reason"]]
        if more["logprobs"] is not None:
            joined = [token for one in own for token in one["logprobs"]["token_logprobs"]]
            assert joined == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)
            offsets = [offset for one in own for offset in one["logprobs"]["text_offset"]]
            assert offsets == choice["logprobs"]["text_offset"]
    assert last["usage"] == whole["usage"]


def test_going_on_after_given_tokens_is_going_on(http: httpx.Client):
    """The page's way to branch: the first k tokens given back, the rest comes as it did before."""
    body = {
        "model": "crow",
        "prompt": "The crow",
        "max_tokens": 24,
        "temperature": 1.0,
        "seed": 7,
        "logprobs": 1,
    }
    whole = http.post(COMPLETE, json=body).json()["choices"][0]
    ids = [one["token_id"] for one in whole["logprobs"]["content"]]
    for k in (1, 5, 23):
        rest = http.post(COMPLETE, json={**body, "prefix_tokens": ids[:k], "max_tokens": 24 - k}).json()
        choice = rest["choices"][0]
        assert [one["token_id"] for one in choice["logprobs"]["content"]] == ids[k:]
        assert whole["text"].endswith(choice["text"]) and rest["usage"]["completion_tokens"] == 24 - k
        streamed = http.post(
            COMPLETE, json={**body, "prefix_tokens": ids[:k], "max_tokens": 24 - k, "stream": True}
        )
        assert "".join(frame["choices"][0]["text"] for frame in frames(streamed)) == choice["text"]


def send(server: Running, body: dict[str, Any]) -> socket.socket:
    """A request on a bare socket, so that it can be left at any byte."""
    data = json.dumps(body).encode()
    wire = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    wire.sendall(HEAD + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return wire


def idle(server: Running) -> bool:
    return server.in_flight() == 0 and server.app.state.in_flight == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("after", [0, 1, 40, 2000])
def test_who_leaves_while_it_is_written_frees_the_slot(alone: Running, stream: bool, after: int):
    wire = send(alone, {**LONG, "stream": stream, "n": 2})
    if stream and after:
        read = b""
        while len(read) < after:
            read += wire.recv(after - len(read))
    else:
        wait_until(lambda: alone.in_flight() > 0)
    wire.close()
    assert wait_until(lambda: idle(alone)) < 1.5
    engine: Any = alone.app.state.models["crow"].worker.engine
    assert not engine._states and engine.runner.free_tokens() == engine._pool


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_while_waiting_leaves_the_queue(alone: Running, stream: bool):
    running = [send(alone, {**LONG, "stream": True}) for _ in range(2)]
    waiting = [send(alone, {**LONG, "stream": stream}) for _ in range(3)]
    worker = alone.app.state.models["crow"].worker
    wait_until(lambda: worker.in_flight >= 4 or worker.in_flight == 0)
    for wire in [*waiting, *running]:
        wire.close()
    wait_until(lambda: idle(alone))


def test_coming_and_going_leaks_nothing(alone: Running):
    for round in range(40):
        wire = send(alone, {**LONG, "stream": round % 2 == 0})
        if round % 3:
            time.sleep(0.002 * (round % 5))
        wire.close()
    wait_until(lambda: idle(alone), 5)
    worker: Worker = alone.app.state.models["crow"].worker
    assert not worker._listeners and not worker._inbox
    with alone.client() as client:
        whole = client.post(COMPLETE, json={**LONG, "max_tokens": 8}).json()["choices"][0]["text"]
    own = (
        alone.app.state.models["crow"]
        .model.generate("The crow", max_tokens=8, temperature=0, ignore_eos=True)
        .text
    )
    assert whole == own


def test_half_a_request_frees_nothing_it_never_took(alone: Running):
    wire = socket.create_connection(("127.0.0.1", alone.port), timeout=10)
    wire.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
    time.sleep(0.05)
    wire.close()
    wait_until(lambda: idle(alone) and not alone.server.server_state.connections)


def test_one_connection_serves_many_requests(alone: Running):
    with alone.client() as client:
        for _ in range(5):
            response = client.post(COMPLETE, json={**LONG, "max_tokens": 4, "stream": True})
            assert "".join(frame["choices"][0]["text"] for frame in frames(response))
        assert client.get("/health").status_code == 200


# An engine that breaks


class Breaking:
    """An engine that raises in its third step, the first time it is made."""

    made = 0

    def __init__(self, real: Any) -> None:
        self.real, self.steps = real, 0
        Breaking.made += 1
        self.number = Breaking.made

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def step(self) -> list[Any]:
        self.steps += 1
        if self.number == 1 and self.steps == 3:
            raise MemoryError("the secret reason")
        return self.real.step()


def test_an_engine_that_breaks_is_made_anew(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    from transom.inference.generator import Generator

    real = Generator.engine
    Breaking.made = 0
    monkeypatch.setattr(
        Generator, "engine", lambda self, *given, **more: Breaking(real(self, *given, **more))
    )
    with serving(folders, "crow") as server, server.client() as client:
        broken = client.post(COMPLETE, json={**LONG, "max_tokens": 20})
        assert (
            broken.status_code == 503
            and broken.json()["error"]["retryable"]
            and broken.headers["retry-after"]
        )
        assert "secret" not in broken.text
        seen = {client.get("/health").status_code}
        while 200 not in seen:
            assert client.post(COMPLETE, json=LONG).status_code in (200, 503)
            seen.add(client.get("/health").status_code)
        assert client.post(COMPLETE, json={**LONG, "max_tokens": 8}).status_code == 200
        assert server.app.state.models["crow"].worker.restarts == 1
        assert 'transom_engine{figure="restarts",model="crow"} 1.0' in client.get("/metrics").text


def test_a_stream_that_breaks_ends_with_an_error(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    from transom.inference.generator import Generator

    real = Generator.engine
    Breaking.made = 0
    monkeypatch.setattr(
        Generator, "engine", lambda self, *given, **more: Breaking(real(self, *given, **more))
    )
    with serving(folders, "crow") as server, server.client() as client:
        response = client.post(COMPLETE, json={**LONG, "stream": True})
        assert response.status_code == 200
        last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert (
            last["error"]["type"] == "server_error"
            and last["error"]["retryable"]
            and "[DONE]" not in response.text
        )


def test_a_request_that_fails_inside_leaves_its_neighbour_alone(folders: dict[str, Path]):
    """Something raises inside one sequence; a greedy stream beside it stays the same."""
    from transom.inference.request import Request

    with serving(folders, "crow") as server:
        quiet = (
            server.app.state.models["crow"]
            .model.generate("One two", max_tokens=60, temperature=0, ignore_eos=True)
            .text
        )
        push = Request.push

        def failing(self: Request, token: int) -> str:
            if self.params.seed == 666 and len(self.tokens) == 2:
                raise RuntimeError("at /usr/secret/place 0xdeadbeef")
            return push(self, token)

        async def both() -> tuple[httpx.Response, httpx.Response]:
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                canary = client.post(
                    COMPLETE, json={**LONG, "prompt": "One two", "max_tokens": 60, "stream": True}
                )
                bad = client.post(COMPLETE, json={**LONG, "temperature": 1.0, "seed": 666})
                return tuple(await asyncio.gather(canary, bad))  # type: ignore[return-value]

        Request.push = failing  # type: ignore[method-assign]
        try:
            canary, bad = asyncio.run(both())
        finally:
            Request.push = push  # type: ignore[method-assign]
    assert "".join(frame["choices"][0]["text"] for frame in frames(canary)) == quiet
    assert bad.status_code == 500 and "secret" not in bad.text and "0x" not in bad.text
