"""The logit lens: what the model would say if it stopped after each layer (nostalgebraist 2020).

The residual stream between two layers goes through the final norm and the output matrix, as if it were the
last. How far each layer's reading is from the final answer is printed beside it, as a divergence, since early
layers are not written to be read this way. Read next: gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from . import figures
from .activations import residual_stream
from .answer_score import device_of, hidden_of, logits_at
from .html import Picture
from .module_finder import ModelParts, model_parts
from .view import View, Words

POSITIONS = 64
"""Positions whose scores over the whole vocabulary are held at once."""


@dataclass(frozen=True)
class LogitLens(View):
    """Layer by layer (layer 0: before any; the last: the answer itself), position by position."""

    caveat: ClassVar[str] = (
        "early layers do not write in the language of the last one: a far reading does not mean that the "
        "answer was not there yet, only that this lens cannot read it"
    )
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    top: Tensor
    """(n_layers + 1, n, top) int64 tokens, most likely first."""
    logprob: Tensor
    """(n_layers + 1, n, top) float64, in nats."""
    divergence: Tensor
    """(n_layers + 1, n) float64: KL(final || layer) in nats; 0 in the last."""
    answer: Tensor
    """(n_layers + 1, n) float64: log p of the final answer's first choice at each layer."""

    @property
    def settled(self) -> Tensor:
        """(n,) the first layer from which on the first choice is the final one."""
        same = self.top[..., 0] == self.top[-1, :, 0]
        return len(same) - same.flip(0).long().cumprod(0).sum(0)

    def draw(self, words: Words) -> Picture:
        """Draw it; words gives the texts of its tokens."""
        return figures.lens(self.to_dict(), words(self.tokens), lambda token: words([token])[0])


@torch.no_grad()
def logit_lens(
    model: nn.Module,
    tokens: Tensor | Sequence[int],
    *,
    top: int = 5,
    positions: Sequence[int] | None = None,
    source: Tensor | Sequence[int] | None = None,
) -> LogitLens:
    """Read every layer of a run over tokens (L,) at some positions, by default all. Raises `Refused`."""
    parts = model_parts(model)
    ids = torch.as_tensor(tokens, device=device_of(model)).flatten()
    read = None if source is None else torch.as_tensor(source, device=ids.device).flatten()[None]
    chosen = tuple(range(len(ids))) if positions is None else tuple(range(len(ids))[p] for p in positions)
    ours = hasattr(model, "encode") or hasattr(model, "blocks")
    run = (lambda: hidden_of(model, ids[None], read)) if ours else (lambda: logits_at(model, ids[None]))  # type: ignore[arg-type]
    places = torch.tensor(chosen, device=ids.device)
    states = [x[0, places] for x in residual_stream(parts, run)]
    read_some = [_read(parts, some, top) for some in zip(*(x.split(POSITIONS) for x in states), strict=True)]
    found = [torch.cat(each, dim=1).cpu() for each in zip(*read_some, strict=True)]
    return LogitLens(tuple(ids.tolist()), chosen, *found)


def _read(parts: ModelParts, states: Sequence[Tensor], top: int) -> tuple[Tensor, ...]:
    """Streams (n, D) a layer -> top tokens, their log p, divergence and log p of the answer, a layer each."""
    final = parts.unembed(states[-1]).double().log_softmax(-1)
    first = final.argmax(-1, keepdim=True)
    told = []
    for x in states:  # the scores of one layer at a time are held
        layer = parts.unembed(x).double().log_softmax(-1)
        best = layer.topk(min(top, layer.shape[-1]), dim=-1)
        divergence = (final.exp() * (final - layer)).sum(-1)
        told.append((best.indices, best.values, divergence, layer.gather(-1, first)[:, 0]))
    return tuple(torch.stack(each) for each in zip(*told, strict=True))
