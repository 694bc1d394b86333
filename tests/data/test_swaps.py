"""Names, pronouns and terms swapped: the text about somebody else, and nothing else of it changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transom.__main__ import run
from transom.data.swaps import GENDER, NAMES, RELIGION, SwapList
from transom.errors import Refused


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("He lost his keys, so they called him.", "She lost her keys, so they called her."),
        ("She lost her keys, so they called her.", "He lost his keys, so they called him."),
        ("The book is his.", "The book is hers."),
        ("They saw her and left.", "They saw him and left."),
        ("Mary and her brother", "James and his sister"),
        ("HER mother said: herself!", "HIS father said: himself!"),
        ("James told Mary that he knew her.", "Mary told James that she knew him."),
    ],
)
def test_gender_is_swapped_word_by_word(text: str, told: str) -> None:
    versions = GENDER.versions(text)
    assert versions is not None and list(versions.values()) == [text, told]


def test_parts_of_words_are_left_alone_and_names_are_names() -> None:
    assert GENDER.versions("The theme of the manual is shear.") is None
    assert GENDER.versions("a mark on the bill") is None  # neither Mark nor Bill
    assert NAMES.versions("Emily came") == {"white-sounding": "Emily came", "Black-sounding": "Lakisha came"}


def test_of_more_than_two_groups_each_is_told_and_mixed_texts_are_left_out() -> None:
    versions = RELIGION.versions("A Muslim neighbour goes to the mosque.")
    assert versions is not None and list(versions)[0] == "Muslim" and len(versions) == 4
    assert versions["Jewish"] == "A Jewish neighbour goes to the synagogue."
    assert RELIGION.versions("A Muslim and a Hindu met.") is None


def test_texts_that_differ_in_swapped_words_alone_are_one_template() -> None:
    assert GENDER.template("Mary has a car") == GENDER.template("James has a car") == "_ has a car"


@pytest.mark.parametrize(
    ("content", "says"),
    [("old", "two groups"), ("old,young\n", "two groups"), ("old,young\nretired\n", ":2: 1 word for 2"),
     ("old,old\na,b\n", "two groups")],
)  # fmt: skip
def test_a_list_that_is_none_is_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "ages.csv").write_text(content)
    with pytest.raises(Refused, match=says):
        SwapList.read(tmp_path / "ages.csv")


def test_data_is_told_about_everybody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "Mary asks.", "completion": "she may"}, {"prompt": "It rains.", "completion": "no"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["data", "swap", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "both.jsonl")]) == 0
    both = [json.loads(line) for line in (tmp_path / "both.jsonl").read_text().splitlines()]
    assert both == [rows[0], {"prompt": "James asks.", "completion": "she may"}, rows[1]]
    assert "3 rows of 2; 1 of these" in capsys.readouterr().out
    (tmp_path / "notes.txt").write_text("It rains.\n")
    assert run(["data", "swap", str(tmp_path / "notes.txt"), "--out", str(tmp_path / "no.jsonl")]) == 2
    assert "holds a word of a list" in capsys.readouterr().err
