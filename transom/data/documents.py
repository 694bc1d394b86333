"""A document: a stretch of text with a place, streamed in parts that may be encoded one by one.

The one idea: a part ends only where every known byte-level pre-tokenizer ends a word anyway, so the ids of
the parts, joined, are the ids of the whole. That place is before a space that follows a visible character, or
before a newline that follows a letter or digit: a word never reaches across it from the left, and from the
right these pre-tokenizers cannot look back. (After a newline is not such a place: blank lines join into one
token.) Read next: issues, textfile.
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

MARKER = "<|endoftext|>"
"""On a line of its own it divides a text file into documents, as in many published corpora; it is no text."""

_MARKER_LINE = re.compile(r"(?m)^<\|endoftext\|>[ \t]*(?:\r?\n|\Z)")
_LONGEST_MARKER_LINE = 64
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


def divided(
    pieces: Iterable[str], on_marker: Callable[[], None] | None = None
) -> Iterator[tuple[int, Iterator[str]]]:
    """Cut a stream of text at its marker lines: (first line, pieces) of every text between two of them.

    Each must be read to its end before the next is asked for; some are empty.
    """
    source, held, line, ended, inside = iter(pieces), "", 1, False, False

    def one() -> Iterator[str]:
        """Pieces up to the next marker line; `inside`: the text held begins in the middle of a line."""
        nonlocal held, line, ended, inside
        while True:
            found = _MARKER_LINE.search(held, 0)
            if found and found.start() == 0 and inside:
                found = _MARKER_LINE.search(held, found.end())
            if found and (ended or found[0].endswith("\n")):
                line += held.count("\n", 0, found.end())
                before, held, inside = held[: found.start()], held[found.end() :], False
                if on_marker is not None:
                    on_marker()
                yield before
                return
            if ended:
                line += held.count("\n")
                before, held = held, ""
                yield before
                return
            # The last line is held back where it may yet turn out to be a marker's.
            last = held.rfind("\n") + 1
            tail = held[last:]
            whole = (inside and not last) or len(tail) > _LONGEST_MARKER_LINE
            if whole or not (MARKER.startswith(tail) or tail.startswith(MARKER)):
                last = len(held)
            before, held = held[:last], held[last:]
            line += before.count("\n")
            inside = not before.endswith("\n") if before else inside
            if before:
                yield before
            fresh = next(source, None)
            ended, held = fresh is None, held + (fresh or "")

    while not ended or held:
        yield line, one()


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
