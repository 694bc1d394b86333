"""How often an embedder finds the partner of a text: recall@1 and the mean reciprocal rank.

Every first text of a pair is asked for among all second ones of the test set, by cosine similarity; whichever
equals its own partner counts as it. The larger the test set, the harder it is. Read next: against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.pairs import Pair
from ..inference.embedder import Embedder

AT_ONCE = 1024
"""Texts that are compared with all others at once."""


@dataclass(frozen=True)
class Found:
    """What an embedder found for each pair."""

    ranks: NDArray[np.int64]
    """(N,): 1 where the partner is the nearest."""
    nearest: NDArray[np.int64]
    """(N,): the pair whose second text is the nearest."""

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,): whether the nearest is the partner."""
        return self.ranks == 1


def find_partners(embedder: Embedder, pairs: Sequence[Pair], *, cut: bool = False) -> Found:
    """Look for the second text of every pair among those of all pairs.

    cut: texts that are too long lose their ends; else they raise Refused.
    """
    sides = zip(*[pair[:2] for pair in pairs], strict=True)
    one, other = (np.asarray(embedder.embed(list(side), cut=cut)) for side in sides)
    one, other = (
        side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (one, other)
    )
    numbers = {text: number for number, text in enumerate(dict.fromkeys(pair.target for pair in pairs))}
    texts = np.array([numbers[pair.target] for pair in pairs])
    ranks, nearest = [], []
    for start in range(0, len(pairs), AT_ONCE):
        alike = one[start : start + AT_ONCE] @ other.T
        rows = np.arange(len(alike))
        own = alike[rows, start + rows]
        apart = texts[None, :] != texts[start : start + len(alike), None]
        ranks.append(1 + ((alike >= own[:, None]) & apart).sum(axis=1))
        nearest.append(alike.argmax(axis=1))
    return Found(np.concatenate(ranks), np.concatenate(nearest))
