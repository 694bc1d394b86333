"""Lines that give a loss its meaning: what a model would score that knows nothing, how often, or which
follows which.

Uniform: every token alike. Unigram: how often each token occurs (add-one). Bigram: which token follows which,
by interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999), the best known for such counts. All are
counted on the training text and scored on the held-out text. Read next: prepare.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transom.data.tokens import TokenFile

Counts = npt.NDArray[np.int64]

DENSE_PAIRS = 1 << 26
"""Up to this many pairs (a vocabulary of 8,192) are counted in a table of 256 MB, exactly."""

SPARSE_TOKENS = 1 << 24
"""Larger vocabularies are counted by sorting, on at most this many tokens spread over the text."""


@dataclass(frozen=True)
class Line:
    """One reference score on the held-out text."""

    nats_per_token: float
    bits_per_byte: float


@dataclass(frozen=True)
class NgramBaselines:
    """The reference lines of a corpus."""

    uniform: Line
    unigram: Line
    bigram: Line
    n_counted: int
    """Training tokens that were counted: all of them, or a sample for a large vocabulary."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NgramBaselines:
        lines = {name: Line(**values[name]) for name in ("uniform", "unigram", "bigram")}
        return cls(**lines, n_counted=values["n_counted"])


def count_baselines(train: TokenFile, held_out: TokenFile) -> NgramBaselines:
    """Count the training tokens and score the held-out ones."""
    single, keys, counts = _counted(train)
    n_vocab = train.vocab_size
    unigram = (single + 1) / (single.sum() + n_vocab)
    # Every pair that was seen gives up a little, which is shared out by how many tokens a token follows.
    given_up = _discounts(counts)[np.minimum(counts, 3)]
    firsts, seconds = np.divmod(keys, n_vocab)
    context, shared = (np.bincount(firsts, weights=x, minlength=n_vocab) for x in (counts, given_up))
    follows = np.bincount(seconds, minlength=n_vocab)
    less = _discounts(follows[follows > 0])[np.minimum(follows, 3)]
    continuing = (follows - less + less.sum() / n_vocab) / max(len(keys), 1)
    nats = np.zeros(3)
    n_targets = 0
    for chunk in held_out.chunks(overlap=1):
        first, second = chunk[:-1], chunk[1:]
        n_targets += len(second)
        wanted = first * n_vocab + second
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        seen = np.where(keys[at] == wanted, counts[at] - given_up[at], 0.0)
        total = context[first]
        smoothed = (seen + shared[first] * continuing[second]) / np.maximum(total, 1)
        bigram = np.where(total > 0, smoothed, continuing[second])
        nats[1:] -= np.log(unigram[second]).sum(), np.log(bigram).sum()
    nats[0] = n_targets * math.log(n_vocab)
    to_bits = 1 / (max(held_out.n_bytes, 1) * math.log(2))
    lines = [Line(float(score) / max(n_targets, 1), float(score) * to_bits) for score in nats]
    return NgramBaselines(*lines, n_counted=int(single.sum()))


def _discounts(counts: Counts) -> npt.NDArray[np.float64]:
    """What counts of 0, 1, 2 and of 3 and more give up, from how many of them are 1 to 4."""
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    if not n1 * n2 * n3 * n4:  # too few pairs to estimate anything
        return np.array([0, 0.5, 1, 1.5])
    y = n1 / (n1 + 2 * n2)
    estimated = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(estimated, [0, 0.1, 0.1, 0.1], [0, 1, 2, 3])


def _counted(train: TokenFile) -> tuple[Counts, Counts, Counts]:
    """How often each token occurs (V,), and the pairs that occur with their counts: sorted keys
    first*V+second.
    """
    n_vocab = train.vocab_size
    dense = n_vocab * n_vocab <= DENSE_PAIRS
    table = np.zeros(n_vocab * n_vocab if dense else 0, dtype=np.uint32)
    single = np.zeros(n_vocab, dtype=np.int64)
    keys, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    stride = 1 if dense else math.ceil(train.n_tokens / SPARSE_TOKENS)
    for number, chunk in enumerate(train.chunks(overlap=1)):
        if number % stride:
            continue
        single += np.bincount(chunk[1:] if number else chunk, minlength=n_vocab)
        pairs = chunk[:-1] * n_vocab + chunk[1:]
        if dense:
            np.add.at(table, pairs, np.uint32(1))
        else:
            keys, counts = _merged(keys, counts, pairs)
    if dense:
        keys = np.flatnonzero(table)
        counts = table[keys].astype(np.int64)
    return single, keys, counts


def _merged(keys: Counts, counts: Counts, pairs: Counts) -> tuple[Counts, Counts]:
    """Add the occurrences of `pairs` to sorted keys with counts."""
    fresh, times = np.unique(pairs, return_counts=True)
    both = np.concatenate([keys, fresh])
    order = np.argsort(both, kind="stable")
    both, amounts = both[order], np.concatenate([counts, times])[order]
    heads = np.flatnonzero(np.concatenate([[True], both[1:] != both[:-1]]))
    return both[heads], np.add.reduceat(amounts, heads)
