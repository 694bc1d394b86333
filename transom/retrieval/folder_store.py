"""The store of one machine: a folder with one SQLite file and one matrix of vectors, committed as a whole.

    kb/  index.json  documents.sqlite  vectors.npy  (scan.npy, scales.npy above 50,000 chunks)  manifest.json

A write copies the folder, changes the copy and swaps the two (`checkpoint.folder`), so whoever reads keeps
the generation that they opened, a kill leaves the old one or the new one, and what was deleted leaves no gap.
It costs a copy of what is there: so writes come in batches (`indexing`). Read next: vectors, indexing.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from transom.checkpoint.folder import commit, recover, replace_file, sweep, verify
from transom.checkpoint.manifest import MANIFEST
from transom.checkpoint.strict_json import read_json
from transom.errors import Refused, nearest_path

from .chunks import Chunk
from .store import FILES, Changes, Document, File, Hits, Indexed, Labels, Passage, Stats
from .vectors import FILE, Vectors, write_vectors
from .words import TOKENIZE, divided

INDEX, DATABASE, CALIBRATION = "index.json", "documents.sqlite", "calibration.json"
VERSION = 2
TRIES = 50
"""To open a folder that is being replaced at this very moment."""
SCHEMA = f"""
CREATE TABLE files (name TEXT PRIMARY KEY, root TEXT NOT NULL, sha256 TEXT NOT NULL); CREATE TABLE documents
(id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, file TEXT NOT NULL, kind TEXT NOT NULL, title TEXT NOT
NULL, text TEXT NOT NULL); CREATE INDEX documents_by_file ON documents (file); CREATE TABLE labels (document
INTEGER NOT NULL, label TEXT NOT NULL, PRIMARY KEY (document, label)) WITHOUT ROWID; CREATE TABLE chunks (id
INTEGER PRIMARY KEY, document INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, section TEXT
NOT NULL, undivided TEXT); CREATE INDEX chunks_by_document ON chunks (document); CREATE VIRTUAL TABLE words
USING fts5(section, text, tokenize='{TOKENIZE}');
"""
SEEN = (
    "(NOT EXISTS (SELECT 1 FROM labels WHERE labels.document = {0}) OR EXISTS"
    " (SELECT 1 FROM labels WHERE labels.document = {0} AND label IN (SELECT value FROM json_each(?))))"
)
"""Whether a document may be seen by whoever holds the labels of a JSON list."""


class FolderStore:
    """One generation of a folder, open to be read; `write` makes the next one and goes on with it."""

    def __init__(self, path: str | Path) -> None:
        """Open the folder; raises Refused for what is none, or is damaged."""
        self.path = Path(path)
        recover(self.path)
        self._open()

    @classmethod
    def create(cls, path: str | Path, embedder: Mapping[str, Any] | None) -> FolderStore:
        """Make an empty one, to be searched with this embedder. Raises Refused where something else is."""
        with commit(path) as new:
            with closing(sqlite3.connect(new / DATABASE)) as database:
                database.executescript(SCHEMA)
            _write_info(new, embedder)
        return cls(path)

    @property
    def place(self) -> str:
        return str(self.path)

    @property
    def info(self) -> Mapping[str, Any]:
        return self._info

    @property
    def is_current(self) -> bool:
        try:
            return _generation(self.path) == self._generation
        except Refused:
            return True  # at this very moment it is being replaced, or it is gone

    @property
    def calibration(self) -> dict[str, Any] | None:
        return self._calibration

    def files(self) -> dict[str, File]:
        return {row[0]: File(*row) for row in self._all(FILES)}

    def indexed(self, file: str) -> list[Indexed]:
        found = []
        for (name,) in self._all("SELECT name FROM documents WHERE file = ? ORDER BY id", file):
            document = self.document(name)
            assert document is not None
            rows = self._all(
                "SELECT chunks.id, first, last, section FROM chunks JOIN documents ON documents.id = document"
                " WHERE name = ? ORDER BY chunks.id",
                name,
            )
            vectors = None
            if self._vectors is not None:
                places = np.searchsorted(self._ids, [row[0] for row in rows])
                vectors = self._vectors.rows[places].astype(np.float32)
            found.append(Indexed(document, [Chunk(*row[1:]) for row in rows], vectors))
        return found

    def write(self, changes: Changes) -> None:
        """Make changes, all or none. Raises Refused where the disk is full, or the folder is no longer
        ours.
        """
        if not self.is_current:
            raise Refused(f"{self.path}: another process wrote to it meanwhile; run this again")
        kept = self._calibration if changes.calibration is None else dict(changes.calibration)
        if changes.removed or changes.added:
            self._write_files(changes, kept)
        elif changes.calibration is not None:  # alone it is no reason to copy all the rest
            replace_file(self.path, CALIBRATION, json.dumps(kept, indent=1))
        self.close()
        self._open()

    def _write_files(self, changes: Changes, calibration: dict[str, Any] | None) -> None:
        """Make the next generation, and put it in place of this one."""
        dim = (self._info["embedder"] or {}).get("dim")
        with commit(self.path) as new:
            shutil.copyfile(self.path / DATABASE, new / DATABASE)
            if calibration is not None:
                (new / CALIBRATION).write_text(json.dumps(calibration, indent=1), encoding="utf-8")
            with closing(sqlite3.connect(new / DATABASE)) as database:
                # The copy counts only once it is sealed and synced: no journal of its own.
                database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")
                for name in [*changes.removed, *(file.name for file, _ in changes.added)]:
                    _remove(database, name)
                kept = [row[0] for row in database.execute("SELECT id FROM chunks ORDER BY id")]
                for file, documents in changes.added:
                    _add(database, file, documents)
                n = database.execute("SELECT count(*) FROM chunks").fetchone()[0]
                database.execute("COMMIT")
            if dim and n:
                rows = np.searchsorted(self._ids, kept)
                write_vectors(new, self._blocks(rows, changes), n, dim)
            _write_info(new, self._info["embedder"])

    def lexical(self, words: Sequence[str], k: int, labels: Labels = None) -> Hits:
        if not words:
            return []
        asked = " OR ".join(f'"{word}"' for word in words)  # quoted: no word is an operator
        if labels is None:
            found = self._all(
                "SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid"
                " LIMIT ?",
                asked, k,
            )  # fmt: skip
        else:
            found = self._all(
                "SELECT words.rowid, -bm25(words) FROM words JOIN chunks ON chunks.id = words.rowid WHERE"
                " words MATCH ?"
                f" AND {SEEN.format('chunks.document')} ORDER BY bm25(words), words.rowid LIMIT ?",
                asked, json.dumps(sorted(labels)), k,
            )  # fmt: skip
        return found

    def dense(self, vector: NDArray[np.float32], k: int, labels: Labels = None) -> Hits:
        if self._vectors is None:
            return []
        seen = None if labels is None or not self._has_labels else self._seen(tuple(sorted(labels)))
        return [(int(self._ids[row]), score) for row, score in self._vectors.best(vector, k, seen)]

    def fetch(self, ids: Sequence[int]) -> list[Passage]:
        found = []
        for id in ids:
            name, kind, title, first, last, section, text, before = self._all(
                "SELECT name, kind, title, first, last, chunks.section, COALESCE(undivided, words.text),"
                " CASE kind WHEN 'pdf' THEN substr(documents.text, 1, first) ELSE '' END"
                " FROM chunks JOIN documents ON documents.id = document JOIN words ON words.rowid = chunks.id"
                " WHERE chunks.id = ?",
                id,
            )[0]  # fmt: skip
            page = 1 + before.count("\f") if kind == "pdf" else None
            found.append(Passage(name, first, last, text, section, title, page))
        return found

    def document(self, name: str, labels: Labels = None) -> Document | None:
        seen, values = (
            ("1", []) if labels is None else (SEEN.format("documents.id"), [json.dumps(sorted(labels))])
        )
        rows = self._all(
            f"SELECT id, name, file, text, kind, title FROM documents WHERE name = ? AND {seen}",
            name,
            *values,
        )
        if not rows:
            return None
        own = self._all("SELECT label FROM labels WHERE document = ? ORDER BY label", rows[0][0])
        return Document(*rows[0][1:], labels=tuple(label for (label,) in own))

    @property
    def stats(self) -> Stats:
        n_documents = self._all("SELECT count(*) FROM documents")[0][0]
        labels = dict(self._all("SELECT label, count(*) FROM labels GROUP BY label ORDER BY label"))
        return Stats(n_documents, len(self._ids), self._n_bytes, labels)

    def close(self) -> None:
        self._database.close()

    def _open(self) -> None:
        """Open all of one generation: what is opened between two looks at the same one is of that."""
        for _ in range(TRIES):
            generation = _generation(self.path)
            try:
                self._open_files()
            except (OSError, sqlite3.Error, Refused) as error:
                if _generation(self.path) == generation:
                    raise Refused(
                        str(error) if isinstance(error, Refused) else f"{self.path}: {error}"
                    ) from None
                continue
            if _generation(self.path) == generation:
                self._generation = generation
                return
        raise Refused(f"{self.path}: it is replaced faster than it can be opened; try again")

    def _open_files(self) -> None:
        verify(self.path)
        self._info = _info_of(self.path)
        kept = self.path / CALIBRATION
        self._calibration = read_json(kept) if kept.exists() else None
        # Immutable: no lock is taken and nothing is written, however many read.
        uri = f"{(self.path / DATABASE).absolute().as_uri()}?immutable=1"
        self._database = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
        self._ids = np.array(self._all("SELECT id FROM chunks ORDER BY id"), np.int64).reshape(-1)
        self._vectors = Vectors(self.path) if (self.path / FILE).exists() else None
        self._n_bytes = sum(file.stat().st_size for file in self.path.iterdir())
        self._has_labels = bool(self._all("SELECT 1 FROM labels LIMIT 1"))
        self._seen = lru_cache(maxsize=64)(self._mask)

    def _all(self, query: str, *values: Any) -> list[Any]:
        return self._database.execute(query, values).fetchall()

    def _mask(self, labels: tuple[str, ...]) -> NDArray[np.bool_]:
        """Which chunks whoever holds these labels may see."""
        query = f"SELECT {SEEN.format('chunks.document')} FROM chunks ORDER BY id"
        return np.array(self._all(query, json.dumps(labels)), np.bool_).reshape(-1)

    def _blocks(
        self, rows: NDArray[np.integer[Any]], changes: Changes
    ) -> Iterator[NDArray[np.floating[Any]]]:
        """The vectors that stay, and those that come."""
        if self._vectors is not None:
            for some in np.array_split(rows, max(1, -(-len(rows) // 16_384))):
                yield self._vectors.rows[some]
        for _, documents in changes.added:
            for one in documents:
                if one.vectors is not None and len(one.chunks):
                    yield one.vectors


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Be the only one that writes to a folder. Raises Refused where another process is."""
    path = Path(path).absolute()
    if not path.parent.is_dir():
        raise Refused(f"{path}: there is no folder {path.parent}{nearest_path(path.parent, Path.is_dir)}")
    lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Refused(
            f"{path}: another process is writing to it; wait for it, or name another --out"
        ) from None
    except OSError as error:
        raise Refused(f"{path}: cannot be written ({(error.strerror or str(error)).lower()})") from None
    try:
        sweep(path.parent)
        yield
    finally:
        lock.release()


