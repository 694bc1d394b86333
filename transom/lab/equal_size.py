"""The width at which one kind of model has as many parameters as another, embeddings left out.

Models are built on the meta device, where they have shapes and no numbers, so counting one is quick.
Embeddings are left out because they depend on the vocabulary and not on what is compared. Read next: compare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from ..errors import Refused
from ..model.build import build
from ..model.config import ModelConfig

Equal = Literal["parameters", "active"]

TOLERANCE = 0.03
STEPS = (16, 8, 2)
"""Widths are multiples of the first of these that comes near enough: round widths multiply faster."""
WIDEST = 1 << 14


def count(config: ModelConfig, equal: Equal = "parameters") -> int:
    """Parameters besides the tables of embeddings and the output's; `active`: those that one token meets."""
    with torch.device("meta"):
        model = build(config)
    tables = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if name.split(".")[-2].endswith("embed") or name in ("head.weight", "head.bias")
    )
    return (model.n_parameters if equal == "parameters" else model.n_active_parameters) - tables


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
        f"{name}: no width gives {target:,} parameters besides embeddings within {TOLERANCE:.0%}; the "
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
