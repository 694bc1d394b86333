"""A text cut into chunks that follow its structure: headings, paragraphs, sentences, in this order.

The one idea: a chunk is two offsets into the text as it is kept, never a copy that was tidied up, so whatever
is quoted stands where it is said to stand. A chunk never reaches over a heading and never cuts a sentence
that fits. Read next: store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MOST_PIECES = 180
"""Of a chunk. An encoder of 256 tokens (MiniLM) then reads it whole, with the headings before it."""
BETWEEN = " › "
"""Between the headings that a chunk stands under."""

_PIECE = re.compile(r"[A-Za-z]{1,6}|\d{1,3}|[^\W\d_A-Za-z]{1,2}|[^\w\s]|_")
"""What most tokenizers make one token of, or less: a piece is counted rather than encoded, so that chunks are
the same whatever embeds them."""
_LINE = re.compile(r"[^\n\f]*(?:\n|\f|$)")
_HEADING = re.compile(r"[ ]{0,3}(#{1,6})[ \t]+(\S.*?)[ \t#]*$")
_FENCE = re.compile(r"[ ]{0,3}(```|~~~)")
_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*")
_NOT_AN_END = re.compile(
    r"(?:^|[\s(\[])(?:[A-Z]|e\.g|i\.e|etc|cf|vs|[Dd]r|[Mm]rs?|[Mm]s|[Pp]rof|St|[Nn]o|[Ff]igs?|[Ee]qs?|[Rr]ef|al"
    r"|approx|[Ss]ec|[Vv]ol|pp?|z\.\s?B|d\.\s?h|bzw|ca|Nr|Abs|Art)\.$"
)
Span = tuple[int, int]


@dataclass(frozen=True)
class Chunk:
    """A stretch of a document's text."""

    start: int
    end: int
    section: str = ""
    """The headings that it stands under, outermost first; one that it begins with is part of its text."""


@dataclass(frozen=True)
class _Unit:
    start: int
    end: int
    level: int = 0
    """Of a heading; 0: a paragraph."""
    title: str = ""


def n_pieces(text: str) -> int:
    """About how many tokens a text makes, and rather more than fewer."""
    return len(_PIECE.findall(text))


def chunks(text: str, *, marked: bool = False, most: int = MOST_PIECES) -> list[Chunk]:
    """The chunks of a text in their order; marked: lines `# ...` are headings, as in Markdown."""
    found: list[Chunk] = []
    path: list[tuple[int, str]] = []
    held: list[_Unit] = []
    section = ""

    def close() -> None:
        if held:
            found.append(Chunk(held[0].start, held[-1].end, section))
            held.clear()

    for unit in _units(text, marked):
        if unit.level:
            if any(not one.level for one in held) or (held and held[-1].level >= unit.level):
                close()
            while path and path[-1][0] >= unit.level:
                path.pop()
            if not held:
                section = BETWEEN.join(title for _, title in path)
            path.append((unit.level, unit.title))
        elif not held:
            section = BETWEEN.join(title for _, title in path)
        for start, end in _fitting(text, unit, most):
            # Neither over a page of a PDF, so that every quote is of one page.
            if held and ("\f" in text[held[-1].end : start] or n_pieces(text[held[0].start : end]) > most):
                close()
                section = BETWEEN.join(title for _, title in path)
            held.append(_Unit(start, end, unit.level))
    close()
    return found


def sentences(text: str, start: int = 0, end: int | None = None) -> list[Span]:
    """The sentences of `text[start:end]` as spans, without the white space around them."""
    end = len(text) if end is None else end
    cuts = [start]
    for found in _END.finditer(text, start, end):
        at = found.end()
        if found[0][0] == "." and _NOT_AN_END.search(text, max(start, at - 12), at):
            continue
        follows = text[at : at + 8].lstrip()
        if found[0][0] in "。！？" or not follows or not follows[0].islower():
            cuts.append(at)
    for found in re.finditer(
        r"\n[ \t\r]*\n|\f|\n(?=#{1,6}[ \t])|\n(?=[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t])", text[start:end]
    ):
        cuts.append(start + found.end())
    for found in re.finditer(r"(?m)^[ ]{0,3}#{1,6}[ \t].*$", text[start:end]):
        cuts += [start + found.start(), start + found.end()]
    ordered = sorted({*cuts, end})
    return [span for a, b in zip(ordered, ordered[1:], strict=False) if (span := _stripped(text, a, b))]


def is_heading(text: str) -> bool:
    """Whether a sentence is a heading of Markdown, which answers nothing by itself."""
    return _HEADING.match(text) is not None


def _units(text: str, marked: bool) -> Iterator[_Unit]:
    """Headings and paragraphs."""
    first, last, fence = -1, -1, ""
    for line in _LINE.finditer(text):
        span = _stripped(text, line.start(), line.end())
        mark = _FENCE.match(line[0]) if marked else None
        if mark is not None:
            fence = "" if fence == mark[1] else fence or mark[1]
        heading = _HEADING.match(line[0].rstrip()) if marked and not fence and mark is None else None
        item = _ITEM.match(line[0]) is not None and not fence
        if first >= 0 and (span is None and not fence or heading is not None or item):
            yield _Unit(first, last)
            first = -1
        if heading is not None and span is not None:
            yield _Unit(*span, len(heading[1]), heading[2])
        elif span is not None:
            first, last = (span[0] if first < 0 else first), span[1]
        if line.end() == len(text) and not line[0].endswith(("\n", "\f")):
            break
    if first >= 0:
        yield _Unit(first, last)


def _fitting(text: str, unit: _Unit, most: int) -> Iterator[Span]:
    """A unit whole where it fits, else its sentences, else words of them, else characters."""
    if n_pieces(text[unit.start : unit.end]) <= most:
        yield unit.start, unit.end
        return
    for start, end in sentences(text, unit.start, unit.end):
        begun, n = start, 0
        for piece in _PIECE.finditer(text, start, end):
            n += 1
            if n > most:
                gap = max(
                    text.rfind(" ", begun + 1, piece.start()), text.rfind("\n", begun + 1, piece.start())
                )
                cut = gap if gap > begun else piece.start()
                if span := _stripped(text, begun, cut):
                    yield span
                begun, n = cut, n_pieces(text[cut : piece.end()])
        if span := _stripped(text, begun, end):
            yield span


def _stripped(text: str, start: int, end: int) -> Span | None:
    """A span without white space and byte-order marks at its ends; None where nothing is left."""
    while start < end and (text[start].isspace() or text[start] == "\ufeff"):
        start += 1
    while end > start and (text[end - 1].isspace() or text[end - 1] == "\ufeff"):
        end -= 1
    return (start, end) if start < end else None
