"""The end of a server: the first signal lets answers end, the second one does not wait."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.alone

LONG = {
    "model": "crow",
    "prompt": "The crow",
    "max_tokens": 1500,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
}


@pytest.fixture(scope="module")
def long_crow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose longest answer takes seconds."""
    from tests.server import models

    return models.decoder(tmp_path_factory.mktemp("long") / "crow" / "model", max_len=2048)


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """`transom serve` in a process of its own: it, its address, and what it has printed."""
    command = [sys.executable, "-m", "transom", "serve", *arguments, "--port", "0", "--no-memory"]
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own)
    lines: queue.Queue[str] = queue.Queue()
    said: list[str] = []

    def read() -> None:
        assert started.stdout is not None
        for line in started.stdout:
            said.append(line)
            lines.put(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while not (found := re.search(r"http://\S+:\d+", lines.get(timeout=60))):
            pass
        yield started, found[0], said
    finally:
        started.kill()
        started.wait()
        reader.join(5)
        assert started.stdout is not None
        started.stdout.close()


def events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def until_draining(url: str) -> httpx.Response:
    """What /health says once the server has taken notice of its signal."""
    until = time.monotonic() + 10
    while (late := httpx.get(f"{url}/health")).status_code == 200 and time.monotonic() < until:
        time.sleep(0.01)
    return late


def test_a_signal_lets_the_answer_end(long_crow: Path):
    with process(str(long_crow)) as (server, url, said), httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 300}) as response:
            stream = events(response)
            pieces = [next(stream)]
            server.send_signal(signal.SIGTERM)
            with httpx.Client(base_url=url) as other:
                assert until_draining(url).json()["status"] == "draining"
                refused = other.post("/v1/completions", json={**LONG, "stream": False})
                assert refused.status_code == 503 and refused.headers["retry-after"]
                assert refused.json()["error"]["retryable"]
            pieces += stream
        assert pieces[-1] == "[DONE]"
        assert json.loads(pieces[-2])["choices"][0]["finish_reason"] == "length"
        assert server.wait(10) == 0
    assert not [line for line in said if "Traceback" in line or "rror" in line]


def test_the_grace_has_an_end_and_the_client_is_told(long_crow: Path):
    with process(str(long_crow), "--deadlines.grace", "0.3s") as (server, url, said):
        with httpx.stream("POST", f"{url}/v1/completions", json=LONG, timeout=60) as response:
            stream = events(response)
            pieces = [next(stream)]
            server.send_signal(signal.SIGINT)
            pieces += stream
        parsed = [json.loads(piece) for piece in pieces]  # each of them whole
        assert parsed[-1]["error"]["retryable"] and "stopping" in parsed[-1]["error"]["message"]
        assert server.wait(10) == 0
    assert not [line for line in said if "Traceback" in line]


def test_the_second_signal_does_not_wait(long_crow: Path):
    with (
        process(str(long_crow)) as (server, url, _),
        httpx.stream("POST", f"{url}/v1/completions", json=LONG, timeout=60) as response,
    ):
        stream = events(response)
        next(stream)
        server.send_signal(signal.SIGTERM)
        until_draining(url)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 1 and time.monotonic() - began < 5


def test_a_signal_with_nothing_to_do_ends_at_once(long_crow: Path):
    with process(str(long_crow), "--generate-key", TRANSOM_API_KEY="") as (server, url, said):
        key = re.search(r"sk-transom-\S+", "".join(said))
        assert key is not None and httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key[0]}"}).status_code == 200
        assert key[0] not in Path(f"/proc/{server.pid}/cmdline").read_text()
        listening = [
            line for line in Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines() if " 0A " in line
        ]
        own = [line for line in listening if line.split()[9] in sockets(server.pid)]
        assert len(own) == 1  # one port and no other
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0 and time.monotonic() - began < 3


def test_json_says_where_it_listens(long_crow: Path):
    command = [
        sys.executable,
        "-m",
        "transom",
        "serve",
        str(long_crow),
        "--port",
        "0",
        "--no-memory",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        lines = [server.stdout.readline()]
        while lines[-1] != "}\n":
            lines.append(server.stdout.readline())
        told = json.loads("".join(lines))
        assert httpx.get(f"{told['url']}/health").status_code == 200 and told["models"][0]["id"] == "crow"
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0 and server.stdout.read() == ""


def sockets(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return {link[8:-1] for link in links if link.startswith("socket:[")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name at least one model folder"),
        (("nowhere",), "no such folder"),
        (("{}", "{}"), "two models are called"),
        (("{}", "--host", "0.0.0.0"), "lets other machines in"),
        (("{}", "--port", "99999"), "port"),
        (("{}", "--chat-template", "chatlm"), "did you mean 'chatml'"),
        (("{}", "--api-key-file", "none"), "none"),
        (("{}", "--limits.n", "0"), "limits.n"),
        (("{}", "--host", "not a host"), "--host"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    folders: dict[str, Path], arguments: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    from transom.__main__ import run

    monkeypatch.delenv("TRANSOM_API_KEY", raising=False)
    given = [part.format(folders["crow"]) for part in arguments]
    assert run(["serve", *given, *([] if "--port" in given else ["--port", "0"])]) == 2
    out = capfd.readouterr()
    assert said in out.err and out.err.count("\n") == 1 and out.err.startswith("transom: ")
