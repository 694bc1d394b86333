"""What is kept of a conversation and what is dropped: the newest turns, as many as fit, said aloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.chat.conversation import ContextWindow, Conversation, Message
from transom.data.chat_template import ChatTemplate
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused

BYTES: Tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)


@pytest.fixture(scope="module")
def plain() -> Iterator[ChatTemplate]:
    template = ChatTemplate.builtin("plain")
    yield template
    template.close()


def talk(*said: str, system: str = "") -> Conversation:
    """Messages in turn, the user's first."""
    roles = ("user", "assistant")
    return Conversation(system, [Message(roles[i % 2], text) for i, text in enumerate(said)])


def size(template: ChatTemplate, messages: list[Message]) -> int:
    said = [{"role": message.role, "content": message.content} for message in messages]
    return len(template.render(said, BYTES).tokens)


WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=40)


@settings(max_examples=scaled(40))
@given(
    said=st.lists(WORDS, min_size=1, max_size=9).filter(lambda said: len(said) % 2 == 1),
    system=WORDS,
    note=WORDS,
    limit=st.integers(40, 400),
    max_tokens=st.integers(1, 60),
)
def test_the_newest_turns_that_fit_are_kept_and_no_fewer(
    plain: ChatTemplate, said: list[str], system: str, note: str, limit: int, max_tokens: int
):
    conversation = talk(*said, system=system)
    head = "\n\n".join(text for text in (system, note) if text)
    first = [Message("system", head)] if head else []
    newest = size(plain, [*first, conversation.messages[-1]])
    try:
        kept = conversation.fits(plain, BYTES, limit, max_tokens, note=note)
    except Refused as refused:
        assert newest + max_tokens > limit
        assert str(newest) in str(refused) and str(limit) in str(refused)
        return
    assert kept.used <= limit
    assert (
        kept.tokens
        == plain.render([{"role": m.role, "content": m.content} for m in kept.messages], BYTES).tokens
    )
    assert kept.messages == first + conversation.messages[kept.n_dropped :]
    assert conversation.messages[kept.n_dropped].role == "user"
    if kept.n_dropped:
        one_more = first + conversation.messages[kept.n_dropped - 2 :]
        assert size(plain, one_more) + max_tokens > limit


def test_it_says_what_is_kept_and_what_is_dropped(plain: ChatTemplate):
    conversation = talk("a" * 50, "b" * 50, "c")
    assert "1 message kept, the oldest 2 dropped" in str(conversation.fits(plain, BYTES, 60, 8))
    assert "3 messages kept, none dropped" in str(conversation.fits(plain, BYTES, 600, 8))


def test_a_message_that_does_not_fit_is_refused_with_what_to_do(plain: ChatTemplate):
    conversation = talk("x" * 100)
    with pytest.raises(Refused) as refused:
        conversation.fits(plain, BYTES, 130, 20)
    over = int(str(refused.value).partition("shorten it by ")[2].split()[0])
    most = int(str(refused.value).rpartition("at most ")[2])
    assert isinstance(talk("x" * (100 - over)).fits(plain, BYTES, 130, 20), ContextWindow)
    assert conversation.fits(plain, BYTES, 130, most).used == 130
    with pytest.raises(Refused):
        talk("x" * (101 - over)).fits(plain, BYTES, 130, 20)


def test_editing_forgets_what_came_after():
    conversation = talk("one", "1", "two", "2")
    assert conversation.edit(0, "uno") == 3
    assert conversation.messages == [Message("user", "uno")]
    with pytest.raises(Refused, match="no answer yet"):
        conversation.say("again")
    conversation.answer("1")
    with pytest.raises(Refused, match="those are 0"):
        conversation.edit(1, "what it said")


def test_regenerating_takes_the_answer_back_and_nothing_else():
    conversation = talk("one", "1", "two", "2")
    assert conversation.regenerate() == "2"
    assert conversation.messages == talk("one", "1", "two").messages
    with pytest.raises(Refused, match="no answer"):
        conversation.regenerate()


@settings(max_examples=scaled(30))
@given(said=st.lists(st.text(st.characters(exclude_categories=("Cs",))), max_size=6), system=WORDS)
def test_what_is_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, said: list[str], system: str):
    path = tmp_path_factory.getbasetemp() / "talk.json"
    conversation = talk(*said, system=system)
    conversation.save(path)
    again = Conversation.load(path)
    assert (again.system, again.messages) == (conversation.system, conversation.messages)


def test_saving_replaces_a_conversation_and_nothing_else(tmp_path: Path):
    notes = tmp_path / "notes.txt"
    notes.write_text("my only copy")
    with pytest.raises(Refused, match="holds no conversation; name another file"):
        talk("one").save(notes)
    assert notes.read_text() == "my only copy"
    talk("one").save(tmp_path / "talk.json")
    talk("one", "1", "two").save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json").messages == talk("one", "1", "two").messages
    with pytest.raises(Refused, match="cannot be written|no folder"):
        talk("a\ud800").save(tmp_path / "talk.json")  # half of a pair, that UTF-8 does not have
    assert Conversation.load(tmp_path / "talk.json").messages == talk("one", "1", "two").messages
    with pytest.raises(Refused, match="cannot be written|no folder"):
        talk("one").save(tmp_path / "nowhere" / "talk.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "talk.json"]


def test_a_note_goes_below_the_system_text_and_the_templates_own(plain: ChatTemplate):
    kind = (
        "{{ 'Be kind.' if messages[0].role != 'system' }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    strict = "{{ raise_exception('no') if messages[0].role == 'system' }}{{ messages[-1].content }}"
    for text, system, said in [
        (kind, "", ["Be kind.\n\nNOTE", "one"]),
        (kind, "Be brief.", ["Be brief.\n\nNOTE", "one"]),
        (None, "", ["NOTE", "one"]),
        (strict, "", ["NOTE\n\none"]),
    ]:
        template = plain if text is None else ChatTemplate(text)
        conversation = talk("one", system=system)
        kept = conversation.fits(template, BYTES, 500, 8, note="NOTE")
        assert [message.content for message in kept.messages] == said
        assert conversation.messages == talk("one").messages  # what was said stays as it was
        assert [m.content for m in conversation.fits(template, BYTES, 500, 8).messages][-1] == "one"
        if template is not plain:
            template.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"system": 1, "messages": []}',
        '{"system": "", "messages": [{"role": "system", "content": ""}]}',
        '{"system": "", "messages": [{"role": "user"}]}',
        "[" * 100_000,
        '{"system": "", "messages": 7}',
    ],
)
def test_a_file_that_is_no_conversation_is_refused(tmp_path: Path, text: str):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(Refused, match="not a conversation"):
        Conversation.load(tmp_path / "x.json")
    with pytest.raises(Refused, match="cannot be read"):
        Conversation.load(tmp_path / "y.json")
