"""What a store of documents is, for one machine or many: eight methods, and the records that pass through.

The one idea: text and offsets stay in the store, so a citation never depends on what searched for it; ids
are the store's own and mean nothing elsewhere. `write` is all or nothing, and what was opened shows one
generation. Read next: places, folder_store, postgres_store, search.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .chunks import Chunk

Labels = Collection[str] | None
"""What whoever asks may see besides documents without a label; None: everything."""
Hits = list[tuple[int, float]]
"""Chunks by id with their scores, the best first."""
FILES = (
    "SELECT files.name, root, sha256, count(chunks.id) FROM files LEFT JOIN documents ON file = files.name"
    " LEFT JOIN chunks ON chunks.document = documents.id GROUP BY files.name ORDER BY min(documents.id)"
)
"""The files in the order in which they came, as all stores that speak SQL ask for them."""


@dataclass(frozen=True)
class Document:
    """A text that can be cited, as it is kept: of a text file its own characters, of others what they say."""

    name: str
    """What a citation calls it: `handbook/leave.md`, or `faq.jsonl:12` for a record."""
    file: str
    """The file that it came from; all documents of a file change together."""
    text: str
    kind: str = "text"
    """`text`, `markdown`, `html`, `pdf`, `docx`, `record` or `python`."""
    title: str = ""
    labels: tuple[str, ...] = ()
    """Who may see it: whoever holds one of these; none: everybody."""

    @property
    def marked(self) -> bool:
        """Whether lines `# ...` of its text are headings."""
        return self.kind in ("markdown", "html", "docx", "python")


@dataclass(frozen=True)
class File:
    """A file as it was read last."""

    name: str
    root: str
    """The folder or file that was named to be indexed, as an absolute path."""
    sha256: str
    """Of its bytes and of how it was read."""
    n_chunks: int = 0


@dataclass(frozen=True)
class Indexed:
    """A document with its chunks, and their vectors (n, D) float32 where there is an embedder."""

    document: Document
    chunks: Sequence[Chunk]
    vectors: NDArray[np.float32] | None = None


@dataclass
class Changes:
    """What one `write` does, as a whole: files that go, and files that come in their place or besides."""

    removed: list[str] = field(default_factory=list)
    added: list[tuple[File, list[Indexed]]] = field(default_factory=list)
    calibration: Mapping[str, Any] | None = None
    """A threshold with what it promises, instead of the one that is kept."""

    @property
    def n_chunks(self) -> int:
        return sum(len(one.chunks) for _, documents in self.added for one in documents)


def place_of(document: str, start: int, end: int, page: int | None) -> str:
    """A place in a document, as a person writes it."""
    return f"{document}{'' if page is None else f', page {page}'} ({start}-{end})"


@dataclass(frozen=True)
class Passage:
    """A chunk as it was found, with its place."""

    document: str
    start: int
    """Where it begins in the document's text, in characters."""
    end: int
    text: str
    section: str = ""
    title: str = ""
    page: int | None = None
    """Of a PDF, from 1."""

    @property
    def place(self) -> str:
        return place_of(self.document, self.start, self.end, self.page)


@dataclass(frozen=True)
class Stats:
    """What is in a store."""

    n_documents: int
    n_chunks: int
    n_bytes: int
    """On disk."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """How many documents have a label."""


class Store(Protocol):
    """Documents with their chunks, searched by words and by vectors: one generation of them."""

    @property
    def place(self) -> str:
        """Where it is, as `places.open_store` takes it."""
        ...

    @property
    def info(self) -> Mapping[str, Any]:
        """What it was made with: `embedder` (its name, hash and size, or None)."""
        ...

    @property
    def stats(self) -> Stats: ...

    @property
    def calibration(self) -> Mapping[str, Any] | None:
        """What `transom calibrate` found for it."""
        ...

    @property
    def is_current(self) -> bool:
        """Whether no newer generation has taken its place."""
        ...

    def files(self) -> Mapping[str, File]:
        """The files that it holds, by name, in the order in which they came."""
        ...

    def indexed(self, file: str) -> list[Indexed]:
        """The documents of a file, as `write` takes them."""
        ...

    def write(self, changes: Changes) -> None:
        """Make changes, all or none, and go on with the generation that has them."""
        ...

    def lexical(self, words: Sequence[str], k: int, labels: Labels = None) -> Hits:
        """The k chunks with the highest BM25 for any of these words."""
        ...

    def dense(self, vector: NDArray[np.float32], k: int, labels: Labels = None) -> Hits:
        """The k chunks whose vectors have the highest product with this one (D,)."""
        ...

    def fetch(self, ids: Sequence[int]) -> list[Passage]:
        """Chunks by id, in this order."""
        ...

    def document(self, name: str, labels: Labels = None) -> Document | None:
        """A document, where there is one that may be seen."""
        ...

    def close(self) -> None: ...
