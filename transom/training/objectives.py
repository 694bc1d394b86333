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
from ..model.losses import IGNORE, sequence_losses


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
    Henderson et al. 2017). The negatives of triples are what the first texts of a whole step must be told
    from besides (hard negatives, Karpukhin et al. 2020).

    Its loss is of all rows of a step at once, so it is `joint`: a step in pieces first makes vectors, then
    asks `pulls` for their gradients over all pieces and ranks, then sends each piece's through the model
    (GradCache, Gao et al. 2021).
    """

    joint = True

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32, scale: float = 20.0) -> None:
        super().__init__()
        self.model, self.dtype, self.scale = model, dtype, scale

    def forward(self, batch: Any, pull: Tensor | None = None, *, only_vectors: bool = False) -> Tensor:
        """Return the loss of this batch alone; its vectors (B, S, D) of S sides; or, by `pull` (B, S, D),
        what has that gradient in the vectors.
        """
        sides = [(batch.tokens, batch.documents), (batch.other_tokens, batch.other_documents)]
        if batch.negative_tokens is not None:
            sides.append((batch.negative_tokens, batch.negative_documents))
        vectors = torch.stack([self._vectors(*side) for side in sides], dim=1)
        if only_vectors:
            return vectors
        return self.loss(vectors, batch.texts) if pull is None else (vectors * pull).sum()

    def loss(self, vectors: Tensor, texts: Tensor) -> Tensor:
        """Return the loss of pairs or triples by their vectors (B, S, D) and the numbers of their texts (B,
        S): equal texts have equal numbers, and are nobody's negatives.
        """
        one, *others = vectors.unbind(1)
        scores = (self.scale * one @ torch.cat(others).T).masked_fill(no_negatives(texts), -torch.inf)
        own = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, own, reduction="sum")
                + F.cross_entropy(scores[:, : len(own)].T, own, reduction="sum")) / 2  # fmt: skip

    def pulls(self, vectors: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of all pairs of a step, and its gradient in their vectors (B, S, D)."""
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            loss = self.loss(vectors, texts)
            (gradient,) = torch.autograd.grad(loss, vectors)
        return loss.detach(), gradient

    def _vectors(self, tokens: Tensor, documents: Tensor | None) -> Tensor:
        hidden = self.model(tokens, documents=documents, dtype=self.dtype)
        return F.normalize(self.model.vectors(hidden, documents), dim=-1)  # type: ignore[union-attr]


MEASURES = ("preferred", "margin", "likelier", "gained", "lost")
"""Of pairs of answers: those whose margin is above 0; the nats of margin; those whose chosen answer is the
likelier; those where it was not before the first step, and now is; those where it was, and now is not."""


class Preference(nn.Module):
    """Make the chosen of two answers likelier than the rejected one: forward(batch) -> the sum over pairs.

    dpo: -log sigmoid(beta * (gain of the chosen - gain of the rejected)), where the gain of an answer is its
    log-probability less that by the model as it was (Rafailov et al. 2023, eq. 7); `smoothing` is the chance
    that a pair is the wrong way round (Mitchell 2023, cDPO). orpo, which needs no model beside it: the mean
    -log p of the chosen answer's tokens - beta * log sigmoid(log odds(chosen) - log odds(rejected)), with
    odds of the mean log-probabilities (Hong et al. 2024, eq. 6 and 7).

    forward(batch, measured=True) -> the same, and beside it the sums that `measures` names.
    """

    def __init__(
        self,
        model: Model,
        dtype: torch.dtype = torch.float32,
        loss: str = "dpo",
        beta: float = 0.1,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.dtype, self.kind, self.beta, self.smoothing = model, dtype, loss, beta, smoothing
        self.measures = MEASURES if loss == "dpo" else MEASURES[:2]
        """What is counted besides; without a model beside it nothing is known of before."""

    def forward(self, batch: Any, *, measured: bool = False) -> Tensor:
        said = self.logprobs(batch)
        if self.kind == "orpo":
            targets = batch.targets, batch.other_targets
            said = said / torch.stack([(side != IGNORE).sum(1) for side in targets], dim=1)
            odds = said - torch.log(-torch.expm1(said))
            margin = odds[:, 0] - odds[:, 1]
            losses = -said[:, 0] - self.beta * F.logsigmoid(margin)
        else:
            gain = said - batch.reference
            margin = self.beta * (gain[:, 0] - gain[:, 1])
            flipped = self.smoothing if self.training else 0.0
            losses = -(1 - flipped) * F.logsigmoid(margin) - flipped * F.logsigmoid(-margin)
        if not measured:
            return losses.sum()
        after, before = (side[:, 0] > side[:, 1] for side in (said, batch.reference))
        sums = (margin > 0, margin, after, after & ~before, before & ~after)[: len(self.measures)]
        return torch.stack([losses.sum(), *(one.sum() for one in sums)])

    def logprobs(self, batch: Any) -> Tensor:
        """The log-probabilities of both answers of each pair, in nats: (B, 2) float32."""
        sides = ((batch.tokens, batch.targets), (batch.other_tokens, batch.other_targets))
        return torch.stack([self._logprobs(*side) for side in sides], dim=1)

    def _logprobs(self, tokens: Tensor, targets: Tensor) -> Tensor:
        model, hidden = self.model, self.model(tokens, dtype=self.dtype)
        cap, bias = model.config.logit_softcap, model.head.bias
        return -sequence_losses(model.head(hidden), model.output_weight, targets, cap, bias)  # type: ignore[arg-type]


def no_negatives(texts: Tensor) -> Tensor:
    """(B, B) whether text j of the other side must not count as a negative of pair i: it is that pair's own
    text, or belongs to a text equal to one of it. Of triples (B, 2 B), the negatives last: one that is a text
    of pair i.
    """
    one, other, *negatives = texts.unbind(1)
    same = (one[:, None] == one) | (other[:, None] == other) | (one[:, None] == other)
    same &= ~torch.eye(len(texts), dtype=torch.bool, device=texts.device)
    hard = [(one[:, None] == negative) | (other[:, None] == negative) for negative in negatives]
    return torch.cat([same, *hard], dim=1)
