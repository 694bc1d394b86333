"""Clients that take their time: every wait has an absolute end, and meanwhile the others do not notice."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Running, serving

pytestmark = pytest.mark.alone

SHORT = {"deadlines.header": 0.6, "deadlines.body": 0.8, "deadlines.idle": 0.5, "deadlines.reader": 0.7}
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 60\r\n"
)
GREEDY = {"model": "crow", "prompt": "The crow", "max_tokens": 100, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def hurried(folders: dict[str, Path]) -> Iterator[Running]:
    with serving(folders, "crow", **SHORT) as running:
        yield running


def connect(server: Running, **options: int) -> socket.socket:
    wire = socket.socket()
    for name, value in options.items():
        wire.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    wire.settimeout(5)
    wire.connect(("127.0.0.1", server.port))
    return wire


def healthy(wire: socket.socket, n: int = 1) -> bool:
    """Read `n` answers of /health to their ends; whether all are good."""
    got = b""
    while got.count(b'"failed":[]}') < n and (more := wire.recv(65536)):
        got += more
    return got.count(b"HTTP/1.1 200") == n


def ended(wire: socket.socket) -> bool:
    """Whether the server has closed, however it did; what it sent before is read."""
    try:
        while wire.recv(65536):
            pass
        return True
    except TimeoutError:
        return False
    except OSError:
        return True


def trickle(wire: socket.socket, data: bytes, every: float) -> float:
    """Send a byte at a time until the server has had enough; how long that took."""
    began = time.perf_counter()
    wire.settimeout(every)
    for byte in data:
        try:
            wire.sendall(bytes([byte]))
            if wire.recv(65536) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.perf_counter() - began


def test_silence_is_ended(hurried: Running):
    began = time.perf_counter()
    with connect(hurried) as wire:
        assert ended(wire)
    assert 0.5 < time.perf_counter() - began < 2


def test_a_header_in_drops_is_ended(hurried: Running):
    with connect(hurried) as wire:
        assert 0.5 < trickle(wire, HEAD * 2, 0.05) < 2


def test_a_body_in_drops_is_ended(hurried: Running):
    with connect(hurried) as wire:
        wire.sendall(HEAD + b"\r\n")
        assert 0.7 < trickle(wire, b" " * 60, 0.05) < 2.5
    with connect(hurried) as wire:
        wire.sendall(HEAD.replace(b"Content-Length: 60", b"Transfer-Encoding: chunked") + b"\r\n")
        assert 0.7 < trickle(wire, b"1\r\n \r\n" * 30, 0.03) < 2.5


def test_a_body_that_is_refused_early_does_not_go_on_for_ever(hurried: Running):
    with connect(hurried) as wire:
        wire.sendall(HEAD.replace(b"application/json", b"text/plain") + b"\r\n")
        assert b" 415 " in wire.recv(4096)
        assert trickle(wire, b" " * 59, 0.05) < 2.5


def test_an_idle_connection_is_ended(hurried: Running):
    with connect(hurried) as wire:
        wire.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert healthy(wire)
        began = time.perf_counter()
        assert ended(wire)
        assert 0.3 < time.perf_counter() - began < 2


def test_the_second_request_of_a_connection_has_its_own_deadline(hurried: Running):
    with connect(hurried) as wire:
        for _ in range(4):
            time.sleep(0.3)  # together more than any one deadline
            wire.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert healthy(wire)
        assert 0.5 < trickle(wire, HEAD * 2, 0.05) < 2


def test_an_answer_may_take_longer_than_a_request(hurried: Running):
    """Deadlines are for what the client does: a long answer to a quick request goes on."""
    with hurried.client() as client:
        began = time.perf_counter()
        while time.perf_counter() - began < 1.2:
            assert client.post("/v1/completions", json=GREEDY).status_code == 200


def test_who_does_not_read_is_ended(folders: dict[str, Path]):
    """The send buffer fills, the clock runs out, and the sequence is aborted."""
    body = json.dumps({**GREEDY, "max_tokens": 230, "n": 8, "logprobs": 20, "stream": True}).encode()
    with serving(folders, "crow", **SHORT) as server, connect(server, SO_RCVBUF=4096) as wire:
        wire.sendall(HEAD.replace(b"60", str(len(body)).encode()) + b"\r\n" + body)
        limit = time.perf_counter() + 8
        while not server.app.state.in_flight and time.perf_counter() < limit:
            time.sleep(0.01)
        while server.in_flight() + server.app.state.in_flight and time.perf_counter() < limit:
            time.sleep(0.02)
        assert server.in_flight() + server.app.state.in_flight == 0
        read = b""
        while not ended(wire) and time.perf_counter() < limit:
            read = wire.recv(65536)
        assert b"[DONE]" not in read


def test_a_request_has_an_end(folders: dict[str, Path]):
    with serving(folders, "crow", **{"deadlines.request": 0.03}) as server, server.client() as client:
        whole = client.post("/v1/completions", json={**GREEDY, "n": 8, "max_tokens": 240})
        assert whole.status_code == 504 and "--deadlines.request" in whole.json()["error"]["message"]
        stream = client.post("/v1/completions", json={**GREEDY, "n": 8, "max_tokens": 240, "stream": True})
        last = json.loads(stream.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert "--deadlines.request" in last["error"]["message"]
        limit = time.perf_counter() + 2
        while server.in_flight() and time.perf_counter() < limit:
            time.sleep(0.01)
        assert server.in_flight() == 0


def test_two_hundred_slow_ones_are_not_noticed(hurried: Running):
    """200 connections of a byte at a time, while a stream stays the same and /health stays fast."""
    quiet = (
        hurried.app.state.models["crow"]
        .model.generate("The crow", max_tokens=100, temperature=0, ignore_eos=True)
        .text
    )
    slow = [connect(hurried) for _ in range(200)]
    stop, slowest, texts = threading.Event(), [0.0], []

    def drip() -> None:
        at = 0
        while not stop.is_set():
            for wire in slow:
                try:
                    wire.sendall(HEAD[at % len(HEAD) : at % len(HEAD) + 1])
                except OSError:
                    continue
            at += 1
            stop.wait(0.1)

    dripping = threading.Thread(target=drip)
    dripping.start()
    began = time.perf_counter()
    try:
        with hurried.client() as client:
            while time.perf_counter() - began < 1.0:
                texts.append(client.post("/v1/completions", json=GREEDY).json()["choices"][0]["text"])
                asked = time.perf_counter()
                assert client.get("/health").status_code == 200
                slowest[0] = max(slowest[0], time.perf_counter() - asked)
        limit = time.perf_counter() + 5
        while len(hurried.server.server_state.connections) > 1 and time.perf_counter() < limit:
            time.sleep(0.02)
        assert len(hurried.server.server_state.connections) <= 1
    finally:
        stop.set()
        dripping.join()
        for wire in slow:
            wire.close()
    assert set(texts) == {quiet} and slowest[0] < 1.0


def test_too_many_connections_are_told_so(folders: dict[str, Path]):
    with serving(folders, "crow", **{"limits.connections": 5}) as server:
        kept = [connect(server) for _ in range(5)]
        time.sleep(0.1)
        with connect(server) as wire:
            wire.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = wire.recv(4096)
            assert b" 429 " in answer and b"retry-after" in answer
            assert ended(wire)
        flood = [connect(server) for _ in range(30)]
        time.sleep(0.1)
        assert len(server.server.server_state.connections) <= 21
        for wire in [*kept, *flood]:
            wire.close()
        limit = time.perf_counter() + 2
        while server.server.server_state.connections and time.perf_counter() < limit:
            time.sleep(0.02)
        with server.client() as client:
            assert client.get("/health").status_code == 200


def test_a_pile_of_requests_on_one_connection_is_answered_in_turn(hurried: Running):
    one: Any = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(hurried) as wire:
        wire.sendall(one * 50)
        assert healthy(wire, 50)
        assert ended(wire)
