"""A reranker: a classifier that reads a question and a passage at once: do they belong together?

The one idea: an index compares vectors and words that were made apart; reading both at once sees more and
costs a pass for each passage, so only the best of a search are read. A model with one class is a
cross-encoder as sentence-transformers trains them; one with several was taught by `transom train --task
classify` on texts of a question, a line break and a passage. Source: Nogueira and Cho 2019. Read next:
search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from transom.errors import Refused
from transom.inference.batching import batches
from transom.inference.classifier import Classifier
from transom.inference.load import load

RIGHT = ("right", "relevant", "yes", "true", "1", "entailment")
"""What the class of a passage that belongs to the question is called."""
READ_TOKENS = 512
"""Of a question and its passage; the end of a longer passage is not read."""


class Reranker:
    """A model that reads a question and a passage together."""

    def __init__(self, model: Classifier, name: str) -> None:
        """Raises Refused where no class says that a passage belongs to the question."""
        self.model = model
        named = [at for at, label in enumerate(model.labels) if label.lower() in RIGHT]
        if len(model.labels) > 1 and len(named) != 1:
            said = f"{name} tells {', '.join(model.labels[:6])} apart"
            raise Refused(f"{said}; of a reranker one class is called {' or '.join(RIGHT)}")
        self.right = named[0] if len(model.labels) > 1 else None
        self.max_tokens = min(READ_TOKENS, model.max_tokens)

    @classmethod
    def open(cls, name: str, *, device: str | None = None) -> Reranker:
        """The model of a folder or a hub id. Raises Refused for one that is no classifier."""
        return cls(load(name, Classifier, device=device), name)

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """How likely each passage belongs to the question, from 0 to 1."""
        if self.right is not None:
            texts = [f"{question}\n{passage}" for passage in passages]
            right = self.model.labels[self.right]
            return [one.probabilities[right] for one in self.model.classify(texts, cut=True)]
        pairs = self.model.tokenizer.framed_pairs([question] * len(passages), passages, self.max_tokens)
        found = np.zeros(len(passages))
        for batch in batches([ids for ids, _ in pairs], self.model.model.embed.weight.device):
            segments = torch.zeros_like(batch.tokens)
            for row, place in enumerate(batch.places):
                sides = torch.from_numpy(pairs[place][1].astype(np.int64))
                segments[row, : len(sides)] = sides
            found[batch.places] = self.model.logits(batch, segments)[:, 0].sigmoid().cpu().numpy()
        return found.tolist()
