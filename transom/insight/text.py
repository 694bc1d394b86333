"""The same views for a terminal: bars and shades of block characters, a line of text for each thing.

Plain Unicode without colour, so that it reads over SSH, in a log and in a test. Read next: figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .html import visible

EIGHTHS = " ▏▎▍▌▋▊▉█"
SHADES = " ░▒▓█"
STEPS = "▁▂▃▄▅▆▇█"


def bar(share: float, width: int = 16) -> str:
    """A share from 0 to 1 as a bar of at most `width` characters."""
    eighths = round(max(0.0, min(1.0, share if share == share else 0.0)) * width * 8)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()).ljust(width)


def fitted(token: str, width: int = 16) -> str:
    """A token's text in exactly `width` characters."""
    shown = visible(token)
    return (shown if len(shown) <= width else shown[: width - 1] + "…").ljust(width)


def bars(names: Sequence[str], shares: Sequence[float], numbers: Sequence[str], width: int = 20) -> str:
    """One line for each name: its bar and its number."""
    longest = min(16, max((len(visible(name)) for name in names), default=0))
    rows = zip(names, shares, numbers, strict=True)
    return "\n".join(
        f"  {fitted(name, longest)} {bar(share, width)} {number}" for name, share, number in rows
    )


def spark(values: Sequence[float]) -> str:
    """Values as a line of steps, from the smallest to the largest."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    low, span = min(finite, default=0.0), (max(finite, default=0.0) - min(finite, default=0.0)) or 1.0
    last = len(STEPS) - 1
    return "".join(STEPS[round((v - low) / span * last)] if v in finite else "·" for v in values)


def grid(values: NDArray[np.floating], top: float = 1.0) -> list[str]:
    """Values (R, C) from 0 to `top` as shades, two characters each."""
    levels = np.clip(np.nan_to_num(values) / (top or 1.0), 0, 1)
    return ["".join(SHADES[round(float(v) * (len(SHADES) - 1))] * 2 for v in row) for row in levels]
