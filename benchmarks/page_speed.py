"""The page with a thousand conversations of fifty messages, in Chromium: to load, to open one, to search.

The conversations are written into the browser's own database by the page's own code, each answer of 60
tokens with 8 alternatives, as a real model's answer has them. A time is from the key or click to the second
frame after the text stands on the page; the median of several, the worst beside it. With --look FOLDER that
model is asked something, and *Look inside* is opened; nothing is kept between two looks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import train_tokenizer
from transom.model.build import build
from transom.model.config import ModelConfig

from .measure import tell

FILL = """async ([conversations, messages, tokens]) => {
    const { fresh, say } = await import("/page/conversation.js");
    const database = await import("/page/database.js");
    const words = "crow fox cheese tree river stone bread lamp road winter".split(" ");
    const word = (i) => words[i % words.length];
    const token = (i) => ({ id: i, text: ` ${word(i)}`, written: ` ${word(i)}`, p: 0.5,
        top: Array.from({ length: 8 }, (_, j) => ({ id: j, text: ` ${word(i + j)}`, p: 0.1 })) });
    const all = [];
    for (let c = 0; c < conversations; c++) {
        const one = fresh();
        let before = null;
        for (let m = 0; m < messages; m++) {
            const written = Array.from({ length: tokens }, (_, i) => token(i + m + c));
            const text = written.map((t) => t.written).join("");
            before = m % 2
                ? { role: "assistant", text, tokens: written, finish: "stop", model: "m", seed: 1 }
                : { role: "user", text: `Question ${m} of number${c} ${word(c * 7 + m)}` };
            say(one, one.messages.at(-1) ?? null, before);
        }
        all.push(one);
        if (all.length === 50) await database.add(all.splice(0));
    }
    await database.add(all);
}"""
OPEN = """async (i) => {
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const row = document.querySelectorAll(".conversation")[i], began = performance.now();
    row.click();
    while (row.isConnected && !document.querySelector(`[aria-current]`)?.isSameNode(row)) {
        if (document.title.startsWith(row.textContent)) break;
        await frame();
    }
    await frame(); await frame();
    return performance.now() - began;
}"""
SEARCH = """async (query) => {
    const database = await import("/page/database.js"), began = performance.now();
    const found = await database.search(query);
    return [performance.now() - began, found.size];
}"""

LOOK = """async () => {
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const button = [...document.querySelectorAll("button")].find((one) => one.textContent === "Look inside");
    const began = performance.now();
    button.click();
    while (!document.querySelector("#insight .look-t")) await frame();
    const tokens = performance.now() - began;
    while (!document.querySelector("#insight .look-facts")) await frame();
    await frame(); await frame();
    const all = performance.now() - began;
    document.querySelector("#insight [aria-label=Close]").click();
    return [tokens, all, document.querySelectorAll(".message.assistant .t").length];
}"""
ASKED = "Why is the sky blue? Answer in one sentence."


def main(arguments: list[str]) -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(prog="benchmarks page_speed", description=__doc__)
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--messages", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=60, help="of each answer")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--look", metavar="FOLDER", help="a real model to look into, instead of all that")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        options = ["--port", "8127", "--no-memory", "--chat-template", "plain"]
        folder = asked.look or str(small_model(Path(place)))
        command = [sys.executable, "-m", "transom", "serve", folder, *options]
        served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert served.stdout is not None
            while "http://" not in (line := served.stdout.readline()):
                assert line, "the server did not start"
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page: Any = browser.new_page()
            page.set_default_timeout(300_000)
            figures = looks(page, asked.rounds) if asked.look else times(page, asked)
            browser.close()
        finally:
            served.terminate()
            served.wait()
    lines = [
        f"{name:<38} {statistics.median(found):7.0f} ms (worst {max(found):.0f}, n = {len(found)})"
        for name, found in figures.items()
    ]
    size = f"{asked.conversations:,} conversations of {asked.messages} messages"
    size = f"{Path(asked.look).name} to look into" if asked.look else size
    size += f" (load average {os.getloadavg()[0]:.1f})"
    tell(f"the page with {size}", lines, {"figures": figures})


def small_model(place: Path) -> Path:
    """Something to serve; it answers nothing here."""
    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
    config = ModelConfig(
        tokenizer.vocab_size, 32, 1, 1, 1, head_dim=32, ffn_dim=32, max_len=8192, eos_id=tokenizer.eos_id
    )
    save_model(place, build(config, 0), tokenizer)
    return place


def looks(page: Any, rounds: int) -> dict[str, list[float]]:
    """Milliseconds until an answer's tokens stand in the panel, and its heads with the rows of one."""
    page.goto("http://127.0.0.1:8127/")
    page.wait_for_selector("html[data-ready]")
    page.evaluate("localStorage.setItem('transom.settings', JSON.stringify({ temperature: 0 }))")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.get_by_label("Message", exact=True).fill(ASKED)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Look inside").wait_for()
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        tokens, whole, n_tokens = page.evaluate(LOOK)
        found.setdefault(f"the tokens of an answer of {n_tokens}", []).append(tokens)
        found.setdefault("the whole panel", []).append(whole)
    return found


def times(page: Any, asked: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds by what was done."""
    address = "http://127.0.0.1:8127/"
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    page.evaluate(FILL, [asked.conversations, asked.messages, asked.tokens])
    found: dict[str, list[float]] = {}
    for _ in range(asked.rounds):
        page.goto(address)
        page.wait_for_selector(".conversation")
        ready = "performance.getEntriesByType('paint').at(-1)?.startTime ?? performance.now()"
        found.setdefault("the page, from nothing to painted", []).append(page.evaluate(ready))
    for i in range(asked.rounds):
        found.setdefault("to open a conversation", []).append(page.evaluate(OPEN, 3 * i + 1))
    for i in range(asked.rounds):
        milliseconds, n = page.evaluate(SEARCH, f"number{7 * i} question")
        assert n >= 1, n
        name = "the first search, which reads the words" if i == 0 else "to search"
        found.setdefault(name, []).append(milliseconds)
    return found
