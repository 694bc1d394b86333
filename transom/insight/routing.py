"""Which experts each token went through, and how evenly the load was shared.

Read from the routers of one ordinary forward pass. Entropy of the load is given beside its largest possible
value: an even load is a property of the balancing, not a sign of specialised experts. Read next: ablation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from . import figures
from .answer_score import device_of, logits_at
from .hooks import Edit, edited
from .html import Picture
from .module_finder import model_parts
from .view import View, Words


@dataclass(frozen=True)
class Routing(View):
    """The choices of every router, over layers that have one."""

    caveat: ClassVar[str] = (
        "which expert a token goes through says nothing of what it does there; take the expert away (ablate) "
        "to see what it does for an answer"
    )
    tokens: tuple[int, ...]
    layers: tuple[int, ...]
    chosen: Tensor
    """(layers, L, n_active) int64, as the router ranked them."""
    weights: Tensor
    """(layers, L, n_active) float32: with what weight each is mixed in."""
    load: Tensor
    """(layers, E) float32: each expert's share of all choices."""
    entropy: Tensor
    """(layers,) float32, in nats, of the load; log(E) is an even one."""
    even: float
    """log(E), in nats."""

    def draw(self, words: Words) -> Picture:
        """Draw it; words gives the texts of its tokens."""
        return figures.routing(self.to_dict())


@torch.no_grad()
def routing(
    model: nn.Module, tokens: Tensor | Sequence[int], *, source: Tensor | Sequence[int] | None = None
) -> Routing:
    """Which experts each of the tokens (L,) goes through. Raises `Refused` for a model without experts."""
    routers = model_parts(model).routers()
    ids = torch.as_tensor(tokens, device=device_of(model)).flatten()
    read = None if source is None else torch.as_tensor(source, device=ids.device).flatten()[None]
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: int) -> Callable[[tuple[Tensor, Tensor]], None]:
        return lambda routed: seen.update({layer: routed})

    with edited([Edit(router, "whole", keep(layer)) for layer, router in routers.items()]):
        logits_at(model, ids[None], [len(ids) - 1], read)
    chosen = torch.stack([seen[layer][0] for layer in routers]).cpu()
    weights = torch.stack([seen[layer][1].float() for layer in routers]).cpu()
    n_experts = next(iter(routers.values())).experts.n_experts
    load = torch.stack([torch.bincount(c.flatten(), minlength=n_experts) / c.numel() for c in chosen])
    entropy = torch.special.entr(load).sum(-1)
    return Routing(tuple(ids.tolist()), tuple(routers), chosen, weights, load, entropy, math.log(n_experts))
