"""How likely a model finds each token: its probability, its rank, and how open the choice was.

Surprisal is -log p; entropy is what it would be on average if the model were right about its own
probabilities. A token can be likely and uncertain at once, so both are given. Read next: lens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import Refused
from ..model.recurrent import Recurrent
from ..model.transformer import Transformer
from ..units import counted
from . import figures
from .answer_score import chunks, device_of, hidden_of, logits_at
from .html import Picture
from .view import View, Words

POSITIONS = 64
"""Positions whose scores over the whole vocabulary are held at once."""


@dataclass(frozen=True)
class TokenProbabilities(View):
    """For each token but the first, in order: what the model gave it, reading only what stands before."""

    caveat: ClassVar[str] = (
        "a probability is the model's own and says nothing of whether the text is true; the first token is "
        "given, not predicted"
    )
    tokens: tuple[int, ...]
    logprob: Tensor
    """(L - 1,) float64, in nats."""
    rank: Tensor
    """(L - 1,) int64: 0 is the model's first choice."""
    entropy: Tensor
    """(L - 1,) float64, in nats."""
    top: Tensor
    """(L - 1, n) int64: what it would rather have said, most likely first."""
    top_logprob: Tensor
    """(L - 1, n) float64."""

    @property
    def perplexity(self) -> float:
        """exp of the mean surprisal over the tokens that were predicted."""
        return float((-self.logprob).mean().exp())

    def draw(self, words: Words) -> Picture:
        """Draw it; words gives the texts of its tokens."""
        return figures.token_probabilities(self.to_dict(), words(self.tokens))


@torch.no_grad()
def token_probabilities(
    model: nn.Module,
    tokens: Tensor | Sequence[int],
    *,
    top: int = 5,
    source: Tensor | Sequence[int] | None = None,
) -> TokenProbabilities:
    """The probability, rank and entropy of each token (L,) of a text. Raises `Refused`.

    source (M,): what an encoder-decoder reads. Sees exactly what generation sees: the plain forward pass.
    """
    ids = torch.as_tensor(tokens, device=device_of(model)).flatten()
    if len(ids) < 2:
        raise Refused(f"a text of {counted(len(ids), 'token')} has none that is predicted; give at least 2")
    config = getattr(model, "config", None)
    if getattr(config, "kind", "") == "encoder":
        raise Refused("an encoder sees the token it would be asked for; mask it and use attribute()")
    read = None if source is None else torch.as_tensor(source, device=ids.device).flatten()[None]
    if isinstance(model, (Transformer, Recurrent)):
        hidden = hidden_of(model, ids[None, :-1], read)[0]
        parts = [model.logits(some) for some in hidden.split(POSITIONS)]
    else:
        parts = list(logits_at(model, ids[None, :-1], source=read)[0].split(POSITIONS))
    found = [_judge(part, ids[1 + i * POSITIONS :][: len(part)], top) for i, part in enumerate(parts)]
    columns = [torch.cat(column).cpu() for column in zip(*found, strict=True)]
    return TokenProbabilities(tuple(ids.tolist()), *columns)


def _judge(logits: Tensor, said: Tensor, top: int) -> tuple[Tensor, ...]:
    """Scores (n, V) and the tokens (n,) that stand there."""
    own, best = logits.gather(-1, said[:, None]), logits.topk(min(top, logits.shape[-1]), dim=-1)
    most = logits.amax(-1, keepdim=True).double()
    below = (logits.double() - most).clamp_(min=-1e4)
    shares = below.exp()  # once: of a large vocabulary nothing here takes longer
    total = shares.sum(-1, keepdim=True)
    entropy = total.log()[:, 0] - shares.mul_(below).sum(-1) / total[:, 0]
    logs = most + total.log()
    return (own - logs)[:, 0], (logits > own).sum(-1), entropy, best.indices, best.values - logs


@torch.no_grad()
def unaided(model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """log p of each token (L,) from the third on where only the first token and the one before it are read:
    (L - 2,) float64.

    The first stays, since many models rest on it. What `token_probabilities` gives more is what the rest of
    the text told the model.
    """
    ids = torch.as_tensor(tokens, device=device_of(model))
    found = []
    for some in chunks(len(ids) - 2, POSITIONS):
        before, said = (ids[some.start + step : some.stop + step] for step in (1, 2))
        rows = torch.stack([ids[:1].expand(len(before)), before], 1)
        found.append(_judge(logits_at(model, rows, [1])[:, 0], said, 1)[0])
    return torch.cat(found).cpu()
