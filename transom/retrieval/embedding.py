"""Which encoder makes the vectors of an index: found, known again by its hash, and refused where it is
another.

Vectors of two encoders have nothing to do with each other, and comparing them gives answers that look right.
Read next: indexing, search.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.hub import name_of, resolve
from transom.checkpoint.manifest import fingerprint
from transom.errors import Refused
from transom.hardware import minilm

from .chunks import BETWEEN, Chunk
from .store import Document

if TYPE_CHECKING:
    from transom.inference.embedder import Embedder

NONE = "none"
"""In the place of an encoder: search by words alone."""


class TextEncoder:
    """An encoder with its hash, for texts and questions: (n, D) vectors of length 1."""

    def __init__(self, folder: str | Path, device: str | None = None, weights: str | None = None) -> None:
        """Load it. weights: as `load` takes them. Raises Refused for what does not embed."""
        from transom.inference.embedder import Embedder
        from transom.inference.load import load

        place = resolve(folder)
        self.embedder: Embedder = load(place, Embedder, device=device, weights=weights)
        config = self.embedder.model.config
        known = f"{fingerprint(place)} {self.embedder.tokenizer.hash} {config.pooling}"
        self.facts: dict[str, Any] = {
            "name": "MiniLM" if str(place) == str(minilm()) else name_of(place),
            "folder": str(Path(place).absolute()) if Path(str(folder)).exists() else str(folder),
            "sha256": hashlib.sha256(known.encode()).hexdigest(),
            "dim": config.dim,
            **({"weights": weights} if weights else {}),
        }
        """What an index keeps of it."""

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of texts; the end of one that is longer than the encoder reads has no part in it."""
        found = self.embedder.embed(list(texts), cut=True)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return (found / np.maximum(lengths, 1e-12)).astype(np.float32)

    def n_cut(self, texts: Sequence[str]) -> int:
        """How many of these texts are longer than the encoder reads."""
        tokenizer = self.embedder.tokenizer
        room = self.embedder.max_tokens - sum(map(len, tokenizer.frame))
        return sum(len(ids) > room for ids in tokenizer.encode_many(list(texts)))


def for_index(
    kept: Mapping[str, Any] | None,
    asked: str | None,
    where: str,
    *,
    new: bool,
    device: str | None = None,
    weights: str | None = None,
) -> TextEncoder | None:
    """The encoder to index or search with. kept: what the index was made with; asked: a folder, a hub id,
    `none`, or None: what was kept, and for a new index MiniLM where its package is installed. weights: as
    `load` takes them; questions are read by weights as they are, whatever passages were.

    Raises Refused where the index was made with another one.
    """
    if new:
        default = minilm()
        chosen = asked if asked is not None else None if default is None else str(default)
        if chosen not in (None, NONE):
            return TextEncoder(chosen, device, weights)
        if weights:
            raise Refused(f"{where}: no encoder reads {weights} weights here; leave out --weights, or name"
                          " one with --embedder")  # fmt: skip
        return None
    if kept is None:
        if asked not in (None, NONE):
            raise Refused(
                f"{where}: was indexed by words alone, without {asked}; index into another --out to have both"
            )
        return None
    again = "leave out --embedder, or index into another --out"
    if asked == NONE:
        raise Refused(f"{where}: was indexed with {kept['name']}, and --embedder is none; {again}")
    default = minilm()
    folder = asked or (str(default) if kept["name"] == "MiniLM" and default is not None else kept["folder"])
    try:
        encoder = TextEncoder(folder, device, weights)
    except Refused as refused:
        if asked is not None:
            raise
        raise Refused(f"{where}: was indexed with {kept['name']}, which cannot be loaded ({refused});"
                      " name its folder"
                      " with --embedder") from None  # fmt: skip
    if encoder.facts["sha256"] != kept["sha256"]:
        raise Refused(
            f"{where}: was indexed with {kept['name']} (sha256 {kept['sha256'][:12]}), and {folder} is"
            " another encoder"
            f" ({encoder.facts['sha256'][:12]}): their vectors cannot be compared;"
            f" {again if asked else 'index anew'}"
        )
    return encoder


def weights_of(kept: Mapping[str, Any] | None, asked: str | None, where: str) -> str | None:
    """By which weights passages are added to an index: as those that it has. Raises Refused for others."""
    had = (kept or {}).get("weights")
    if asked not in (None, had):
        raise Refused(f"{where}: was indexed without {asked} weights; leave out --weights, or index into"
                      " another --out")  # fmt: skip
    return had


def embedded_text(document: Document, chunk: Chunk) -> str:
    """What is read for the vector of a chunk: what it stands under, then itself."""
    under = [part for part in (document.title, chunk.section) if part]
    text = document.text[chunk.start : chunk.end]
    return f"{BETWEEN.join(under)}\n{text}" if under else text
