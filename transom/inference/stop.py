"""Stop strings: end a growing text before the first of them, wherever tokens happen to be cut.

The stop that is complete first wins (of two that end together, the longer), so the result does not depend
on how the text arrives. Only what may still become a stop is held back. Read next: request.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Releases text as it is certain not to be part of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.found: str | None = None
        self._held = ""  # the longest end of the text that begins a stop: all that is ever searched again

    def push(self, text: str) -> str:
        """Take the next piece of text; return what is certain now. Once `found` is set, nothing more is."""
        if self.found is not None:
            return ""
        text = self._held + text
        starts = [(start, stop) for stop in self.stops if (start := text.find(stop)) >= 0]
        if starts:
            start, self.found = min(starts, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            self._held = ""
            return text[:start]
        size = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - size :]
        return text[: len(text) - size]

    def finish(self) -> str:
        """Return what was held back and never became a stop."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that ends `text`."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
