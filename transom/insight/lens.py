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

from .anatomy import anatomy, stream
from .question import device_of, hidden_of, logits_at
from .view import View


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
    parts = anatomy(model)
    ids = torch.as_tensor(tokens, device=device_of(model)).flatten()
    read = None if source is None else torch.as_tensor(source, device=ids.device).flatten()[None]
    chosen = tuple(range(len(ids))) if positions is None else tuple(range(len(ids))[p] for p in positions)
    ours = hasattr(model, "encode") or hasattr(model, "blocks")
    run = (lambda: hidden_of(model, ids[None], read)) if ours else (lambda: logits_at(model, ids[None]))  # type: ignore[arg-type]
    places = torch.tensor(chosen, device=ids.device)
    logs = [parts.unembed(x[0, places]).double().log_softmax(-1) for x in stream(parts, run)]
    final = logs[-1]
    first = final.argmax(-1, keepdim=True)
    best = [layer.topk(min(top, layer.shape[-1]), dim=-1) for layer in logs]
    return LogitLens(
        tokens=tuple(ids.tolist()),
        positions=chosen,
        top=torch.stack([b.indices for b in best]).cpu(),
        logprob=torch.stack([b.values for b in best]).cpu(),
        divergence=torch.stack([(final.exp() * (final - layer)).sum(-1) for layer in logs]).cpu(),
        answer=torch.stack([layer.gather(-1, first)[:, 0] for layer in logs]).cpu(),
    )
