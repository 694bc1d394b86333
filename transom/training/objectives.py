"""What a run minimises: a module that turns a batch into one summed loss.

An objective wraps a model so that DDP, FSDP2 and `torch.compile` have one callable to take hold of. Its value
is a sum over targets, not a mean: the loop divides once by the targets of the whole optimizer step, over
micro-batches and ranks, which is why accumulated equals unaccumulated; a `joint` objective, whose rows look
at each other, sees to that itself. A method (fine-tuning, classification) brings its own objective to the
same loop.
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

    weights (C,): how much an example of each class counts while learning. Alone that would multiply the odds
    by the weights; meanwhile their logarithms stand beside the scores, so that these give the odds of the
    data (as logit adjustment does, Menon et al. 2021). An evaluation counts all alike.
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
        if not self.training:
            return F.cross_entropy(scores, batch.labels, reduction="sum")
        if self.weights is not None:
            scores = scores + self.weights.log()
        return F.cross_entropy(
            scores, batch.labels, self.weights, reduction="sum", label_smoothing=self.smoothing
        )


class Contrast(nn.Module):
    """Bring the two texts of a pair near each other and away from all others of a step: forward(batch) ->
    the sum of -log p(own partner), in nats, both ways (van den Oord et al. 2018; in-batch negatives as
    Henderson et al. 2017).

    Its loss is of all rows of a step at once, so it is `joint`: a step in pieces first makes vectors, then
    asks `pulls` for their gradients over all pieces and ranks, then sends each piece's through the model
    (GradCache, Gao et al. 2021).
    """

    joint = True

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32, scale: float = 20.0) -> None:
        super().__init__()
        self.model, self.dtype, self.scale = model, dtype, scale

    def forward(self, batch: Any, pull: Tensor | None = None, *, only_vectors: bool = False) -> Tensor:
        """Return the loss of this batch alone; its vectors (B, 2, D); or, by `pull` (B, 2, D), what has that
        gradient in the vectors.
        """
        one = self._vectors(batch.tokens, batch.documents)
        other = self._vectors(batch.other_tokens, batch.other_documents)
        vectors = torch.stack([one, other], dim=1)
        if only_vectors:
            return vectors
        return self.loss(vectors, batch.texts) if pull is None else (vectors * pull).sum()

    def loss(self, vectors: Tensor, texts: Tensor) -> Tensor:
        """Return the loss of pairs by their vectors (B, 2, D) and the numbers of their texts (B, 2): equal
        texts have equal numbers, and are nobody's negatives.
        """
        one, other = vectors.unbind(1)
        scores = (self.scale * one @ other.T).masked_fill(no_negatives(texts), -torch.inf)
        own = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, own, reduction="sum")
                + F.cross_entropy(scores.T, own, reduction="sum")) / 2  # fmt: skip

    def pulls(self, vectors: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of all pairs of a step, and its gradient in their vectors (B, 2, D)."""
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            loss = self.loss(vectors, texts)
            (gradient,) = torch.autograd.grad(loss, vectors)
        return loss.detach(), gradient

    def _vectors(self, tokens: Tensor, documents: Tensor | None) -> Tensor:
        hidden = self.model(tokens, documents=documents, dtype=self.dtype)
        return F.normalize(self.model.vectors(hidden, documents), dim=-1)  # type: ignore[union-attr]


def no_negatives(texts: Tensor) -> Tensor:
    """(B, B) whether text j of the other side must not count as a negative of pair i: it is that pair's own
    text, or belongs to a text equal to one of it.
    """
    one, other = texts.unbind(1)
    same = (one[:, None] == one) | (other[:, None] == other) | (one[:, None] == other)
    return same & ~torch.eye(len(texts), dtype=torch.bool, device=texts.device)
