"""Classification: the class of a text, how sure the model is, and the right to say nothing.

Read next: batching, text_encoder, encoder_engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.model.transformer import Transformer

from .batching import TextBatch, as_list, batches, framed
from .dtype import describe
from .text_encoder import TextEncoder


@dataclass(frozen=True)
class Classification:
    """What a classifier says of one text."""

    label: str | None
    """The likeliest class; None: rejected, since its probability was below the limit asked for."""
    probabilities: dict[str, float]
    """Of every class, in the model's order; they sum to 1."""
    confidence: float
    """The probability of the likeliest class."""

    def __str__(self) -> str:
        return "(rejected)" if self.label is None else self.label

    def unless_below(self, limit: float | None) -> Classification:
        """Return the same, without a label where the confidence is below a limit (None: no limit)."""
        return self if limit is None or self.confidence >= limit else replace(self, label=None)


class Classifier:
    """An encoder that tells classes apart, with its tokenizer.

    `labels` are the names of its classes, `max_tokens` how long a text may be, `model` is the nn.Module,
    `tokenizer` turns text into ids.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, reason: str = "", weights: str = ""
    ) -> None:
        """A model in eval mode whose head classifies; `reason` says why it runs in its arithmetic. weights:
        `int8`, `bfloat16`, or "": as the model has them. Raises Refused where it cannot have them.
        """
        self.model, self.tokenizer, self.reason = model, tokenizer, reason
        self.labels, self.max_tokens = model.config.labels, model.config.max_len
        self._encoder = TextEncoder(model, weights)

    def __repr__(self) -> str:
        named = ", ".join(self.labels[:6]) + (", ..." if len(self.labels) > 6 else "")
        said = f"{len(self.labels)} classes: {named}"
        return f"{describe(self.model, 'Classifier', self.reason, self.runs_by)[:-1]}; {said})"

    @property
    def runs_by(self) -> str:
        """What computes its scores, and where that is PyTorch on a CPU, why."""
        return self._encoder.runs_by

    @overload
    def classify(
        self, texts: str, *, reject_below: float | None = None, cut: bool = False, temperature: float = 1.0
    ) -> Classification: ...
    @overload
    def classify(
        self,
        texts: Sequence[str],
        *,
        reject_below: float | None = None,
        cut: bool = False,
        temperature: float = 1.0,
    ) -> list[Classification]: ...
    def classify(
        self,
        texts: str | Sequence[str],
        *,
        reject_below: float | None = None,
        cut: bool = False,
        temperature: float = 1.0,
    ) -> Classification | list[Classification]:
        """The class of one text, or of each of several.

        reject_below: give no label where the likeliest class has a smaller probability. cut: leave out the
        end of a text that is longer than the model reads. temperature: what the logits are divided by before
        they are probabilities; above 1 for a model that is too sure, by as much as its evaluation says.
        Raises Refused for an empty text, and for one that is too long and not to be cut.
        """
        if not 0 < temperature < math.inf:
            raise Refused(f"temperature is {temperature}; logits are divided by it: a number above 0")
        if reject_below is not None and not 0 <= reject_below <= 1:
            raise Refused(f"reject_below is {reject_below}; a probability lies between 0 and 1")
        listed, several = as_list(texts)
        ids = framed(self.tokenizer, listed, self.max_tokens, cut=cut)
        answers: dict[int, Classification] = {}
        for batch in batches(ids, self.model.embed.weight.device):
            answers.update(zip(batch.places, self.read(batch, temperature), strict=True))
        ordered = [answers[place].unless_below(reject_below) for place in range(len(ids))]
        return ordered if several else ordered[0]

    @torch.inference_mode()
    def read(self, batch: TextBatch, temperature: float = 1.0) -> list[Classification]:
        """Return the classes of the texts of one batch. Raises Refused where there is one class only."""
        if len(self.labels) == 1:
            raise Refused("this model has one class: it scores a passage beside a question, and tells none"
                          " apart; transom ask KB QUESTION --reranker MODEL")  # fmt: skip
        return [self._answer(row) for row in (self.logits(batch) / temperature).softmax(-1).tolist()]

    def logits(self, batch: TextBatch, segments: Tensor | None = None) -> Tensor:
        """The scores of the classes of the texts of one batch: (B, C) float32; segments: (B, L) of tokens."""
        return self._encoder.read(batch, segments)

    def _answer(self, row: list[float]) -> Classification:
        confidence = max(row)
        label = self.labels[row.index(confidence)]
        return Classification(label, dict(zip(self.labels, row, strict=True)), confidence)
