"""Many at once: only 200 and 429, every 200 is the text of a quiet run, and /health answers all the while."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import Running, serving
from tests.server.test_drain import process
from transom.server.body import parse
from transom.server_settings import LimitSettings

pytestmark = pytest.mark.alone

PROMPTS = ["The crow", "One two", "and the fox", "'Cheese'", "three four", "naïve", "世界", "said he"]


async def storm(url: str, n: int, max_tokens: int) -> tuple[list[tuple[str, int, str, str]], list[float]]:
    """n clients at once, half of them streaming: (prompt, status, text, retry-after); times of /health."""
    lags: list[float] = []
    done = asyncio.Event()

    async def one(client: httpx.AsyncClient, at: int) -> tuple[str, int, str, str]:
        prompt = PROMPTS[at % len(PROMPTS)]
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": at % 2 == 0,
        }
        answer = await client.post("/v1/completions", json=body)
        again = answer.headers.get("retry-after", "")
        if answer.status_code != 200:
            return prompt, answer.status_code, "", again
        if not body["stream"]:
            return prompt, 200, answer.json()["choices"][0]["text"], again
        pieces = [part.removeprefix("data: ") for part in answer.text.split("\n\n") if part][:-1]
        return prompt, 200, "".join(json.loads(piece)["choices"][0]["text"] for piece in pieces), again

    async def watch(client: httpx.AsyncClient) -> None:
        while not done.is_set():
            began = time.perf_counter()
            assert (await client.get("/health")).status_code == 200
            lags.append(time.perf_counter() - began)
            await asyncio.sleep(0.02)

    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client,
        httpx.AsyncClient(base_url=url, timeout=120) as other,
    ):
        await other.get("/health")
        watching = asyncio.create_task(watch(other))
        answers = await asyncio.gather(*(one(client, at) for at in range(n)))
        done.set()
        await watching
    return answers, lags


def check(server: Running, answers: list[tuple[str, int, str, str]], max_tokens: int) -> Counter[int]:
    model = server.app.state.models["crow"].model
    quiet = {
        p: model.generate(p, max_tokens=max_tokens, temperature=0, ignore_eos=True).text for p in PROMPTS
    }
    codes = Counter(status for _, status, _, _ in answers)
    assert set(codes) <= {200, 429} and codes[200] > 0
    for prompt, status, text, again in answers:
        if status == 200:
            assert text == quiet[prompt]
        else:
            assert 1 <= int(again) <= 60
    return codes


def test_a_crowd_is_answered_or_told_to_come_again(folders: dict[str, Path]):
    with serving(folders, "crow", max_rows=8, **{"limits.queue": 16}) as server:
        worker, begin = server.app.state.models["crow"].worker, threading.Event()
        worker._post(lambda _: begin.wait(20))  # no engine is so fast that these 60 are not too many at once

        def begin_when_all_are_there() -> None:
            while worker.in_flight < 60:
                time.sleep(0.005)
            begin.set()

        threading.Thread(target=begin_when_all_are_there, daemon=True).start()
        answers, lags = asyncio.run(storm(server.url, 60, 12))
        codes = check(server, answers, 12)
        assert codes[429] and sorted(lags)[len(lags) // 2] < 1.0
        assert server.in_flight() == 0


PROBE = """
import http.client, json, select, sys, time
wire, times = http.client.HTTPConnection(sys.argv[1], timeout=60), []
while not select.select([sys.stdin], [], [], 0.02)[0]:
    began = time.perf_counter()
    wire.request("GET", "/health")
    assert wire.getresponse().read()
    times.append(time.perf_counter() - began)
print(json.dumps(times))
"""
"""Asks for /health until its input ends; a process of its own, so as to time the server only."""


@pytest.mark.slow
def test_five_hundred_clients(folders: dict[str, Path], server: Running):
    with process(str(folders["crow"])) as (_, url, _):
        probe = subprocess.Popen([sys.executable, "-c", PROBE, url.removeprefix("http://")],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        answers, _ = asyncio.run(storm(url, 500, 32))
        times = sorted(json.loads(probe.communicate("over")[0]))
    check(server, answers, 32)
    assert times[int(0.99 * (len(times) - 1))] < 0.2, times[-5:]


def test_one_key_cannot_keep_the_others_waiting(folders: dict[str, Path]):
    """A short request of one key goes in turn with the queue of another, not behind all of it."""
    keys = ("sk-transom-greedy-000000", "sk-transom-modest-000000")

    async def both(server: Running) -> int:
        async def ask(client: httpx.AsyncClient, key: str, max_tokens: int) -> float:
            body = {"prompt": "The crow", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
            answer = await client.post(
                "/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}
            )
            assert answer.status_code == 200
            return time.perf_counter()

        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            many = [asyncio.create_task(ask(client, keys[0], 60)) for _ in range(12)]
            while server.app.state.models["crow"].worker.in_flight < 12:
                await asyncio.sleep(0.005)
            modest = await ask(client, keys[1], 4)
            return sum(1 for at in await asyncio.gather(*many) if at > modest)

    with serving(folders, "crow", keys=keys, max_rows=2) as server:
        assert asyncio.run(both(server)) >= 6


def test_a_megabyte_does_not_hold_the_loop(folders: dict[str, Path]):
    """Tokenising happens beside the event loop; /health answers meanwhile."""

    async def measure(server: Running) -> tuple[list[float], int]:
        body: dict[str, Any] = {"model": "crow", "text": "The crow and the fox. " * 40_000}
        data, lags = json.dumps(body).encode(), []
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            await client.get("/health")
            work = asyncio.create_task(
                client.post("/tokenize", content=data, headers={"content-type": "application/json"})
            )
            while not work.done():
                began = time.perf_counter()
                await client.get("/health")
                lags.append(time.perf_counter() - began)
                await asyncio.sleep(0.01)
            return lags, (await work).json()["n_tokens"]

    with serving(folders, "crow") as server:
        lags, n_tokens = asyncio.run(measure(server))
    assert n_tokens > 100_000 and sorted(lags)[len(lags) // 2] < 0.5


def test_small_answers_do_not_wait_for_each_other(server: Running):
    """On one connection; two writes with Nagle's algorithm between them would take 40 ms each time."""
    wire, times = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10), []
    for _ in range(21):
        began = time.perf_counter()
        wire.request("GET", "/health")
        assert wire.getresponse().read()
        times.append(time.perf_counter() - began)
    wire.close()
    assert sorted(times)[10] < 0.03


def test_depth_is_counted_fast():
    wide = ("[" + ",".join("[[1]]" for _ in range(200_000)) + "]").encode()
    began = time.perf_counter()
    parse(wide, LimitSettings(json_values=1_000_000))
    assert time.perf_counter() - began < 3


def test_metrics_tell_of_it(server: Running):
    client = server.client()
    client.post("/v1/completions", json={"model": "crow", "prompt": "The crow", "max_tokens": 3})
    text = client.get("/metrics").text
    client.close()
    for name in (
        "transom_answers_total",
        "transom_answer_seconds_bucket",
        "transom_first_token_seconds_count",
        "transom_tokens_total",
        "transom_loop_lag_seconds",
        'transom_engine{figure="tokens_made",model="crow"}',
    ):
        assert name in text
