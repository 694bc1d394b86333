"""The page with a real small chat model: what is remembered goes along where it bears, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chat.test_memory import TEN
from tests.server.conftest import Running, serving
from tests.server.test_page import CHROMIUM, Visit, browser, kept, say, store

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
__all__ = ["browser"]
EASY = ("What is the capital of France?", "How many days has a week?", "Name three fruits.")


@pytest.fixture(scope="module")
def served(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    memory = tmp_path_factory.mktemp("smollm2") / "memory.sqlite"
    # In float32: two words that are nearly as likely must not change places with what is read from the cache.
    with serving({"smollm2": smollm2}, "smollm2", memory=memory, dtype="float32") as running:
        yield running


@pytest.mark.heavy
def test_a_real_model_answers_as_without_and_recalls_what_it_is_asked(browser: Any, served: Running):  # noqa: F811
    visit = Visit(browser, served.url)
    page = visit.open(served.page)
    store(page, settings=dict(temperature=0, maxTokens=8))

    def asked(question: str) -> str:
        page.get_by_role("button", name="New conversation").click()
        say(page, question)
        return kept(page)["messages"][1]["text"]

    with served.client(headers=served.own) as api:

        def answer(question: str) -> str:
            body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 8}
            return api.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

        own = [answer(question) for question in EASY]
        assert "Paris" in own[0]
        say(page, "remember that " + "very " * 300 + "long words are long")
        assert (
            "Not kept in memory: a fact has at most 1000 characters"
            in page.locator(".message.user").inner_text()
        )
        for n in (1, 3, 10):
            for fact, _ in TEN[:n]:
                api.post("/memory", json={"text": fact})
            page.reload()
            page.wait_for_selector("html[data-ready]")
            page.get_by_role("button", name="New conversation").click()
            page.get_by_text(f"{n} fact{'s' * (n > 1)} from earlier conversations").wait_for()
            assert [asked(question) for question in EASY] == own, n
        assert "Minka" in asked(TEN[0][1])
        assert (
            "1 remembered fact went along: my cat is called Minka"
            in page.locator(".message.user").inner_text()
        )
    visit.check()
    visit.context.close()
