"""Memory: only what was asked for, found, edited, forgotten for good; words are never SQL or a query."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.chat.memory import (
    IN_PROMPT,
    MAX_CHARACTERS,
    MAX_FACTS,
    Memory,
    Recall,
    asked_to_keep,
    note,
    used_here,
)
from transom.errors import Refused

HOSTILE = [
    "'); DROP TABLE facts; --",
    '" OR 1=1 --',
    "' OR ''='",
    "NEAR(a b, 2)",
    "text : *",
    "a* OR b",
    "^a",
    "{a b} : c",
    'AND OR NOT "',
    "\x00",
    "a\x00b",
    "\ud800",
    "%' UNION SELECT name FROM sqlite_master --",
    "-a +b (c",
    "''" * 50,
    '"' * 51,
    "rank MATCH 'x'",
    "facts_index",
    "😀 OR",
    "__",
    "\\",
    "a" * 5000,
]


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "deep" / "memory.sqlite")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_are_words(memory: Memory, text: str):
    kept = [memory.remember("my dog is called Rex"), memory.remember("I live in a tower")]
    assert memory.relevant(text) in ([], [kept[0]], [kept[1]], kept, kept[::-1])
    if 0 < len(text) <= MAX_CHARACTERS and text.strip("\x00"):
        fact = memory.remember(text)
        assert memory.facts() == [*kept, fact]
        memory.edit(kept[0].id, text + " too")
        memory.forget(fact.id)
    assert memory.facts()[1] == kept[1]
    assert memory.relevant("tower") == [kept[1]]


@settings(max_examples=scaled(60))
@given(texts=st.lists(st.text(max_size=80), max_size=6), query=st.text(max_size=200))
def test_any_text_can_be_kept_and_asked_for(texts: list[str], query: str):
    memory = Memory()
    for text in texts:
        try:
            memory.remember(text)
        except Refused as refused:
            assert "nothing to remember" in str(refused)
    facts = memory.facts()
    assert len({fact.text for fact in facts}) == len(facts) == memory.count()
    assert all("\n" not in fact.text for fact in facts)
    found = memory.relevant(query)
    assert set(found) <= set(facts) and len(found) == len(set(found))
    assert len(found) <= 3 and memory.hear(f"{query}?").facts == memory.relevant(f"{query}?")
    for fact in facts:
        memory.forget(fact.id)
    assert memory.relevant(query) == []


TEN = [
    ("my cat is called Minka", "What is my cat called?"),
    ("I live in Riga", "Where do I live?"),
    ("I am allergic to peanuts", "What am I allergic to?"),
    ("my sister works as a nurse", "What is my sister's job?"),
    ("my favourite colour is green", "Tell me my favourite colour."),
    ("I was born in 1984", "When was I born?"),
    ("my car is a blue Volvo", "WHAT CAR DO I HAVE?"),
    ("I play the cello", "Which instruments am I playing?"),
    ("Ilze is our neighbour", "Who is Ilze?"),
    ("the meeting is on Thursday", "When is the meeting?"),
]
ASIDE = [
    "What is the capital of France?", "How many days has a week?", "Name three fruits.", "hello", "2 + 2",
    "Write a poem about the sea.", "Explain how a colour film works.", "Can you help me with Python?",
    "How do I sort a list?", "Which is the best instrument for a child?", "thank you", "", "?",
]  # fmt: skip


def test_only_a_fact_that_bears_on_a_message_goes_along(memory: Memory):
    memory.remember("my name is Ada")
    for fact, _ in TEN:
        memory.remember(fact)
    for fact, question in TEN:
        assert [one.text for one in memory.relevant(question)] == [fact], question
    for message in ASIDE:
        assert memory.relevant(message) == [], message
    assert memory.relevant("Can I eat this cake? It has peanut butter.")[0].text == "I am allergic to peanuts"
    newest = [fact for fact, _ in TEN[: -IN_PROMPT - 1 : -1]]
    assert [one.text for one in memory.relevant("And who am I?")] == newest  # names nothing: the newest
    assert memory.hear("remember that my cat is called Minka").facts == []  # it says so itself
    assert note(memory.relevant("peanuts", 1)).splitlines()[1:] == ["- I am allergic to peanuts"]


def test_what_cannot_be_kept_is_said_and_refuses_no_message(memory: Memory):
    heard = memory.hear("remember that " + "x" * 1001)
    assert heard.kept is None and "at most 1000 characters, this one has 1001" in heard.not_kept
    assert memory.count() == 0 and memory.hear("remember that I like tea").not_kept == ""


def test_a_conversation_begins_with_how_much_is_remembered(memory: Memory):
    assert used_here(memory) == ""
    memory.remember("I like tea")
    assert used_here(memory).startswith("1 fact from earlier conversations is used where it bears")
    memory.remember("call me Ada")
    assert used_here(memory).startswith("2 facts from earlier conversations are used where they bear")
    memory.enabled = False
    assert used_here(memory) == ""


@pytest.mark.parametrize(
    ("said", "fact"),
    [
        ("remember that I like tea", "I like tea"),
        ("Please remember that: I like tea.", "I like tea."),
        ("REMEMBER: I like tea", "I like tea"),
        (" and remember that I like\ntea", "I like\ntea"),
        ("do you remember that I like tea?", None),
        ("Remember that day?", None),
        ("remember me", None),
        ("I remember that I like tea", None),
        ("remember that", None),
        ("remember thatched roofs", None),
        ("", None),
    ],
)
def test_only_what_was_asked_for_is_kept(memory: Memory, said: str, fact: str | None):
    assert asked_to_keep(said) == fact
    kept = memory.hear(said).kept
    assert [one.text for one in memory.facts()] == ([] if fact is None else [" ".join(fact.split())])
    assert (kept is None) == (fact is None)


def test_what_is_forgotten_or_replaced_is_gone_from_the_file(memory: Memory):
    for n in range(20):
        memory.remember(f"harmless fact number {n}")
    secret = memory.remember("the combination is xylophone zygote quincunx")
    other = memory.remember("the password is kumquat")
    path = Path(memory.path)
    assert b"xylophone" in path.read_bytes() and b"kumquat" in path.read_bytes()
    memory.forget(secret.id)
    memory.edit(other.id, "there is no password")
    left = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for word in (b"xylophone", b"zygot", b"quincunx", b"kumquat"):
        assert word not in left
    assert memory.relevant("password")[0].text == "there is no password"
    assert memory.relevant("xylophone") == []
    memory.forget_all()
    assert b"harmless" not in path.read_bytes() and memory.count() == 0


def test_switched_off_it_keeps_nothing_and_says_nothing(memory: Memory):
    memory.remember("call me Ada")
    memory.enabled = False
    assert memory.hear("remember that I like tea") == Recall([], None, "")
    assert memory.relevant("Ada") == []
    with pytest.raises(Refused, match="switched off"):
        memory.remember("I like tea")
    memory.close()
    again = Memory(memory.path)
    assert not again.enabled and [fact.text for fact in again.facts()] == ["call me Ada"]
    again.enabled = True
    assert again.relevant("who am I") == again.facts()


def test_limits_are_said_with_their_numbers(memory: Memory):
    for bad in ("", "  \n\t\x00"):
        with pytest.raises(Refused, match="nothing to remember"):
            memory.remember(bad)
    with pytest.raises(Refused, match=f"{MAX_CHARACTERS} characters, this one has {MAX_CHARACTERS + 1}"):
        memory.remember("x" * (MAX_CHARACTERS + 1))
    for id in (7, -1, 0, 10**30):
        with pytest.raises(Refused, match="no fact"):
            memory.forget(id)
        with pytest.raises(Refused, match="no fact"):
            memory.edit(id, "x")
    fact = memory.remember("I like tea")
    assert memory.remember("I  like\ntea") == fact  # the same again
    other = memory.remember("I like coffee")
    with pytest.raises(Refused, match=f"fact {fact.id} says the same"):
        memory.edit(other.id, "I like tea")
    with sqlite3.connect(memory.path) as db:
        db.executemany(
            "INSERT INTO facts(text, created) VALUES (?, '')", [(str(n),) for n in range(MAX_FACTS - 2)]
        )
    with pytest.raises(Refused, match=f"{MAX_FACTS} facts"):
        memory.remember("one more")


def test_an_id_is_never_given_twice(memory: Memory):
    last = memory.remember("a")
    memory.forget(last.id)
    assert memory.remember("b").id > last.id


def test_threads_and_processes_share_one_file(memory: Memory):
    other = Memory(memory.path)  # as another process would have it
    failed: list[BaseException] = []

    def keep(which: Memory, name: str) -> None:
        try:
            for n in range(15):
                which.remember(f"{name} {n}")
                which.relevant("one two")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=keep, args=(m, f"{i}")) for i, m in enumerate([memory, memory, other])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert memory.count() == other.count() == 45


def test_only_its_owner_can_read_the_file(memory: Memory):
    assert stat.S_IMODE(Path(memory.path).stat().st_mode) == 0o600


def test_a_file_that_is_no_memory_is_refused_and_left_alone(tmp_path: Path):
    damaged, foreign = tmp_path / "notes.txt", tmp_path / "other.db"
    damaged.write_text("these are my notes, not a database at all" * 50)
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE facts (x)")
    for path in (damaged, foreign, tmp_path):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(Refused, match="name another file") as refused:
            Memory(path)
        assert str(path) in str(refused.value)
        assert before == (path.read_bytes() if path.is_file() else b"")
