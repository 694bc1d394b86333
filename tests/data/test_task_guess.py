"""What a file wants to teach is told from its first lines, and said."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from transom.data.labelled import open_labelled
from transom.data.pairs import open_pairs
from transom.data.sources import open_source
from transom.data.task_guess import guess_task, refuse_hidden_rows, text_field_of_input, unmapped
from transom.errors import Refused

Written = Callable[[str, bytes | str], Path]
PROSE = "".join(f"the dog number {n}\tder Hund Nummer {n}\n" for n in range(30))
CLASSES = "".join(f"the dog number {n}\t{'good' if n % 2 else 'bad'}\n" for n in range(30))


@pytest.mark.parametrize(
    ("name", "content", "task", "says"),
    [
        ("pairs.tsv", PROSE, "translate", "has two sides of a pair: column 1 and column 2"),
        ("named.tsv", "source\ttarget\n" + CLASSES, "translate", "two sides of a pair: source and target"),
        ("named.jsonl", '{"translation": {"en": "x", "de": "y"}}\n', "translate", "a pair: en and de"),
        ("classes.tsv", CLASSES, "classify", "has a text and a label: column 1 and column 2"),
        ("classes.csv", "label,text\n" + "1,a dog\n0,a cat\n" * 5, "classify", "label: text and label"),
        ("rows.jsonl", '{"text": "x", "label": 1}\n' * 3, "classify", "has a text and a label"),
        ("fast.txt", "\n__label__a some text\n", "classify", "begins with a label"),
        ("many.jsonl", "".join(f'{{"text": "t{n}", "label": "l{n}"}}\n' for n in range(9)), "lm", "neither"),
        ("text.jsonl", '{"text": "x"}\n', "lm", "neither two sides of a pair nor a text with its label"),
        ("three.csv", "a,b,c\n" * 3, "lm", "neither"),
        ("columns.csv", "a,b\n1,2\n", "lm", "neither"),
        ("numbers.tsv", "1\t2\n" * 9, "lm", "neither"),
        ("headed.csv", "mood,words\n" + "good,a dog\nbad,a cat or two\n" * 9, "lm", "neither"),
        ("notes.txt", "once upon a time\n", "lm", "is running text"),
        ("empty.tsv", "", "lm", "neither"),
        ("bad.tsv", b"a dog\tein Hund\n\xff\tc\n", "translate", "two sides of a pair"),
        ("utf16.txt", "text".encode("utf-16"), "lm", "neither"),
    ],
)
def test_guesses(written: Written, name: str, content: str | bytes, task: str, says: str) -> None:
    guess, why = guess_task(str(written(name, content)))
    assert guess == task and says in why


def test_rows_whose_name_says_that_they_are_text_are_not_learned_with_their_brackets(tmp_path: Path) -> None:
    rows, prose = tmp_path / "chats.txt", tmp_path / "prose.txt"
    rows.write_text('{"prompt": "Hi", "completion": "Ho"}\n' * 9)
    prose.write_text("[Enter two lords]\n{sic} A play, in five acts, by nobody\n" * 9)
    with pytest.raises(Refused, match="chats.txt: it holds JSON, .* call it NAME.jsonl"):
        refuse_hidden_rows(str(rows))
    refuse_hidden_rows(str(prose))


def test_a_field_that_is_mapped_and_its_fellow_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text('{"q": "Hi", "a": "Ho"}\n' * 9)
    says = unmapped(str(path), {"prompt": "q"})
    assert (
        says
        == f"{path}: prompt and completion takes completion besides: add --map completion=COLUMN; it has q, a"
    )


def test_without_a_look(tmp_path: Path) -> None:
    assert guess_task("a.en", "a.de") == (
        "translate",
        "two files, the second with the other side of each line of the first",
    )
    for source, task in (
        ("dates", "translate"),
        ("stdlib-labels", "classify"),
        ("stdlib", "lm"),
    ):
        assert guess_task(source)[0] == task
    assert (
        guess_task(str(tmp_path))[0] == guess_task("hf:some/name")[0] == guess_task("nothere.tsv")[0] == "lm"
    )


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets standard input hold a text."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.parametrize(
    ("text", "task", "rows"),
    [
        (PROSE, "translate", 30),
        (CLASSES.replace("\t", ","), "classify", 30),
        ("text;label\n" + CLASSES.replace("\t", ";"), "classify", 30),
        ('{"text": "a dog", "label": "pets"}\n' * 3, "classify", 3),
        ('[{"source": "a dog", "target": "ein Hund"},\n {"source": "x", "target": "y"}]', "translate", 2),
        ("__label__a some text\n", "classify", 1),
    ],
)
def test_rows_that_are_piped_in_are_read_like_those_of_a_file(
    text: str, task: str, rows: int, piped: Callable[[str], None]
) -> None:
    piped(text)
    assert guess_task("-")[0] == task
    source = (open_pairs if task == "translate" else open_labelled)("-")
    assert len(list(source)) == len(list(source)) == rows
    assert next(iter(source)).where.startswith("standard input:")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Text,Team\n" + "a dog ran,pets\n" * 12, "looks like a table"),
        ("Text;Team\n" + "a dog, a cat;pets\n" * 12, "looks like a table"),
        ('{"message": "a dog"}\n' * 3, "looks like JSON lines (--data.field names its text: message)"),
        ("A dog, and a cat.\n" + "They ran, they sat, they slept.\n" * 12, None),
        ("Hello, world.\nGood bye, world.\n", None),
        ("Once upon a time\n" * 12, None),
        ('{"text": "a dog"}\n' * 3, "text"),
        ("", None),
    ],
)
def test_rows_without_a_name_that_says_what_they_hold_are_no_running_text(
    text: str, says: str | None, piped: Callable[[str], None]
) -> None:
    piped(text)
    assert guess_task("-")[0] == "lm"
    with pytest.raises(Refused, match=re.escape(says)) if says and " " in says else contextlib.nullcontext():
        assert text_field_of_input() == says
    read = "".join(document.text() for document in open_source("-").documents())
    assert read == text, "what was read for a guess is read again"


def test_real_files(shared_data: Path) -> None:
    for name, task in (
        ("medical_abstracts/medical_tc_test.csv", "classify"),
        ("unfair_tos/data.tsv", "classify"),
        ("multi30k/train.en.gz", "lm"),
        ("ag_news/test.csv", "lm"),
        ("tinyshakespeare", "lm"),
    ):
        assert guess_task(str(shared_data / name))[0] == task
