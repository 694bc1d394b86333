"""Chat in the terminal with a real model: answers as the generator gives them, commands, refusals."""

from __future__ import annotations

import io
import string
from collections.abc import Iterator

import pytest
import torch

from transom.chat.conversation import Conversation
from transom.chat.memory import Memory
from transom.chat.terminal import COMMANDS, chat, shown
from transom.data.chat_template import ChatTemplate
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.inference.generator import Generator
from transom.model.build import build
from transom.model.config import ModelConfig

LETTERS: Tokenizer = train_tokenizer("chars", iter([string.printable]), 128)


class Person(io.StringIO):
    """Lines from somebody at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = ModelConfig(
        LETTERS.vocab_size, 32, 1, 4, 2, head_dim=8, ffn_dim=48, max_len=256, tie_embeddings=False
    )
    model = build(config, 0).eval()
    with torch.no_grad():
        model.head.weight.mul_(30)  # type: ignore[operator, union-attr]
        model.embed.weight.mul_(40)
    return Generator(model, LETTERS)


@pytest.fixture(scope="module")
def plain() -> Iterator[ChatTemplate]:
    template = ChatTemplate.builtin("plain")
    yield template
    template.close()


@pytest.fixture
def run(generator: Generator, plain: ChatTemplate):
    def go(*lines: str, person: bool = False, **more) -> tuple[Conversation, str, str]:
        text = "".join(f"{line}\n" for line in lines)
        out, err = io.StringIO(), io.StringIO()
        settings = {"max_tokens": 12, "temperature": 0.0, **more}
        stdin = Person(text) if person else io.StringIO(text)
        done = chat(generator, plain, stdin=stdin, stdout=out, stderr=err, **settings)
        return done, out.getvalue(), err.getvalue()

    return go


def test_a_script_gets_answers_and_nothing_else(run, generator: Generator, plain: ChatTemplate):
    done, out, _ = run("hello", "and you?")
    first, second = (message.content for message in done.messages[1::2])
    assert out == f"{shown(first)}\n{shown(second)}\n"
    assert [message.content for message in done.messages[::2]] == ["hello", "and you?"]
    prompt = plain.render([{"role": "user", "content": "hello"}], LETTERS).tokens
    told = generator.generate(prompt, max_tokens=12, temperature=0.0, stop=plain.stop)
    assert first == told.text


def test_regenerate_and_edit_replace_the_last_answer(run):
    done, _, _ = run("hello", "/regenerate", temperature=1.0, seed=5)
    assert len(done.messages) == 2
    assert done.messages[1] != run("hello", temperature=1.0, seed=5)[0].messages[1]  # not the same once more
    done, _, _ = run("hello", "/edit goodbye")
    assert done.messages == run("goodbye")[0].messages


def test_old_turns_are_dropped_aloud(run):
    _, _, err = run(*["tell me about the long road over the hills and the houses on it"] * 5)
    assert "the oldest 2 dropped" in err and "none dropped" not in err.splitlines()[-2:]
    _, _, err = run(*["a road"] * 2, "/context", person=True)
    assert "4 messages kept, none dropped" in err and "kept    user: a road" in err


def test_facts_go_into_the_prompt_and_can_be_forgotten(run):
    memory = Memory()
    without, *_ = run("what do I like?")
    done, _, err = run("remember that I like tea", "/new", "what do I like?", memory=memory)
    assert "kept as fact 1: I like tea" in err and memory.count() == 1
    assert done.messages[1] != without.messages[1]  # the prompt was another one
    assert run("/memory off", "what do I like?", memory=memory)[0].messages == without.messages
    _, _, err = run("/memory", "/memory on", "/remember call me Ada", "/forget 1", "/memory", memory=memory)
    assert "memory is off" in err and "fact 1 forgotten" in err
    assert [fact.text for fact in memory.facts()] == ["call me Ada"]
    run("/forget all", memory=memory)
    assert memory.count() == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/regenrate", "did you mean 'regenerate'"),
        ("/edit", "needs the new words"),
        ("/edit x", "not one of yours"),
        ("/regenerate", "no answer"),
        ("/memory", "without a memory"),
        ("/forget x", "without a memory"),
        ("/save", "needs a file"),
        ("/context", "nothing was said"),
        ("x" * 400, "shorten it by"),
    ],
)
def test_a_mistake_ends_a_script_and_not_a_person(run, line: str, said: str):
    with pytest.raises(Refused, match=said):
        run(line)
    done, _, err = run(line, "hello", person=True)
    assert said in err and [message.content for message in done.messages[::2]] == ["hello"]


def test_what_is_refused_leaves_the_conversation_as_it_was(run):
    done, _, err = run("hello", "/edit " + "x" * 400, "y" * 400, person=True)
    assert err.count("refused:") == 2
    assert done.messages == run("hello")[0].messages


def test_commands(run, tmp_path):
    done, out, err = run(
        "/help", "", "hello", f"/save {tmp_path}/talk.json", "/quit", "never said", person=True
    )
    assert all(f"/{name}" in err for name in COMMANDS)
    assert Conversation.load(tmp_path / "talk.json").messages == done.messages
    assert len(done.messages) == 2 and out.count("> ") == 5


def test_a_model_cannot_steer_the_terminal():
    assert shown("a\x1b[2Jb\x07\u202ec\r\n\té") == "a\\x1b[2Jb\\x07\\u202ec\\r\n\té"


def test_a_script_is_read_as_utf8_and_other_bytes_are_named(generator: Generator, plain: ChatTemplate):
    def said(script: bytes) -> Conversation:
        stdin = io.TextIOWrapper(io.BytesIO(script), encoding="ascii")  # whatever the locale says
        settings = {"max_tokens": 2, "temperature": 0.0}
        return chat(generator, plain, stdin=stdin, stdout=io.StringIO(), stderr=io.StringIO(), **settings)

    done = said("\ufeffhello\r\nc\u2028d\n".encode())
    assert [message.content for message in done.messages[::2]] == ["hello", "c\u2028d"]
    with pytest.raises(Refused, match=r"standard input:2: byte 3 \(0xe9\) is not UTF-8"):
        said(b"hello\ncaf\xe9\n")


def test_save_writes_over_its_own_files_only(run, tmp_path):
    own, others = tmp_path / "talk.json", tmp_path / "notes.txt"
    others.write_text("mine")
    done, _, _ = run("hello", f"/save {own}", "and you?", f"/save {own}")
    assert Conversation.load(own).messages == done.messages
    with pytest.raises(Refused, match="notes.txt is there already; /save under another name"):
        run("hello", f"/save {others}")
    with pytest.raises(Refused, match="/save names a file in a folder that exists"):
        run("hello", f"/save {tmp_path}/nowhere/talk.json")
    assert others.read_text() == "mine" and sorted(tmp_path.iterdir()) == [others, own]
