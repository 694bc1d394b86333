"""The width at which one kind of model has as many parameters as another.

Counted is what is multiplied with: all, a tied head's table included, but tables that are only looked up.
Read next: compare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..errors import Refused
from ..model.config import ModelConfig
from ..training.architecture import without_storage

Equal = Literal["parameters", "active"]

TOLERANCE = 0.03
STEPS = (16, 8, 2)
"""Widths are multiples of the first of these that comes near enough: round widths multiply faster."""
WIDEST = 1 << 14


def count(config: ModelConfig, equal: Equal = "parameters") -> int:
    """Parameters that are multiplied with; `active`: those of them that one token meets."""
    model = without_storage(config)
    return (model.n_parameters if equal == "parameters" else model.n_active_parameters) - model.n_looked_up


def equal_width(
    config_of: Callable[[int], ModelConfig], target: int, name: str, equal: Equal = "parameters"
) -> int:
    """The width D at which the model of `config_of(D)` has `target` parameters, within 3%. Or `Refused`."""
    best, apart = 0, float("inf")
    for step in STEPS:
        for width in _around(lambda width: count(config_of(width), equal), target, step):
            miss = abs(count(config_of(width), equal) - target) / target
            if miss < apart:
                best, apart = width, miss
        if apart <= TOLERANCE:
            return best
    raise Refused(
        f"{name}: no width gives {target:,} parameters within {TOLERANCE:.0%}; the "
        f"nearest, {best}, is {apart:.0%} off. Give the first member a larger --model.dim"
    )


def _around(size: Callable[[int], int], target: int, step: int) -> tuple[int, int]:
    """The multiples of `step` between which the size passes `target`."""
    low, high = 1, 2
    while size(high * step) < target and high * step < WIDEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle * step) < target else (low, middle)
    return low * step, high * step
