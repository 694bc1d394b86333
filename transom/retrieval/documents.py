"""Files as documents: which there are, how each is read, and what became of it.

The one idea: no file stops the others, and none disappears in silence. A text file is kept character for
character, so that a citation holds in its own bytes; of HTML, PDF and DOCX the text is kept that they say.
Read next: rich_text, python_docs, chunks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transom.data.documents import printable
from transom.data.issues import Issues
from transom.data.records import record_file
from transom.data.rows import RECORDS, RowFile, file_kind, readable_file
from transom.data.textfile import bad_byte
from transom.errors import Refused

from . import python_docs, rich_text
from .store import Document

MOST_BYTES = 50_000_000
"""Of one document's file. A file of records may be larger: each record is a document."""
STDLIB_DOCS = "stdlib-docs"
"""In the place of a folder: what Python's standard library says of itself."""
READER = "1"
"""Changes when a reader reads a file otherwise than before, so that it is read again."""
MARKDOWN = (".md", ".markdown", ".mdown", ".mkd")
HTML = (".html", ".htm", ".xhtml")
_NOT_FOLDERS = frozenset(["__pycache__", "node_modules", "site-packages"])

Status = Literal["read", "unchanged", "empty", "skipped", "removed"]
NO_TEXT = "there is no text in it"


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    file: str
    status: Status
    why: str = ""
    n_documents: int = 0
    n_chunks: int = 0

    def __str__(self) -> str:
        return f"{self.status}: {self.file}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class Found:
    """A file that is to be read."""

    path: Path
    name: str
    """Its name in citations: that of the folder that was named, and the way from there."""
    root: str


@dataclass
class Reading:
    """The documents of a file, and what a person should know of them."""

    documents: list[Document]
    notes: list[str] = field(default_factory=list)


class Unreadable(Exception):
    """A file that is left out, with the reason and what to do."""


def find_files(source: str | Path) -> tuple[list[Found], list[Outcome]]:
    """The files of a file or folder by name, and those that are left out unread. Raises Refused for neither.

    Links are not followed, so none leads out of the folder or round in it.
    """
    if str(source) == STDLIB_DOCS:
        return [Found(path, name, STDLIB_DOCS) for name, path in python_docs.files()], []
    path = Path(source)
    if not path.is_dir():
        readable_file(path, "give a folder or a file")
        name = printable(path.name)
        return [Found(path, name, str(path.absolute()))], []
    found: list[Found] = []
    left_out: list[Outcome] = []
    top, root = printable(Path(os.path.abspath(path)).name or "documents"), str(Path(os.path.abspath(path)))

    def blocked(error: OSError) -> None:
        left_out.append(
            Outcome(f"{top}/{printable(error.filename)}", "skipped", (error.strerror or "unreadable").lower())
        )

    for folder, folders, names in os.walk(path, onerror=blocked):
        for name in sorted([*folders, *names]):
            place = Path(folder, name)
            called = f"{top}/{printable(place.relative_to(path).as_posix())}"
            if place.is_symlink():
                left_out.append(Outcome(called, "skipped", "a link; index what it points to by its own name"))
            elif name.startswith("."):
                left_out.append(Outcome(called, "skipped", "hidden"))
            elif name in names:
                found.append(Found(place, called, root))
        folders[:] = sorted(
            name for name in folders
            if not (name.startswith(".") or name in _NOT_FOLDERS or Path(folder, name).is_symlink())
        )  # fmt: skip
    return sorted(found, key=lambda one: one.name), left_out


def fingerprint(found: Found, how: str) -> str:
    """SHA-256 of a file's bytes and of how it is read. Raises Unreadable."""
    digest = hashlib.sha256(f"{READER} {how} ".encode())
    try:
        if not found.path.is_file():
            raise Unreadable("neither a file nor a folder")
        with open(found.path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise Unreadable((error.strerror or str(error)).lower()) from None
    return digest.hexdigest()


def read_file(found: Found, *, text_field: str | None = None, labels: Iterable[str] = ()) -> Reading:
    """The documents of a file. Raises Unreadable with the reason and the fix."""
    kind, own = file_kind(found.path), tuple(sorted({*labels}))
    if found.root == STDLIB_DOCS:
        text = python_docs.text_of(found.path, found.name)
        return Reading([Document(found.name, found.name, text, "python", found.name, own)] if text else [])
    if kind in RECORDS:
        return _records(found, text_field, own)
    size = found.path.stat().st_size
    if size > MOST_BYTES:
        raise Unreadable(
            f"{size / 1e6:,.0f} MB; a document has at most {MOST_BYTES / 1e6:.0f} MB: split the file"
        )
    read: dict[str, tuple[str, Callable[[Path], tuple[str, str, list[str]]]]] = {
        **dict.fromkeys(HTML, ("html", rich_text.html_file)),
        ".pdf": ("pdf", rich_text.pdf_file),
        ".docx": ("docx", rich_text.docx_file),
    }
    if kind in read:
        name, reader = read[kind]
        try:
            text, title, notes = reader(found.path)
        except Refused as refused:
            raise Unreadable(str(refused)) from None
        text = text.replace("\0", "\ufffd")
    else:
        name, title, notes = "markdown" if kind in MARKDOWN else "text", "", []
        text = _text(found.path)
    title = title or Path(found.name).stem.replace("_", " ").replace("-", " ")
    return Reading([Document(found.name, found.name, text, name, title, own)] if text.strip() else [], notes)


def _text(path: Path) -> str:
    """A text file as it stands, its byte-order mark and line ends included."""
    data = path.read_bytes()
    fault = bad_byte(data)
    if fault is None:
        return data.decode("utf-8")
    if b"\0" in data[: 1 << 16]:
        raise Unreadable("not text")
    at, _, says = fault
    raise Unreadable(f"byte {at} {says}")


def _records(found: Found, text_field: str | None, labels: tuple[str, ...]) -> Reading:
    """Every record of a file as a document of its own, named by its line."""
    issues = Issues("skip", settable=False)
    rows = RowFile(found.path, found.name)
    documents: list[Document] = []
    try:
        for one in record_file(rows, text_field, issues):
            name = f"{found.name}:{one.line}"
            documents.append(Document(name, found.name, one.text(), "record", labels=labels))
    except Refused as refused:
        raise Unreadable(
            str(refused).removeprefix(f"{found.name}: ").removeprefix(f"{found.name}:")
        ) from None
    said = [
        f"{fault.count:,} records left out: {kind}, first at {fault.first}"
        for kind, fault in issues.faults.items()
    ]
    if not documents and said:
        raise Unreadable("; ".join(said))
    return Reading(documents, said + issues.notes)
