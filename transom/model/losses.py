"""Next-token loss without ever holding the logits of a whole batch.

The product with the vocabulary is cut into runs of rows; each run's logits live only until its loss and its
gradient are taken (as in cut cross-entropy, Wijmans et al. 2024, without the kernel). The gradient of a sum
is computed on the way forward, so no run is multiplied twice; that of `sequence_losses` hangs on what is made
of them, so its runs are multiplied again on the way back. `cross_entropy_plain` and `sequence_losses_plain`
are the oracles.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .scores import rounded_scores, scores

IGNORE = -100
"""The target of a position that carries no loss."""

RUN_BYTES = 16 << 20
"""Logits held at a time where the vocabulary is small: a cache helps, and the product is fast."""


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    bias: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """The sum of -log p(target), in nats, over targets other than -100: a float32 scalar.

    hidden (N, D), weight (V, D), bias (V,), targets (N,) int64. `smoothing` takes that share of each target's
    weight and spreads it evenly over the vocabulary (Szegedy et al. 2016). Memory: `RUN_BYTES` of logits,
    never N * V.
    """
    kept = targets != IGNORE
    if not bool(kept.all()):
        hidden, targets = hidden[kept], targets[kept]
    learned = (hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)
    wanted = learned if torch.is_grad_enabled() else (False, False, False)
    return _Chunked.apply(hidden, weight, bias, targets, softcap, smoothing, wanted)  # type: ignore[no-any-return]


def run_rows(n_tokens: int, dim: int) -> int:
    """Tell how many rows of logits are held at a time, for a vocabulary and a width.

    Each run reads the whole matrix and adds to its gradient, which must not cost more than the run's logits.
    """
    return max(RUN_BYTES // (4 * n_tokens), dim // 2, 1)


def cross_entropy_plain(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    bias: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """The same, with all logits at once."""
    logits = cap(scores(hidden, weight, bias), softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)


def sequence_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The sum of -log p(target), in nats, of every row: (B,) float32.

    hidden (B, L, D), weight (V, D), bias (V,), targets (B, L) int64, -100 where nothing counts. Memory as of
    `cross_entropy`.
    """
    kept = targets != IGNORE
    losses: Tensor = _Each.apply(hidden[kept], weight, bias, targets[kept], softcap)  # type: ignore[assignment]
    return losses.new_zeros(targets.shape).masked_scatter(kept, losses).sum(1)


def sequence_losses_plain(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The same, with all logits at once."""
    logits = cap(scores(hidden, weight, bias), softcap)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return losses.sum(1)


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """Squash logits to softcap * tanh(logits / softcap); None leaves them as they are."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class _Chunked(torch.autograd.Function):
    """Loss and gradient, run by run."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        smoothing: float,
        learned: tuple[bool, bool, bool],
    ) -> Tensor:
        product = rounded_scores if any(learned) else scores
        cast, offset = _as_constants(hidden, weight, bias)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradients = _Gradients(hidden, weight, bias, learned) if any(learned) else None
        for run in _runs(targets, weight):
            part, wanted = hidden[run], targets[run, None]
            logits = cap(product(part, cast, offset), softcap)
            log_total = logits.logsumexp(-1, keepdim=True)
            if smoothing:
                total += smoothing * (log_total - logits.mean(-1, keepdim=True)).sum()
            total += (1 - smoothing) * (log_total - logits.gather(1, wanted)).sum()
            if gradients is not None:
                gradients.add(run, _slopes(logits, log_total, wanted, softcap, smoothing), part, cast)
        if gradients is not None:
            ctx.save_for_backward(*gradients.all())
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        scaled = [None if kept is None else kept * scale.to(kept.dtype) for kept in ctx.saved_tensors]
        return *scaled, None, None, None, None


class _Each(torch.autograd.Function):
    """The loss of each target (N,), run by run; its gradient likewise, from logits that are made again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
    ) -> Tensor:
        ctx.softcap = softcap
        ctx.save_for_backward(hidden, weight, targets, bias)
        cast, offset = _as_constants(hidden, weight, bias)
        losses = hidden.new_zeros(len(targets), dtype=torch.float32)
        for run in _runs(targets, weight):
            logits = cap(scores(hidden[run], cast, offset), softcap)
            losses[run] = logits.logsumexp(-1) - logits.gather(1, targets[run, None])[:, 0]
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, bias = ctx.saved_tensors
        cast, offset = _as_constants(hidden, weight, bias)
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad[:3])
        for run in _runs(targets, weight):
            part, wanted = hidden[run], targets[run, None]
            logits = cap(rounded_scores(part, cast, offset), ctx.softcap)
            slopes = _slopes(logits, logits.logsumexp(-1, keepdim=True), wanted, ctx.softcap)
            gradients.add(run, slopes * grads[0][run, None], part, cast)
        return *gradients.all(), None, None


def _as_constants(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.detach().to(hidden.dtype), None if bias is None else bias.detach()


def _runs(targets: Tensor, weight: Tensor) -> list[slice]:
    """The rows whose logits are held together."""
    rows = run_rows(*weight.shape)
    return [slice(start, start + rows) for start in range(0, len(targets), rows)]


def _slopes(
    logits: Tensor, log_total: Tensor, wanted: Tensor, softcap: float | None, smoothing: float = 0.0
) -> Tensor:
    """d loss / d (logits before the cap), in the memory of `logits`: softmax(logits) less what is wanted, one
    at the target, or less when smoothed.
    """
    slope = None if softcap is None else 1 - (logits / softcap).square()
    grad = logits.sub_(log_total).exp_()
    grad.scatter_add_(1, wanted, torch.full_like(wanted, smoothing - 1, dtype=grad.dtype))
    grad = grad.sub_(smoothing / logits.shape[1]) if smoothing else grad
    return grad if slope is None else grad * slope


class _Gradients:
    """Gradients of hidden states, of the matrix and of its bias, of those that learn, summed over runs."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, learned: tuple[bool, bool, bool]
    ) -> None:
        self.kind = weight.dtype
        self.hidden = torch.empty_like(hidden) if learned[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if learned[1] else None
        self.bias = None
        if bias is not None and learned[2]:
            self.bias = torch.zeros_like(bias, dtype=torch.float32)

    def add(self, run: slice, slopes: Tensor, part: Tensor, cast: Tensor) -> None:
        """Add what the slopes (rows, V) of a run say."""
        grad = slopes.to(part.dtype)
        if self.hidden is not None:
            self.hidden[run] = grad @ cast
        if self.weight is not None:
            self.weight += grad.T @ part
        if self.bias is not None:
            self.bias += grad.sum(0, dtype=torch.float32)

    def all(self) -> list[Tensor | None]:
        """The three of them, None for what does not learn."""
        return [self.hidden, None if self.weight is None else self.weight.to(self.kind), self.bias]
