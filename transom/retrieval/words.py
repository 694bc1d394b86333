"""Texts as the words that they are looked up by: stems, as SQLite's full-text search has them.

What keeps no SQLite file asks the same tokenizer for its words, so every store finds the same by them.
Read next: postgres_store.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

TOKENIZE = "porter unicode61 remove_diacritics 2"
"""Of FTS5: letters and digits in lower case without accents, then Porter's stems of English."""
APART = 1 << 24
"""Between the words of a heading and those of the text, so that no phrase runs across."""

_UNSPACED = re.compile(
    r"[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""Characters of Chinese and Japanese, between whose words no space stands."""
_WORD = re.compile(r"\w+")
Places = dict[str, list[int]]
"""Where each stem stands."""


def divided(text: str) -> str:
    """A text whose words spaces divide: of Chinese and Japanese each two characters in a row are one, as in
    Lucene's CJKAnalyzer.
    """
    return _UNSPACED.sub(_pairs, text)


def by_character(text: str) -> str:
    """A text with spaces about each character of Chinese and Japanese, to be compared by words."""
    return _UNSPACED.sub(lambda run: f" {' '.join(run[0])} ", text)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, as they stand."""
    return [word.lower() for word in _WORD.findall(divided(text))]


def _pairs(run: re.Match[str]) -> str:
    characters = run[0]
    pairs = (characters[at : at + 2] for at in range(max(1, len(characters) - 1)))
    return f" {' '.join(pairs)} "


def stems(texts: Sequence[tuple[str, str]]) -> list[Places]:
    """The stems of pairs of a heading and a text, each with its places."""
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE VIRTUAL TABLE words USING fts5(section, text, tokenize='{TOKENIZE}')")
    database.execute("CREATE VIRTUAL TABLE found USING fts5vocab(words, instance)")
    database.executemany("INSERT INTO words (rowid, section, text) VALUES (?, ?, ?)",
                         ((row, *map(divided, pair)) for row, pair in enumerate(texts)))  # fmt: skip
    made: list[Places] = [{} for _ in texts]
    for row, stem, column, at in database.execute('SELECT doc, term, col, "offset" FROM found'):
        made[row].setdefault(stem, []).append(at + APART * (column == "text"))
    database.close()
    return made


def phrases(words: Sequence[str]) -> list[list[str]]:
    """Each word as the stems that it is, most often one; words without any are left out."""
    each = ([stem for _, stem in sorted((at, stem) for stem, places in found.items() for at in places)]
            for found in stems([("", word) for word in words]))  # fmt: skip
    return [phrase for phrase in each if phrase]
