"""Mixture of experts: a feed-forward made of many, of which each token goes through a few.

A router scores every expert for every token; the best few are taken, and their outputs are mixed by their
scores. Tokens are sorted by expert, so that each expert is one product over its own rows: no token is dropped
and none is padded. `mixed_plain` is the same one token at a time, the oracle and the explanation.
Load is kept even by a bias that takes part in the choice but not in the mixing (Wang et al. 2024,
arXiv:2408.15664), or by a loss (Fedus et al. 2021). Routing: Shazeer et al. 2017. Read next: layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Experts, ModelConfig
from .layers import ACTIVATIONS, FeedForward


class Router(nn.Module):
    """Which experts a token goes through and with what weight: (N, D) -> two times (N, n_active)."""

    load: Tensor
    correction: Tensor | None

    def __init__(self, dim: int, experts: Experts) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts.n_experts, dim))
        self.experts = experts
        bias = torch.zeros(experts.n_experts) if experts.balance == "bias" else None
        self.register_buffer("correction", bias)
        # Tokens per expert since the last `rebalance`; training passes only.
        self.register_buffer("load", torch.zeros(experts.n_experts), persistent=False)
        self.balance_loss: Tensor | None = None
        """Of the last training pass, when the load is balanced by a loss: a sum over its tokens."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """In float32 at least, whatever x is: a rounded score sends a token to another expert."""
        experts, wide = self.experts, torch.promote_types(x.dtype, torch.float32)
        scores = F.linear(x.to(wide), self.weight.to(wide))
        scores = scores.softmax(-1) if experts.score == "softmax" else scores.sigmoid()
        ranked = scores if self.correction is None else scores + self.correction
        chosen = ranked.topk(experts.n_active, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if experts.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if self.training:
            self._count(scores, chosen)
        return chosen, weights * experts.scale

    def _count(self, scores: Tensor, chosen: Tensor) -> None:
        counts = torch.bincount(chosen.flatten(), minlength=self.experts.n_experts).to(self.load.dtype)
        with torch.no_grad():
            self.load += counts
        if self.experts.balance == "loss":
            # E * sum of (share of choices) * (mean score): 1 when both are even.
            share = counts / chosen.numel()
            likely = (scores / scores.sum(-1, keepdim=True)).mean(0)
            even = self.experts.n_experts * (share * likely).sum()
            self.balance_loss = self.experts.balance_rate * len(scores) * even

    @torch.no_grad()
    def rebalance(self, load: Tensor) -> None:
        """Move the bias against the load (E,) of a step, of all ranks: up where it is below the mean. The
        bias of a router that does not learn stays.
        """
        if self.correction is not None and self.weight.requires_grad:
            step = (load.mean() - load).sign()
            self.correction += self.experts.balance_rate * (step - step.mean())


ROWS = 64
"""Rows of an expert are filled up to a multiple of so many: code for a product of a shape that was not met
before takes oneDNN 1 to 3 ms to write, ten times what the product takes (one core with AMX, 2026-11-24)."""


class ExpertBank(nn.Module):
    """The weights of all experts, one above the other: gate and up (E, F, D), down (E, D, F)."""

    def __init__(self, dim: int, experts: Experts, gated: bool) -> None:
        super().__init__()
        wide, narrow = (
            (experts.n_experts, experts.ffn_dim, dim),
            (experts.n_experts, dim, experts.ffn_dim),
        )
        if gated:
            self.gate_proj = nn.Parameter(torch.empty(wide))
        self.up_proj = nn.Parameter(torch.empty(wide))
        self.down_proj = nn.Parameter(torch.empty(narrow))
        self.gated = gated

    def forward(self, rows: Tensor, counts: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows (N, D) sorted by expert, counts[e] of them for expert e -> (N, D)."""
        product = grouped if rows.device.type == "cpu" or rows.dtype != torch.bfloat16 else _grouped_on_cuda
        up = product(rows, self.up_proj, counts)
        inner = activation(product(rows, self.gate_proj, counts)) * up if self.gated else activation(up)
        return product(inner, self.down_proj, counts)


