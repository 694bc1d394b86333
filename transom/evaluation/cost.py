"""What a model costs beside another: how fast both do the same work, in turns, and how large they are.

Both do the same pieces of work, as many tokens or texts in each, the one first and then the other, so a
machine that slows down slows both. Times are compared as ratios, piece by piece. Read next: before_after.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..checkpoint.adapter import base_of, is_adapter
from ..intervals import Estimate, student
from .paired import Measure

PIECES = 8
"""Pieces that work is cut into: as many ratios an interval rests on."""
Item = TypeVar("Item")


def in_turns(
    items: Sequence[Item], now: Callable[[list[Item]], object], before: Callable[[list[Item]], object]
) -> tuple[list[int], list[tuple[float, float]]]:
    """Let both work on the same pieces of items: how many are in each, the seconds it took (now, before)."""
    n = max(1, min(PIECES, len(items)))
    pieces = [list(items[i * len(items) // n : (i + 1) * len(items) // n]) for i in range(n)]
    for work in (now, before):
        work(pieces[0][:1])  # what is made at a first call is no work of the model
    seconds = []
    for number, piece in enumerate(pieces):
        times = [0.0, 0.0]
        for side in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            (now, before)[side](piece)
            times[side] = time.perf_counter() - started
        seconds.append((times[0], times[1]))
    return list(map(len, pieces)), seconds


def speed(units: Sequence[int], seconds: Sequence[tuple[float, float]], of: str) -> Measure:
    """Compare speeds by the units (tokens, texts) of pieces and the seconds they took (now, before)."""
    rates = np.array(units, np.float64)[:, None] / np.maximum(np.array(seconds), 1e-9)
    ratio = student(np.log(rates[:, 0] / rates[:, 1]))
    percent = Estimate(*(100 * math.expm1(end) for end in (ratio.value, ratio.low, ratio.high)))
    return Measure(f"{of}/s", "%", student(rates[:, 1]), student(rates[:, 0]), percent, len(rates), "turns",
                   judged=False)  # fmt: skip


def size(now: Path, before: Path) -> Measure:
    """Compare the megabytes of two models' weights, each a folder or a file: exact numbers."""
    one, other = (sum(file.stat().st_size for file in _weights(path)) / 1e6 for path in (now, before))
    gap = Estimate(one - other, one - other, one - other)
    return Measure("size", "MB", Estimate(other, other, other), Estimate(one, one, one), gap, 1, "folder",
                   more_is_better=False, suffix=" MB", judged=False)  # fmt: skip


def _weights(path: Path) -> list[Path]:
    """The files of a model's weights; of an adapter also those of its base."""
    own = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return [*own, *_weights(base_of(path))] if path.is_dir() and is_adapter(path) else own
