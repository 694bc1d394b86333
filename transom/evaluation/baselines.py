"""The cheap systems that a network must beat to be worth its cost.

For classes: TF-IDF with logistic regression, strong on small data and trained in seconds, and always saying
the commonest class. For translation: copying the source, and looking up the most similar training text. For
vectors: TF-IDF of words, as a search for words has it.
Read next: examine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline, make_union

from ..errors import Refused

STRENGTHS = (1.0, 4.0, 16.0, 64.0)
"""Inverse strengths of the regularisation that are tried."""
FOLDS = 3


class TfidfLogistic:
    """TF-IDF of words, word pairs and pieces of words, then logistic regression.

    The regularisation is chosen by cross-validation within what it learns from: about 10 s for 5,000 short
    texts. balanced: every class weighs the same however rare it is, in learning and in that choice.
    """

    def __init__(self, *, balanced: bool = False, seed: int = 0) -> None:
        self.balanced, self.seed = balanced, seed
        self.name = "TF-IDF + logistic regression" + ", classes weighed equally" * balanced
        self.labels: tuple[str, ...] = ()
        self.strength = STRENGTHS[0]
        """The strength that was chosen."""

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> Self:
        """Learn from texts and their labels. Raises `Refused` for a single class."""
        wanted = np.array(labels)
        if len(set(labels)) < 2:
            raise Refused(
                f"all {len(labels):,} training texts have one label; a classifier needs two or more"
            )
        right = dict.fromkeys(STRENGTHS, 0.0)
        counts = Counter(labels)
        weights = np.array([1 / counts[label] if self.balanced else 1.0 for label in labels])
        for held_out in self._folds(wanted):
            if len(set(wanted[~held_out])) < 2:
                continue
            inside, outside = (
                [texts[i] for i in np.flatnonzero(side).tolist()] for side in (~held_out, held_out)
            )
            features = _features(len(inside))
            seen, unseen = features.fit_transform(inside), features.transform(outside)
            for strength in STRENGTHS:
                model = self._logistic(strength).fit(seen, wanted[~held_out])
                hits = model.predict(unseen) == wanted[held_out]
                right[strength] += float(weights[held_out][hits].sum())
        self.strength = max(STRENGTHS, key=lambda strength: (right[strength], -strength))
        self._features = _features(len(texts))
        self._model = self._logistic(self.strength).fit(self._features.fit_transform(texts), wanted)
        self.labels = tuple(self._model.classes_.tolist())
        return self

    def probabilities(self, texts: Sequence[str], labels: Sequence[str] | None = None) -> NDArray[Any]:
        """Probabilities (N, C), columns in the order of `labels`, by default its own; unknown ones get 0."""
        own = self._model.predict_proba(self._features.transform(texts))
        if labels is None:
            return own
        columns = np.zeros((len(texts), len(labels)))
        for i, label in enumerate(labels):
            if label in self.labels:
                columns[:, i] = own[:, self.labels.index(label)]
        return columns

    def _folds(self, wanted: NDArray[Any]) -> list[NDArray[np.bool_]]:
        """Which texts each fold leaves out, every class dealt out evenly."""
        shuffled = np.random.default_rng(self.seed).permutation(len(wanted))
        dealt = np.empty(len(wanted), np.int64)
        dealt[shuffled[np.argsort(wanted[shuffled], kind="stable")]] = np.arange(len(wanted)) % FOLDS
        return [dealt == fold for fold in range(FOLDS) if (dealt == fold).any()]

    def _logistic(self, strength: float) -> LogisticRegression:
        weight = "balanced" if self.balanced else None
        return LogisticRegression(C=strength, class_weight=weight, tol=1e-3, max_iter=1000)


def _features(n_texts: int) -> FeatureUnion:
    """What a text is described by; pieces that occur in one text only are left out where there are many."""
    rarest = 2 if n_texts >= 100 else 1
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=rarest, sublinear_tf=True)
    return make_union(words, pieces)


def majority(labels: Sequence[str]) -> str:
    """The commonest label; of equally common ones the first by name."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def copy_source(sources: Sequence[str]) -> list[str]:
    """The sources as their own translations."""
    return list(sources)


class TranslationMemory:
    """For each text the translation of the most similar training text, by TF-IDF of pieces of words."""

    name = "the translation of the most similar training text"
    rows = 256
    """Texts looked up at once."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self.targets = list(targets)
        self._features = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
        self._known = self._features.fit_transform(sources).T.tocsr()

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The looked-up translations."""
        found: list[str] = []
        for start in range(0, len(texts), self.rows):
            alike = self._features.transform(texts[start : start + self.rows]) @ self._known
            found += [self.targets[i] for i in np.asarray(alike.argmax(axis=1)).ravel()]
        return found


class TfidfEmbedder:
    """Texts as vectors by the words in them, rare ones weighing more."""

    name = "TF-IDF of words"
    width = 1 << 14
    """Numbers of a vector: words that share one are taken for one."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = HashingVectorizer(n_features=self.width, alternate_sign=False, norm=None)  # type: ignore[arg-type]
        self._features = make_pipeline(counts, TfidfTransformer(sublinear_tf=True)).fit(texts)

    def embed(self, texts: Sequence[str], *, cut: bool = False) -> NDArray[np.float32]:
        """Vectors (N, width) of length 1, or 0 of a text without a word; none is too long, whatever `cut`."""
        return self._features.transform(texts).toarray().astype(np.float32)