def _generation(path: Path) -> str:
    """What tells a generation from every other: the digest over all files. Raises Refused where there is
    none.
    """
    if not (path / INDEX).is_file():
        if path.is_dir():
            raise Refused(f"{path}: not a knowledge base; transom index DOCS --out {path} makes one")
        raise Refused(f"{path}: no such knowledge base{nearest_path(path, Path.is_dir)}")
    return str(read_json(path / MANIFEST).get("digest"))


def _info_of(path: Path) -> dict[str, Any]:
    info = read_json(path / INDEX)
    if info.get("transom_index") != VERSION:
        raise Refused(
            f"{path / INDEX}: not an index of version {VERSION}; make it again: transom index DOCS --out NEW"
        )
    return info


def _write_info(new: Path, embedder: Mapping[str, Any] | None) -> None:
    info = {"transom_index": VERSION, "embedder": None if embedder is None else dict(embedder)}
    (new / INDEX).write_text(json.dumps(info, indent=1), encoding="utf-8")


def _remove(database: sqlite3.Connection, file: str) -> None:
    ids = "SELECT id FROM documents WHERE file = ?"
    chunks = f"SELECT id FROM chunks WHERE document IN ({ids})"
    for where, of in (
        ("words WHERE rowid", chunks),
        ("chunks WHERE document", ids),
        ("labels WHERE document", ids),
    ):
        database.execute(f"DELETE FROM {where} IN ({of})", (file,))
    database.execute("DELETE FROM documents WHERE file = ?", (file,))
    database.execute("DELETE FROM files WHERE name = ?", (file,))


def _add(database: sqlite3.Connection, file: File, documents: Sequence[Indexed]) -> None:
    database.execute("INSERT INTO files VALUES (?, ?, ?)", (file.name, file.root, file.sha256))
    for one in documents:
        document = one.document
        added = database.execute(
            "INSERT INTO documents (name, file, kind, title, text) VALUES (?, ?, ?, ?, ?)",
            (document.name, file.name, document.kind, document.title, document.text),
        ).lastrowid
        database.executemany(
            "INSERT INTO labels VALUES (?, ?)", [(added, label) for label in {*document.labels}]
        )
        for chunk in one.chunks:
            text = document.text[chunk.start : chunk.end]
            spaced = divided(text)  # most texts are as they were, and then kept once
            id = database.execute(
                "INSERT INTO chunks (document, first, last, section, undivided) VALUES (?, ?, ?, ?, ?)",
                (added, chunk.start, chunk.end, chunk.section, text if text != spaced else None),
            ).lastrowid
            database.execute(
                "INSERT INTO words (rowid, section, text) VALUES (?, ?, ?)",
                (id, divided(chunk.section), spaced),
            )
