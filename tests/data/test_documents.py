"""Parts of a document, encoded alone, must give the ids of the whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.data import documents
from transom.data.documents import clean_cut, in_parts, printable
from transom.data.tokenizer import Tokenizer

PIECES = st.sampled_from(
    [
        "a",
        "B",
        "é",
        "世",
        "1",
        "²",
        "!",
        "'",
        "'s",
        "'ll",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "\u00a0",
        "\x1c",
        "_",
    ]
    + [
        "\u3000",
        "\x85",
        "\u0301",
        "😀",
        "don't",
        "\u200b",
        "\x00",
        "ǅ",
        "-",
        "<|endoftext|>",
        "\u180e",
        "\ufeff",
    ]
)
TEXTS = st.lists(PIECES, max_size=60).map("".join)


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PART_CHARACTERS", 8)
    monkeypatch.setattr(documents, "HARD_CHARACTERS", 1 << 20)


@given(text=TEXTS)
@settings(max_examples=scaled(600))
def test_a_clean_cut_changes_no_id(bpe: Tokenizer, text: str) -> None:
    at = clean_cut(text, len(text) // 2)
    assert at <= max(len(text) // 2, 0)
    plain = bpe.backend.encode
    halves = plain(text[:at], add_special_tokens=False).ids + plain(text[at:], add_special_tokens=False).ids
    assert halves == plain(text, add_special_tokens=False).ids


def test_parts_encode_as_the_whole(bpe: Tokenizer, short_parts: None) -> None:
    @given(pieces=st.lists(TEXTS, max_size=8))
    @settings(max_examples=scaled(300))
    def holds(pieces: list[str]) -> None:
        whole, parts = "".join(pieces), list(in_parts(pieces))
        assert "".join(parts) == whole
        ids = [number for part in parts for number in bpe.backend.encode(part, add_special_tokens=False).ids]
        assert ids == bpe.backend.encode(whole, add_special_tokens=False).ids

    holds()


def test_cutting_after_blank_lines_would_change_ids(bpe: Tokenizer) -> None:
    # Why parts end before a newline and not after one.
    text = "x\n\n\n    y"
    at = text.index("    ")
    assert bpe.encode(text[:at]) + bpe.encode(text[at:]) != bpe.encode(text)


def test_text_without_any_clean_place_is_cut_hard_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PART_CHARACTERS", 10)
    monkeypatch.setattr(documents, "HARD_CHARACTERS", 25)
    cuts: list[int] = []
    parts = list(in_parts(["x" * 7] * 9, lambda: cuts.append(1)))
    assert [len(part) for part in parts] == [25, 25, 13]
    assert len(cuts) == 2


def test_a_late_clean_place_is_found_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PART_CHARACTERS", 10)
    text = "x" * 37 + " y" + "z" * 5
    for size in (1, 3, 10, 100):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert list(in_parts(pieces)) == ["x" * 37, " y" + "z" * 5]


def test_names_cannot_forge_lines() -> None:
    assert printable("a\r\nFORGED\x1b[31m") == "a\\r\\nFORGED\\x1b[31m"
    assert printable("caf\udce9") == "caf\\udce9"
    assert printable("ünï cödé") == "ünï cödé"
