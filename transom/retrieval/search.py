"""Search: by words (BM25), by vectors, or both, whose scores are put on one scale and mixed.

The one idea: each side's best 200 are scaled from 0 to 1 by their own least and greatest, and what one side
did not find has 0 there. A mean of the two (Bruch 2022, convex combination) needs no labelled questions.
Read next: store, ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from transom.errors import Refused

from .embedding import TextEncoder, for_index
from .places import name_of, open_store, shown
from .reranker import Reranker
from .store import Hits, Labels, Passage, Store
from .words import words_of

POOL = 200
"""Chunks that each side proposes."""
RERANKED = 30
"""Passages that a reranker reads."""
MIX = 0.5
"""The vectors' part of the mixed score."""
LONGEST = 4000
"""Characters of a question."""
Way = Literal["both", "words", "vectors"]
STOP = frozenset(
    re.findall(
        r"\S+",
        "a an and are as at be but by can did do does for from had has have how if in into is it its many"
        " much no not of on or such that the their then there these they this to was were what when where"
        " which who whom whose why will with",
    )
)
"""Words that a question is not looked up by, unless it has no others (+0.008 nDCG@10 on Cranfield)."""


@dataclass(frozen=True)
class Hit:
    """A passage as it was found."""

    passage: Passage
    score: float
    """Mixed, from 0 to 1; of one side alone its own score."""
    words: float | None
    """Its BM25; None: not among the best by words."""
    vectors: float | None
    """Its cosine; None: not among the best by vectors."""
    reranker: float | None = None
    """How well a reranker says that it belongs to the question; None: it did not read it."""

    def to_dict(self) -> dict[str, Any]:
        one = self.passage
        return {
            "document": one.document,
            "start": one.start,
            "end": one.end,
            "section": one.section,
            "page": one.page,
            "score": self.score,
            "words": self.words,
            "vectors": self.vectors,
            "reranker": self.reranker,
        }


class KnowledgeBase:
    """A store with the encoder that its vectors are of, ready to be searched."""

    def __init__(
        self, store: Store, encoder: TextEncoder | None, name: str = "", reranker: Reranker | None = None
    ) -> None:
        """reranker: reads the best passages once more."""
        self.store, self.encoder, self.name, self.reranker = store, encoder, name, reranker

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        embedder: str | None = None,
        reranker: Reranker | None = None,
        device: str | None = None,
    ) -> KnowledgeBase:
        """Open an index: a folder, or the address of a database. embedder: another place of the encoder that
        it was made with. reranker: what reads the best passages once more.

        Raises Refused for what is no index, is damaged, or was made with another encoder.
        """
        store = open_store(path)
        encoder = for_index(store.info["embedder"], embedder, shown(path), new=False, device=device)
        return cls(store, encoder, name_of(path), reranker)

    def current(self) -> KnowledgeBase:
        """The same, or what has taken its place meanwhile, with the same encoder."""
        if self.store.is_current:
            return self
        newer = open_store(self.store.place)
        if newer.info["embedder"] != self.store.info["embedder"]:
            raise Refused(
                f"{shown(self.store.place)}: was made anew with another encoder; start again to use it"
            )
        return KnowledgeBase(newer, self.encoder, self.name, self.reranker)

    def search(
        self, question: str, k: int = 10, *, labels: Labels = None, way: Way = "both", mix: float = MIX
    ) -> list[Hit]:
        """The k passages that fit a question best; where there is a reranker, RERANKED of them by what that
        says. Raises Refused for an empty or an endless question.
        """
        checked(question)
        by_words = self.store.lexical(terms(question), POOL, labels) if way != "vectors" else []
        by_vectors: Hits = []
        if way == "vectors" and self.encoder is None:
            raise Refused(f"{self.name or 'this index'}: has no vectors; it was indexed by words alone")
        if way != "words" and self.encoder is not None:
            by_vectors = self.store.dense(self.vectors([question])[0], POOL, labels)
        words, vectors = dict(by_words), dict(by_vectors)
        scores = words if not vectors else vectors if not words else _mixed(words, vectors, mix)
        n = k if self.reranker is None else max(k, RERANKED)
        best = sorted(scores, key=lambda id: (-scores[id], id))[:n]
        found = self.store.fetch(best)
        hits = [
            Hit(passage, scores[id], words.get(id), vectors.get(id))
            for id, passage in zip(best, found, strict=True)
        ]
        return hits if self.reranker is None else self._reranked(question, hits, self.reranker)[:k]

    def _reranked(self, question: str, hits: list[Hit], reranker: Reranker) -> list[Hit]:
        read, rest = hits[:RERANKED], hits[RERANKED:]
        says = reranker.scores(question, [hit.passage.text for hit in read])
        scored = [replace(hit, reranker=score) for hit, score in zip(read, says, strict=True)]
        return sorted(scored, key=lambda hit: -(hit.reranker or 0.0)) + rest

    def vectors(self, texts: list[str]) -> NDArray[np.float32]:
        """The vectors of texts (n, D), of length 1."""
        assert self.encoder is not None
        return self.encoder.vectors(texts)


def checked(question: str) -> None:
    """Raise Refused for a question that is none."""
    if not question.strip():
        raise Refused("the question is empty; write what you want to know")
    if len(question) > LONGEST:
        raise Refused(
            f"the question has {len(question):,} characters; the limit is {LONGEST:,}: ask for one thing"
        )


def terms(question: str) -> list[str]:
    """The different words of a question, as they are looked up."""
    words = list(dict.fromkeys(words_of(question)))
    return [word for word in words if word not in STOP] or words


def _mixed(words: dict[int, float], vectors: dict[int, float], mix: float) -> dict[int, float]:
    parts: list[tuple[float, Callable[[int], float]]] = [(1 - mix, _scaled(words)), (mix, _scaled(vectors))]
    return {id: sum(weight * scale(id) for weight, scale in parts) for id in {*words, *vectors}}


def _scaled(scores: dict[int, float]) -> Callable[[int], float]:
    low, high = min(scores.values()), max(scores.values())
    width = high - low or 1.0
    return lambda id: (scores[id] - low) / width if id in scores else 0.0
