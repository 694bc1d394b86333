"""How often a model prefers the answer that was chosen: shares with their intervals, and a verdict in words.

Of the sums that objectives.Preference takes over n held-out pairs. What is said of before and after compares
the same pairs, so its interval rests on those that changed. Read next: objectives, intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..intervals import Estimate, lead, share


def figures(sums: Mapping[str, float], n: int) -> dict[str, Any]:
    """Return the shares of n pairs as plain values, each with its interval, and the mean margin in nats."""
    found: dict[str, Any] = {
        "pairs": n, "accuracy": _preferred(sums, n).to_dict(), "margin": sums["margin"] / n,
    }  # fmt: skip
    if "likelier" in sums:
        found |= {"likelier": sums["likelier"] / n, "likelier_gain": _gain(sums, n).to_dict()}
    return found


def in_words(sums: Mapping[str, float], n: int) -> str:
    """Say how often the chosen answer is preferred, and whether that can be chance."""
    said = _preferred(sums, n)
    beside = "more often than by chance" if said.low > 0.5 else "less often than by chance"
    beside = "which can be chance" if said.low <= 0.5 <= said.high else beside
    words = f"it prefers the chosen of two answers in {said.percent()} of {n:,} pairs, {beside}"
    if "likelier" not in sums:
        return words
    gain = _gain(sums, n)
    change = "no measurable change" if gain.low <= 0 <= gain.high else ("better", "worse")[gain.high < 0]
    points = gain.times(100)
    return (
        f"{words}; the chosen one is the likelier in {100 * sums['likelier'] / n:.1f}%, {points.value:+.1f} "
        f"points on the model it began as ({points.interval()}): {change}"
    )


def _preferred(sums: Mapping[str, float], n: int) -> Estimate:
    return share(round(sums["preferred"]), n)


def _gain(sums: Mapping[str, float], n: int) -> Estimate:
    """The share of pairs whose chosen answer is the likelier, less what it was, on the same pairs."""
    return lead(round(sums["gained"]), round(sums["lost"]), n)
