"""What a real small chat model makes of what is remembered: other questions are answered as without it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from tests.chat.test_memory import TEN
from transom.chat.memory import Memory
from transom.chat.terminal import chat
from transom.data.chat_template import ChatTemplate
from transom.inference.generator import Generator
from transom.inference.load import load

EASY = ("What is the capital of France?", "How many days has a week?", "Name three fruits.")


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Generator:
    return load(smollm2, dtype="float32")


@pytest.fixture(scope="module")
def template(smollm2: Path) -> Any:
    template = ChatTemplate.from_folder(smollm2)
    assert template is not None
    yield template
    template.close()


def answers(
    model: Generator, template: ChatTemplate, questions: tuple[str, ...], memory: Memory | None
) -> list[str]:
    """The answer to each question in a conversation of its own, at temperature 0."""
    said = "\n/new\n".join(questions) + "\n"
    out = io.StringIO()
    chat(
        model, template, memory=memory, max_tokens=8, temperature=0.0, stdin=io.StringIO(said), stdout=out,
        stderr=io.StringIO(),
    )  # fmt: skip
    return out.getvalue().splitlines()


def test_what_is_remembered_changes_no_other_answer(model: Generator, template: ChatTemplate):
    own = answers(model, template, EASY, None)
    assert "Paris" in own[0] and "7" in own[1]
    for n in (1, 3, 10):
        memory = Memory()
        for fact, _ in TEN[:n]:
            memory.remember(fact)
        assert answers(model, template, EASY, memory) == own, n


def test_the_models_own_system_text_stays_above_what_is_remembered(model: Generator, template: ChatTemplate):
    memory, err = Memory(), io.StringIO()
    memory.remember("my cat is called Minka")
    question = io.StringIO("What is my cat called?\n")
    out = io.StringIO()
    done = chat(
        model, template, memory=memory, max_tokens=20, temperature=0.0, stdin=question, stdout=out, stderr=err
    )
    assert "1 fact from earlier conversations is used" in err.getvalue()
    assert "1 remembered fact went along: my cat is called Minka" in err.getvalue()
    assert "Minka" in out.getvalue()
    fitting = done.fits(template, model.tokenizer, 8192, 20, note="What you know: a cat.")
    assert fitting.messages[0].content.startswith("You are a helpful AI assistant named SmolLM")
