"""The text of HTML, PDF and DOCX: what a reader sees, with headings as lines `# ...` and pages by form feeds.

HTML by Python's own parser; PDF by pypdf and DOCX by python-docx, which the extra `documents` installs.
Read next: chunks.
"""

from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from transom.data.textfile import bad_byte
from transom.errors import Refused

EXTRA = "pip install 'transom[documents]'"
HEADINGS = {f"h{level}": level for level in range(1, 7)}
BLOCKS = frozenset(
    re.findall(
        r"\S+",
        "address article aside blockquote body br dd details div dl dt fieldset figcaption figure footer form"
        " header hr li main nav ol option p pre section summary table tbody td tfoot th thead title tr ul",
    )
)
UNSEEN = frozenset(["script", "style", "noscript", "template", "svg", "head"])
VOID = frozenset(["br", "hr"])
_CHARSET = re.compile(rb"<meta[^>]+charset=[\"']?([\w-]+)", re.IGNORECASE)

Read = tuple[str, str, list[str]]
"""A text, its title, and what a person should know."""


def html_file(path: Path) -> Read:
    """What a page says, without scripts and styles. Raises Refused where it cannot be decoded."""
    data = path.read_bytes()
    named = _CHARSET.search(data[:4096])
    encoding = named[1].decode() if named else "utf-8"
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        fault = bad_byte(data)
        if fault is not None:
            raise Refused(f"byte {fault[0]} {fault[2]}") from None
        text = data.decode("utf-8")
    parser = _Page()
    parser.feed(text)
    parser.close()
    return parser.text(), " ".join(parser.title.split()), []


class _Page(HTMLParser):
    """Collects the text of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title, self._parts, self._unseen, self._in_title, self._pre = "", [], 0, False, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = True
        elif tag in UNSEEN:
            self._unseen += 1
        elif tag in HEADINGS:
            self._parts.append(f"\n\n{'#' * HEADINGS[tag]} ")
        elif tag == "li":
            self._parts.append("\n- ")
        elif tag in ("td", "th"):
            self._parts.append(" | ")
        elif tag in BLOCKS:
            self._parts.append("\n" if tag in VOID or tag == "tr" else "\n\n")
        self._pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in UNSEEN:
            self._unseen = max(0, self._unseen - 1)
        elif tag in HEADINGS or (tag in BLOCKS and tag not in ("li", "td", "th", "tr", *VOID)):
            self._parts.append("\n\n")
        self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._unseen:
            self._parts.append(data if self._pre else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        """All of it, with at most one empty line between two blocks."""
        lines = [line.strip(" \t\r") for line in "".join(self._parts).split("\n")]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def pdf_file(path: Path) -> Read:
    """The text of every page, a form feed between two. Raises Refused for one that is locked or broken."""
    try:
        import pypdf
    except ImportError:
        raise Refused(f"PDF needs pypdf: {EXTRA}") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of what it mends
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Refused("encrypted; save it without its password (qpdf --decrypt --password=... IN OUT)")
        pages = [page.extract_text() or "" for page in reader.pages]
        title = str((reader.metadata or {}).get("/Title") or "")
    except Refused:
        raise
    except Exception as error:  # a broken PDF breaks pypdf in many ways; each means: not read
        raise Refused(f"not a readable PDF ({type(error).__name__}: {str(error)[:120]})") from None
    bare = [number for number, text in enumerate(pages, 1) if not text.strip()]
    if pages and len(bare) == len(pages):
        raise Refused(
            f"{len(pages)} page{'s' * (len(pages) > 1)} without text: scanned? Run OCR first (ocrmypdf IN"
            " OUT)"
        )
    shown = ", ".join(map(str, bare[:10])) + (" ..." if len(bare) > 10 else "")
    notes = [f"no text on page{'s' * (len(bare) > 1)} {shown}: scanned?"] if bare else []
    return "\f".join(text.replace("\f", "\n") for text in pages), title.strip(), notes


def docx_file(path: Path) -> Read:
    """Paragraphs, headings and the rows of tables, in their order. Raises Refused for what is no DOCX."""
    try:
        import docx
        from docx.table import Table
    except ImportError:
        raise Refused(f"DOCX needs python-docx: {EXTRA}") from None
    try:
        document = docx.Document(str(path))
        blocks = list(document.iter_inner_content())
    except Exception as error:  # a broken archive breaks its libraries in many ways
        raise Refused(f"not a readable DOCX ({type(error).__name__}: {str(error)[:120]})") from None
    parts = [_table(block) if isinstance(block, Table) else _paragraph(block) for block in blocks]
    return "\n\n".join(part for part in parts if part.strip()), document.core_properties.title or "", []


def _paragraph(block: Any) -> str:
    name = (block.style.name or "") if block.style is not None else ""
    level = re.fullmatch(r"Heading (\d)|Title", name)
    if level is None or not block.text.strip():
        return f"- {block.text}" if name.startswith("List") and block.text.strip() else block.text
    return f"{'#' * min(6, int(level[1] or 1))} {' '.join(block.text.split())}"


def _table(table: Any) -> str:
    return "\n".join(" | ".join(" ".join(cell.text.split()) for cell in row.cells) for row in table.rows)
