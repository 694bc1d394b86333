"""Every route is fuzzed from its own schema while a greedy stream runs: the stream must not notice.

The server is a process of its own, so that its id and its memory can be watched.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.scale import scaled
from tests.server.test_drain import process
from tests.server.test_limits import BAD, INSIDE

CANARY = {
    "model": "crow",
    "prompt": "The crow",
    "max_tokens": 48,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
}
QUIET = settings(
    max_examples=scaled(12), database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["crow", "user", "<|im_end|>", "{{7*7}}", "{% for i in range(10**9) %}", "A" * 4000, -1, 2**63, 1e308]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def apart(folders: dict[str, Path]) -> Iterator[tuple[int, str, list[str]]]:
    """A server in another process with a model of every kind: its id, its address, what it printed."""
    with process(*map(str, folders.values())) as (server, url, said):
        yield server.pid, url, said
        assert server.poll() is None


class Canary(threading.Thread):
    """The same stream again and again; keeps what differed from the first."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.runs, self.differed, self.over = url, 0, [], threading.Event()
        with httpx.Client(base_url=url, timeout=60) as client:
            self.quiet = self.text(client)

    def text(self, client: httpx.Client) -> bytes:
        """The bytes that the model wrote: the stream without what names the one request (id and time)."""
        answer = client.post("/v1/completions", json=CANARY)
        if answer.status_code == 429:
            return self.quiet
        assert answer.status_code == 200, answer.text
        parts = answer.content.split(b"\n\n")
        assert parts[-2] == b"data: [DONE]"
        return b"".join(json.dumps(json.loads(part[6:])["choices"]).encode() for part in parts[:-2])

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.over.is_set():
                try:
                    found = self.text(client)
                except Exception as error:
                    self.differed.append(repr(error))
                    continue
                self.runs += 1
                if found != self.quiet:
                    self.differed.append(found.decode())


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) << 10


def fuzz(url: str, seconds: float, number: int) -> Counter[int]:
    """Bodies of every kind for so long: from the schema, against the schema, wild, and mutated bad ones."""
    document = httpx.get(f"{url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations()]
    posts = [path for path, item in document["paths"].items() if "post" in item]
    names = sorted(
        {name for part in document["components"]["schemas"].values() for name in part.get("properties", {})}
    )
    codes: Counter[int] = Counter()
    client = httpx.Client(base_url=url, timeout=60)
    draw = random.Random(number)
    end = time.monotonic() + seconds

    def told(answer: httpx.Response) -> None:
        codes[answer.status_code] += 1
        assert answer.status_code < 500 or answer.status_code == 503, (
            answer.request.content[:500],
            answer.text[:500],
        )
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"] and not INSIDE.search(answer.json()["error"]["message"])

    def post(path: str, body: Any) -> None:
        try:
            data = json.dumps(body).encode()
        except UnicodeEncodeError:
            return
        told(client.post(path, content=data, headers={"content-type": "application/json"}))

    def from_schema(operation: Any, mode: GenerationMode) -> None:
        @seed(draw.getrandbits(32))
        @QUIET
        @given(operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            if operation.method.upper() == "POST":
                post(operation.path, case.body if not isinstance(case.body, bytes) else None)
            else:
                told(client.request(operation.method, operation.path))

        one()

    @seed(draw.getrandbits(32))
    @QUIET
    @given(st.sampled_from(posts), st.dictionaries(st.sampled_from(names), VALUES, max_size=6) | VALUES)
    def wild(path: str, body: Any) -> None:
        post(path, body)

    def mutated() -> None:
        path, body = draw.choice(BAD)
        if isinstance(body, dict) and body:
            body = dict(body)
            body[draw.choice(list(body))] = draw.choice([None, -1, "x", [], {}, 1e300, True, dict(body)])
        post(path, body)

    with client:
        while time.monotonic() < end:
            for operation in draw.sample(operations, len(operations)):
                wrong = (
                    operation.method.upper() == "POST" and draw.random() < 0.5
                )  # a GET has nothing to get wrong
                from_schema(operation, GenerationMode.NEGATIVE if wrong else GenerationMode.POSITIVE)
                wild()
                for _ in range(8):
                    mutated()
                if time.monotonic() > end:
                    break
    return codes


def watched(apart: tuple[int, str, list[str]], seconds: float) -> tuple[Counter[int], Canary, float]:
    """Fuzz beside a canary; the codes, the canary, and by how much memory grew once it was warm."""
    pid, url, said = apart
    canary = Canary(url)
    canary.start()
    try:
        codes = fuzz(url, 0.35 * seconds, 1)
        warm = resident(pid)
        codes += fuzz(url, 0.65 * seconds, 2)
        grown = (resident(pid) - warm) / warm
    finally:
        canary.over.set()
        canary.join(60)
    assert not [line for line in said if "Traceback" in line or "broke" in line], said[-20:]
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    os.kill(pid, 0)  # the same process, still there
    return codes, canary, grown


@pytest.mark.heavy
def test_a_stream_does_not_notice_what_others_send(apart: tuple[int, str, list[str]]):
    codes, canary, grown = watched(apart, 6)
    assert canary.runs >= 2 and not canary.differed
    assert codes[200] and codes[400] and grown < 0.3


@pytest.mark.slow
def test_five_minutes_of_it(apart: tuple[int, str, list[str]]):
    codes, canary, grown = watched(apart, 300)
    assert canary.runs > 100 and not canary.differed
    assert sum(codes.values()) > 3000 and codes[400] > 500 and grown < 0.05
