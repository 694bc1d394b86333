"""A document: a stretch of text with a place, streamed in parts that may be encoded one by one.

The one idea: a part ends only where every known byte-level pre-tokenizer ends a word anyway, so the ids of
the parts, joined, are the ids of the whole. That place is before a space that follows a visible character, or
before a newline that follows a letter or digit: a word never reaches across it from the left, and from the
right these pre-tokenizers cannot look back. (After a newline is not such a place: blank lines join into one
token.) Read next: findings, textfile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

PART_CHARACTERS = 1 << 18
"""Parts are about this long (at most 1 MB of UTF-8): big enough to encode fast, small enough to hold many."""

HARD_CHARACTERS = 1 << 20
"""Without a clean place to cut within this many characters (4 MB at most), cut between two characters and
count it.
"""

_CLEAN_CUT = re.compile(r"\S(?= )|[^\W_](?=\n)")


@dataclass
class Document:
    """One text: where it came from, and its parts, which can be read once."""

    where: str
    """File, printable on one line."""
    line: int
    """First line of the document in its file, or the record's number where lines mean nothing (Parquet, hub).
    """
    parts: Iterable[str]

    @property
    def place(self) -> str:
        return f"{self.where}:{self.line}"

    def text(self) -> str:
        """The whole text at once; only for documents known to be small."""
        return "".join(self.parts)


def printable(name: object) -> str:
    """Escape control characters and broken bytes, so that a file's name cannot forge a line in a log or
    terminal.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def clean_cut(text: str, limit: int, start: int = 0) -> int:
    """The last clean place to cut in `text[start:limit]`, or 0 where there is none."""
    reach = 1 << 10
    while True:
        low = max(start, limit - reach)
        last = 0
        for match in _CLEAN_CUT.finditer(text, low, limit + 1):
            last = match.end()
        if last or low <= start:
            return last
        reach *= 16


def in_parts(pieces: Iterable[str], on_rough_cut: Callable[[], None] | None = None) -> Iterator[str]:
    """Cut a stream of text into parts that are encoded alone as they would be together.

    `on_rough_cut` is called whenever no clean place was found and the text was cut between two characters.
    """
    held, searched = "", 0
    for piece in pieces:
        held = held + piece if held else piece
        while len(held) > PART_CHARACTERS:
            at = clean_cut(held, PART_CHARACTERS) if searched == 0 else 0
            if not at:
                # No clean place within one part: take the first one after it, or wait for more text.
                match = _CLEAN_CUT.search(held, max(searched, PART_CHARACTERS) - 1, HARD_CHARACTERS)
                at = match.end() if match else 0
            if not at and len(held) < HARD_CHARACTERS:
                searched = len(held) - 1
                break
            if not at:
                at = HARD_CHARACTERS
                if on_rough_cut is not None:
                    on_rough_cut()
            yield held[:at]
            held, searched = held[at:], 0
    if held:
        yield held
