"""One gradient of one optimizer step, however it is cut up: over micro-batches and over ranks.

Each micro-batch adds the gradient of its summed loss / n_targets, with n_targets counted over the whole step
beforehand; so the pieces add up to the gradient of the mean over all targets, whatever the pieces. (Averaging
the averages of the pieces would weigh a target by how few share its piece.) Norm and clipping come after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .parallelism import World


@dataclass(frozen=True)
class Gradient:
    """What a step's backward passes came to; the gradients themselves lie in the weights' `.grad`."""

    loss: float
    """Mean over all targets of the step, on all ranks, in nats."""
    norm: float
    """Of the whole gradient, before clipping."""
    norms: dict[str, float]
    """Of each weight's gradient."""

    @property
    def is_finite(self) -> bool:
        return all(abs(x) < float("inf") for x in (self.loss, self.norm))


def take_gradient(
    objective: nn.Module,
    parts: Sequence[Any],
    n_targets: int,
    named: Mapping[str, Tensor],
    world: World,
    seed: int,
    step: int,
    divisor: float | None = None,
) -> Gradient:
    """Fill every weight's `.grad` with the gradient of the step's mean loss.

    objective: the callable that `World.wrap` gave. parts: this rank's micro-batches, None for a pass that
    only keeps step with other ranks. n_targets: those of the whole step, over micro-batches and ranks.
    divisor: what the gradient of their sum is divided by instead.
    """
    for weight in named.values():
        weight.grad = None
    # DDP and FSDP2 average over ranks; a sum is wanted.
    scale = world.size / (divisor or n_targets)
    total = torch.zeros((), dtype=torch.float64, device=_device_for_sums(world))
    bare: Any = objective.module if isinstance(objective, DistributedDataParallel) else objective
    joint = getattr(bare, "joint", False) and (len(parts) > 1 or world.size > 1)
    if joint:
        loss, pulls = _joint_pulls(objective, bare, parts, world, seed, step)
        total += loss if world.is_first else 0.0

    # Each piece adds the gradient of its summed loss over the targets of the whole step.
    for micro, part in enumerate(parts):
        torch.manual_seed(step_seed(seed, step, micro, world.rank))
        with world.accumulating(objective, last=micro == len(parts) - 1):
            if part is None:  # only to do as many passes as the other ranks
                (objective(parts[0]) * 0.0).backward()
                continue
            loss = objective(part, pulls[micro]) if joint else objective(part)
            (loss * scale).backward()
        if not joint:
            total += loss.detach().to(total.device, total.dtype)

    # What it came to, over all ranks and shards.
    (summed,) = world.sum([total.item()])
    grads = {name: weight.grad for name, weight in named.items() if weight.grad is not None}
    squares = world.sum_squares(list(grads.values())).tolist()
    norms = {name: square**0.5 for name, square in zip(grads, squares, strict=True)}
    return Gradient(loss=summed / n_targets, norm=sum(squares) ** 0.5, norms=norms)


@torch.no_grad()
def _joint_pulls(
    objective: nn.Module, bare: Any, parts: Sequence[Any], world: World, seed: int, step: int
) -> tuple[float, list[Tensor | None]]:
    """Return the loss of a step whose rows look at each other, and each part's gradient in its vectors."""
    vectors, texts = [], []
    for micro, part in enumerate(parts):  # the same random numbers as in the pass with gradients
        torch.manual_seed(step_seed(seed, step, micro, world.rank))
        made = objective(parts[0] if part is None else part, only_vectors=True)
        if part is not None:
            vectors.append(made)
            texts.append(part.texts)
    rows = [len(made) for made in vectors]
    (all_vectors, all_texts), first = world.gather([torch.cat(vectors), torch.cat(texts)])
    loss, gradient = bare.pulls(all_vectors, all_texts)
    own = iter(gradient[first : first + sum(rows)].split(rows))
    return loss.item(), [None if part is None else next(own) for part in parts]


def clip(named: Mapping[str, Tensor], norm: float, limit: float) -> None:
    """Scale the gradient down to `limit` when its `norm` is above; a limit of 0 never does."""
    if limit and norm > limit:
        torch._foreach_mul_([w.grad for w in named.values() if w.grad is not None], limit / norm)  # pyright: ignore


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Derive the seed of one micro-batch's random numbers, purely, so that a resumed run draws the same."""
    state = seed
    for number in (step, micro, rank):
        state = _mix((state ^ _mix(number + 1)) & _MASK)
    return state >> 1  # torch takes 63 bits


_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    """Finalize as SplitMix64 does (Steele et al. 2014): every bit in moves every bit of the result."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _device_for_sums(world: World) -> Any:
    return "cpu" if world.device.type == "mps" else world.device  # mps has no float64
