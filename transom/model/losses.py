"""Next-token loss without ever holding the logits of a whole batch.

The product with the vocabulary is cut into runs of rows; each run's logits live only until its loss and its
gradient are taken (as in cut cross-entropy, Wijmans et al. 2024, without the kernel). The gradient is
computed on the way forward, so no run is multiplied twice. `cross_entropy_plain` is the oracle.
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
        learns_hidden, learns_weight, learns_bias = learned
        learns = any(learned)
        product = rounded_scores if learns else scores
        n_tokens = weight.shape[0]
        cast = weight.detach().to(hidden.dtype)
        offset = None if bias is None else bias.detach()
        rows = run_rows(n_tokens, hidden.shape[1])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if learns_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learns_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if learns_bias and bias is not None else None
        for start in range(0, len(targets), rows):
            part, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            logits = cap(product(part, cast, offset), softcap)
            log_total = logits.logsumexp(-1, keepdim=True)
            if smoothing:
                total += smoothing * (log_total - logits.mean(-1, keepdim=True)).sum()
            total += (1 - smoothing) * (log_total - logits.gather(1, wanted)).sum()
            if not learns:
                continue
            # d loss / d logits = softmax(logits) - what is wanted: one at the target, or less when smoothed
            slope = None if softcap is None else 1 - (logits / softcap).square()
            grad = logits.sub_(log_total).exp_()
            grad.scatter_add_(1, wanted, torch.full_like(wanted, smoothing - 1, dtype=grad.dtype))
            grad = grad.sub_(smoothing / n_tokens) if smoothing else grad
            grad = (grad if slope is None else grad * slope).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = grad @ cast
            if grad_weight is not None:
                grad_weight += grad.T @ part
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=torch.float32)
        of_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden, of_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        scaled = [None if kept is None else kept * scale.to(kept.dtype) for kept in ctx.saved_tensors]
        return *scaled, None, None, None, None
