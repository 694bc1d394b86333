"""What a run minimises: a module that turns a batch into one summed loss.

An objective wraps a model so that DDP, FSDP2 and `torch.compile` have one callable to take hold of. Its value
is a sum over targets, not a mean: the loop divides once by the targets of the whole optimizer step, over
micro-batches and ranks, which is why accumulated equals unaccumulated. A method (fine-tuning, classification)
brings its own objective to the same loop.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.build import Model


class LanguageModelling(nn.Module):
    """Predict tokens, the next, the masked or those of a target: forward(batch) -> the sum of
    -log p(target) in nats, a float32 scalar.
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32, smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.dtype, self.smoothing = model, dtype, smoothing

    def forward(self, batch: Any) -> Tensor:
        return self.model.loss(batch, dtype=self.dtype, smoothing=self.smoothing)


class Classification(nn.Module):
    """Tell the class of a text: forward(batch) -> the sum of -log p(class), in nats.

    weights (C,): how much an example of each class counts while learning; an evaluation counts all alike.
    """

    weights: Tensor | None

    def __init__(
        self,
        model: Model,
        dtype: torch.dtype = torch.float32,
        weights: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.dtype, self.smoothing = model, dtype, smoothing
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, batch: Any) -> Tensor:
        hidden = self.model(batch.tokens, documents=batch.documents, dtype=self.dtype)
        scores = self.model.label_logits(hidden, batch.documents)  # type: ignore[union-attr]
        weights, smoothing = (self.weights, self.smoothing) if self.training else (None, 0.0)
        return F.cross_entropy(scores, batch.labels, weights, reduction="sum", label_smoothing=smoothing)


class Contrast(nn.Module):
    """Bring the two texts of a pair near each other and away from all others of the batch: forward(batch) ->
    the sum of -log p(own partner), in nats, both ways (van den Oord et al. 2018; in-batch negatives as
    Henderson et al. 2017).
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32, scale: float = 20.0) -> None:
        super().__init__()
        self.model, self.dtype, self.scale = model, dtype, scale

    def forward(self, batch: Any) -> Tensor:
        one = self._vectors(batch.tokens, batch.documents)
        other = self._vectors(batch.other_tokens, batch.other_documents)
        scores = self.scale * one @ other.T
        own = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, own, reduction="sum")
                + F.cross_entropy(scores.T, own, reduction="sum")) / 2  # fmt: skip

    def _vectors(self, tokens: Tensor, documents: Tensor | None) -> Tensor:
        hidden = self.model(tokens, documents=documents, dtype=self.dtype)
        return F.normalize(self.model.vectors(hidden, documents), dim=-1)  # type: ignore[union-attr]
