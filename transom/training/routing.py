"""What the experts of a run carry: their load after each step, and the bias that keeps it even.

The bias moves once an optimizer step, by the load of all micro-batches and ranks (Wang et al. 2024): a single
piece says little about what is even. Read next: model/experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..model.experts import Router
from .parallelism import World

DEAD_SHARE = 0.1
"""An expert that gets less than this share of an even load counts as dead."""
MEMORY = 0.99
"""How much of the running load stays with every step: the last hundred steps or so are what is judged."""


@dataclass(frozen=True)
class Load:
    """How even the experts of a model are loaded, over its layers."""

    max_violation: float
    """The largest load of any expert over the mean of its layer, minus one: 0 is even."""
    entropy: float
    """Of the load, over that of an even one: 1 is even."""
    dead: int
    """Experts of all layers that get less than a tenth of an even load."""

    def to_dict(self) -> dict[str, float | int]:
        return {"max_violation": self.max_violation, "entropy": self.entropy, "dead_experts": self.dead}


def rebalance(found: list[Router], world: World) -> torch.Tensor | None:
    """After a step: let every router move its bias against the load; (layers, E) that load, None without
    experts.
    """
    if not found:
        return None
    flat = torch.cat([router.load for router in found]).tolist()
    load = torch.tensor(world.sum(flat)).view(len(found), -1)
    for router, one in zip(found, load, strict=True):
        router.rebalance(one.to(router.load.device))
    return load


def forget(found: list[Router]) -> None:
    """Before a step is begun, or begun again: nothing was routed yet."""
    for router in found:
        router.load.zero_()


def judge_load(load: torch.Tensor) -> Load:
    """Judge a load (layers, E) by its figures."""
    share = load / load.sum(1, keepdim=True).clamp(min=1)
    even = 1 / load.shape[1]
    entropy = -(share * share.clamp(min=1e-12).log()).sum(1).mean() / torch.tensor(load.shape[1]).log()
    return Load(
        max_violation=float(share.max() / even - 1),
        entropy=float(entropy),
        dead=int((share < DEAD_SHARE * even).sum()),
    )
