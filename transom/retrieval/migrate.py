"""`transom index migrate`: everything that one store holds into another, file by file.

A batch is kept for good, and what the other has already is not written again: so after a kill the same
command goes on. Read next: places.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.errors import Refused

from .indexing import Tell
from .places import create_store, exists, open_store, shown, writing
from .store import Changes

BATCH = 20_000
"""Chunks of a batch."""


@dataclass(frozen=True)
class Migration:
    """What went from one store into another."""

    source: str
    target: str
    n_files: int
    n_documents: int
    n_chunks: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.target}: holds what {self.source} holds: {self.n_documents:,} documents in"
            f" {self.n_files:,} files, {self.n_chunks:,} chunks ({self.seconds:.1f} s)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return vars(self)


def migrate(source: str | Path, target: str | Path, *, tell: Tell = lambda _: None) -> Migration:
    """Write all of one store into another, with its vectors and its calibration.

    Raises Refused where the target holds something else, or was made with another encoder.
    """
    began, old, where = time.perf_counter(), open_store(source), shown(target)
    with writing(target):
        new = open_store(target) if exists(target) else create_store(target, old.info["embedder"])
        if new.info["embedder"] != old.info["embedder"]:
            raise Refused(f"{where}: was made with another encoder than {shown(source)}; name another place")
        files, known = old.files(), new.files()
        if other := next((name for name in known if known[name] != files.get(name)), None):
            raise Refused(
                f"{where}: holds {other}, which {shown(source)} does not hold so; name another place"
            )
        changes = Changes()
        for number, (name, file) in enumerate(files.items(), 1):
            if name not in known:
                changes.added.append((file, old.indexed(name)))
            if changes.n_chunks >= BATCH:
                new.write(changes)
                tell(f"kept: {number:,} of {len(files):,} files")
                changes = Changes()
        changes.calibration = old.calibration
        new.write(changes)
        stats = new.stats
        old.close()
        new.close()
    seconds = time.perf_counter() - began
    return Migration(shown(source), where, len(files), stats.n_documents, stats.n_chunks, seconds)
