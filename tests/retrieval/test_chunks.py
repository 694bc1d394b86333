"""Chunks and sentences are places in the text as it is kept: whole, in order, over no heading."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transom.retrieval.chunks import BETWEEN, MOST_PIECES, chunks, n_pieces, sentences

HANDBOOK = """# Handbook

Everybody reads this. It is short.

## Leave

Employees get 25 days of leave. Dr. Meyer, e.g., has 30 days.\r
They are booked in the portal.

- carry over: five days
- ask first

### Parental

Two years.

```
# not a heading
```

## Travel
"""

WORDS = st.sampled_from(
    [
        "a",
        "Ünï",
        "dog.",
        "Is",
        "it?",
        "世界。",
        "x" * 50,
        "1.5",
        "\n",
        "\r\n",
        "\n\n",
        "# h\n",
        "\t",
        "- i",
        "\f",
        "🙂",
    ]
)
TEXTS = st.lists(WORDS, max_size=120).map(" ".join) | st.text(max_size=400)


def test_chunks_follow_the_structure() -> None:
    found = chunks(HANDBOOK, marked=True)
    texts = [HANDBOOK[one.start : one.end] for one in found]
    assert [text.partition("\n")[0] for text in texts] == [
        "# Handbook",
        "## Leave",
        "### Parental",
        "## Travel",
    ]
    assert [one.section for one in found] == ["", "Handbook", BETWEEN.join(["Handbook", "Leave"]), "Handbook"]
    assert "# not a heading" in texts[2]


def test_headings_without_text_of_their_own_go_with_what_stands_below() -> None:
    text = "# A\n\n## B\n\nText of B.\n\n## C\n\nText of C."
    assert [text[one.start : one.end] for one in chunks(text, marked=True)] == [
        "# A\n\n## B\n\nText of B.",
        "## C\n\nText of C.",
    ]


def test_sentences_end_where_they_end() -> None:
    text = 'Dr. Meyer has 3.5 days, e.g. in May. Is it so? "Yes." No. 5 is left! 世界。你好。'
    assert [text[a:b] for a, b in sentences(text)] == [
        "Dr. Meyer has 3.5 days, e.g. in May.", "Is it so?", '"Yes."', "No. 5 is left!", "世界。", "你好。",
    ]  # fmt: skip


@given(TEXTS, st.booleans(), st.integers(3, MOST_PIECES))
def test_every_word_is_in_one_chunk_and_no_chunk_is_too_long(text: str, marked: bool, most: int) -> None:
    found = chunks(text, marked=marked, most=most)
    at = 0
    for one in found:
        assert at <= one.start < one.end <= len(text)
        assert not text[at : one.start].replace("\ufeff", "").strip()
        assert n_pieces(text[one.start : one.end]) <= most
        at = one.end
    assert not text[at:].replace("\ufeff", "").strip()


@given(TEXTS)
def test_sentences_hold_every_word_once(text: str) -> None:
    found = sentences(text)
    assert all(text[a:b].strip() == text[a:b] != "" for a, b in found)
    kept = "".join("".join(text[a:b].split()) for a, b in found)
    assert kept.replace("\ufeff", "") == "".join(text.split()).replace("\ufeff", "")