def grouped(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Each row times the weight of its group: rows (N, in) sorted, weights (E, out, in), counts (E,) ->
    (N, out).
    """
    parts = rows.split(counts.tolist())
    # One cast and one unbind for all: their backward passes are one stack, not E full-sized gradients.
    each = weights.to(rows.dtype).unbind(0)
    return torch.cat([F.linear(part, weight) for part, weight in zip(parts, each, strict=True) if len(part)])


def _grouped_on_cuda(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """The same in one kernel; bfloat16 only."""
    ends = counts.cumsum(0).to(torch.int32)
    return F.grouped_mm(rows, weights.to(rows.dtype).mT, offs=ends)


class MixtureOfExperts(nn.Module):
    """(B, L, D) -> (B, L, D), each token through `n_active` of the experts and through the shared one."""

    def __init__(self, config: ModelConfig, experts: Experts) -> None:
        super().__init__()
        self.router = Router(config.dim, experts)
        self.experts = ExpertBank(config.dim, experts, config.gated)
        self.activation = ACTIVATIONS[config.activation]
        self.shared = None
        if experts.n_shared:
            self.shared = FeedForward(config, experts.n_shared * experts.ffn_dim)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        chosen, weights = self.router(flat)
        mixed = self._mixed(flat, chosen, weights.to(x.dtype)).view_as(x)
        return mixed if self.shared is None else mixed + self.shared(x)

    def _mixed(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        n_active = chosen.shape[1]
        by_expert = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.router.experts.n_experts)
        # Where each choice stands among the rows, every expert's being rounded up: few shapes occur then.
        room = -(-counts // ROWS) * ROWS if len(x) >= ROWS else counts
        ahead = (room.cumsum(0) - room) - (counts.cumsum(0) - counts)
        place = torch.arange(len(by_expert), device=x.device) + ahead[chosen.flatten()[by_expert]]
        origin = torch.zeros(int(room.sum()), dtype=torch.int64, device=x.device)
        origin[place] = by_expert // n_active
        rows = self.experts(x[origin], room, self.activation)
        # Back to the order of the tokens by indexing, which hits every target once: the same bits each time.
        back = torch.empty_like(by_expert)
        back[by_expert] = place
        return (rows[back].view(len(x), n_active, -1) * weights[..., None]).sum(1)

    def mixed_plain(self, x: Tensor) -> Tensor:
        """The same as the forward pass, (B, L, D) -> (B, L, D), one token and one expert at a time."""
        flat = x.reshape(-1, x.shape[-1])
        chosen, weights = self.router(flat)
        bank = self.experts
        out = []
        for token, experts, shares in zip(flat, chosen.tolist(), weights.to(x.dtype), strict=True):
            mixed = torch.zeros_like(token)
            for expert, share in zip(experts, shares, strict=True):
                up = bank.up_proj[expert].to(x.dtype) @ token
                if bank.gated:
                    up = self.activation(bank.gate_proj[expert].to(x.dtype) @ token) * up
                else:
                    up = self.activation(up)
                mixed = mixed + share * (bank.down_proj[expert].to(x.dtype) @ up)
            out.append(mixed)
        mixed = torch.stack(out).view_as(x)
        return mixed if self.shared is None else mixed + self.shared(x)


def routers(model: nn.Module) -> list[Router]:
    """The routers of a model from the bottom up; none where nothing is routed."""
    return [part for part in model.modules() if isinstance(part, Router)]


def balance_loss(found: Iterable[Router]) -> Tensor | float:
    """What keeps the load even, added to the loss of a training pass; 0 where a bias does, or nothing."""
    return sum(r.balance_loss for r in found if r.training and r.balance_loss is not None)
