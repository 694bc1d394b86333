"""Embedding: a vector for each text, so that texts can be compared.

Read next: batching, text_encoder, encoder_engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from transom.data.tokenizer import Tokenizer
from transom.model.transformer import Transformer

from .batching import BUDGET, TextBatch, as_list, batches, framed
from .dtype import describe
from .text_encoder import TextEncoder


class Embedder:
    """An encoder with its tokenizer, ready to turn texts into vectors.

    `max_tokens` is how long a text may be, `model` the nn.Module, `tokenizer` turns text into ids.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, max_tokens: int | None = None, reason: str = "",
        weights: str = "",
    ) -> None:  # fmt: skip
        """A model in eval mode whose head embeds, meant for texts of at most `max_tokens` (None: all that it
        can read); `reason` says why it runs in its arithmetic. weights: `int8`, `bfloat16`, or "": as the
        model has them. Raises Refused where it cannot have them.
        """
        self.max_tokens = max_tokens or model.config.max_len
        self.model, self.tokenizer, self.reason = model, tokenizer, reason
        self._encoder = TextEncoder(model, weights)

    def __repr__(self) -> str:
        config = self.model.config
        pooled = {"mean": "the mean of all tokens", "first": "the first token"}[config.pooling]
        length = ", scaled to length 1" if config.normalize else ""
        said = f"vectors of {config.dim}: {pooled}{length}; texts of up to {self.max_tokens} tokens"
        return f"{describe(self.model, 'Embedder', self.reason, self.runs_by)[:-1]}; {said})"

    @property
    def runs_by(self) -> str:
        """What computes its vectors, and where that is PyTorch on a CPU, why."""
        return self._encoder.runs_by

    def embed(
        self, texts: str | Sequence[str], *, cut: bool = False, batch_tokens: int = BUDGET
    ) -> npt.NDArray[np.float32]:
        """The vectors of texts: (n, D) float32, or (D,) of one text.

        A blank text has a vector too, as in sentence-transformers.

        cut: leave out the end of a text that is longer than the model reads. batch_tokens: how many tokens go
        through at once. Raises Refused for a text that is too long and not to be cut.
        """
        listed, several = as_list(texts)
        ids = framed(self.tokenizer, listed, self.max_tokens, cut=cut, blank=True)
        vectors = np.empty((len(ids), self.model.config.dim), np.float32)
        for batch in batches(ids, self.model.embed.weight.device, budget=batch_tokens):
            vectors[batch.places] = self.read(batch)
        return vectors if several else vectors[0]

    def read(self, batch: TextBatch) -> npt.NDArray[np.float32]:
        """Return the vectors of the texts of one batch: (B, D)."""
        return self._encoder.read(batch).cpu().numpy()
