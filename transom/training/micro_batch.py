"""How many windows go through the model at once: as many as fit, and as few as are fast.

The tokens of an optimizer step are fixed by the settings; this only cuts them up, so results do not depend on
it but for rounding. On a CPU the fastest piece is small (it stays in the caches), on a GPU the largest that
fits. The forecast by formula rules out what cannot fit; what is left is measured, a step of the longest
windows each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ..data.order import Batch
from ..errors import Refused
from .parallelism import World

FIRST_TOKENS = 1024
"""Tokens of the smallest piece worth trying on a CPU: below, overhead is what is measured."""
CUDA_TOKENS = 65_536
"""A piece of this many tokens fills any GPU; larger ones only need memory."""


@dataclass(frozen=True)
class MicroBatch:
    """A size of micro-batch and how it was chosen."""

    windows: int
    reason: str
    seconds_per_window: float | None = None
    """Forward and backward, as measured; None when nothing was measured."""
    measured: dict[int, float] = field(default_factory=dict)
    """Windows per second by size tried."""


def find_micro_batch(
    objective: nn.Module,
    windows: int,
    length: int,
    draw: Callable[[int], Batch],
    device: torch.device,
    *,
    bytes_of: Callable[[int], int],
    free_bytes: int,
    seconds: float = 6.0,
    only: int | None = None,
) -> MicroBatch:
    """Choose among (about) equal shares of `windows`, this rank's rows of a step, in about `seconds`.

    draw(n) gives a batch of n windows of (about) `length` tokens. bytes_of(n): memory that n windows take,
    by formula. only: a size that was asked for; it is timed, nothing is chosen. Weights stay as they were.
    Raises `Refused` when not even one window fits.
    """
    if only is not None:
        took = measure(objective, draw(min(only, windows)), device)
        return MicroBatch(min(only, windows), "as asked", took / min(only, windows))
    divisors = {n for n in range(1, windows + 1) if windows % n == 0}
    halvings = {math.ceil(windows / 2**k) for k in range(windows.bit_length() + 1)}
    sizes = sorted(divisors | halvings)
    fitting = [n for n in sizes if bytes_of(n) <= 0.8 * free_bytes] or [1]
    if device.type == "cuda":
        fitting = [n for n in fitting if n * length <= CUDA_TOKENS] or [1]
        return _largest(objective, fitting, draw, device)
    candidates = [n for n in fitting if n * length >= FIRST_TOKENS] or [fitting[-1]]
    return _fastest(objective, _spread(candidates), draw, device, seconds)


def halve(micro: MicroBatch, objective: nn.Module, world: World) -> MicroBatch:
    """Go on with half as many windows at a time, after the device ran out of memory.

    Raises `Refused` where one is left, or where other ranks would have to do so too.
    """
    windows = micro.windows
    if world.size > 1 or windows == 1:
        raise Refused(
            f"out of memory with {windows} windows at a time; start again with a smaller --batch.micro, "
            f"model.max_len or model.size, or with --batch.checkpoint-activations"
        )
    objective.zero_grad(set_to_none=True)
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    reason = f"{windows // 2} windows at a time instead of {windows}"
    return MicroBatch(windows // 2, reason, micro.seconds_per_window)


def _spread(sizes: list[int]) -> list[int]:
    """Sizes at least 1.5 apart in ratio: 4 5 6 8 12 16 -> 4 6 12."""
    kept: list[int] = []
    for size in sizes:
        if not kept or size >= 1.5 * kept[-1]:
            kept.append(size)
    return kept


def _fastest(
    objective: nn.Module, sizes: list[int], draw: Callable[[int], Batch], device: torch.device, seconds: float
) -> MicroBatch:
    """Try sizes upwards until they no longer get faster or the time is used up."""
    rates: dict[int, float] = {}
    end = time.monotonic() + seconds
    for size in sizes:
        batch = draw(size)
        took = measure(objective, batch, device)  # the first run also wakes caches and the allocator
        if time.monotonic() + took < end:
            took = min(took, measure(objective, batch, device))
        rates[size] = size / took
        # Twice as large takes twice as long: stop before the time is overrun, or when speed falls.
        if time.monotonic() + 4 * took > end or rates[size] < 0.9 * max(rates.values()):
            break
    best = max(rates.values())
    # The smallest within 3% of the fastest: less memory for the same speed.
    chosen = min(size for size, rate in rates.items() if rate >= 0.97 * best)
    tried = ", ".join(f"{size}: {rate:.1f}/s" for size, rate in rates.items())
    return MicroBatch(chosen, f"fastest of {tried}", 1 / rates[chosen], rates)


def _largest(
    objective: nn.Module, sizes: list[int], draw: Callable[[int], Batch], device: torch.device
) -> MicroBatch:
    """Try the largest first and halve while the device runs out of memory."""
    reason = "largest that fits by the formula"
    for size in reversed(sizes):
        batch = draw(size)
        try:
            measure(objective, batch, device)
            took = measure(objective, batch, device)
            return MicroBatch(size, reason, took / size, {size: size / took})
        except torch.cuda.OutOfMemoryError:
            objective.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            reason = f"{size} windows ran out of memory; the next smaller fits"
    raise Refused(
        "not even one window fits into the memory of the device; choose a smaller --model.size or "
        "model.max_len, or set --batch.checkpoint-activations"
    )


def measure(objective: nn.Module, batch: Batch, device: torch.device) -> float:
    """Time one forward and backward pass, in seconds; the gradients are thrown away."""
    batch = batch.to(device)
    start = time.perf_counter()
    (objective(batch) / max(1, batch.n_targets)).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    took = time.perf_counter() - start
    objective.zero_grad(set_to_none=True)
    return took
