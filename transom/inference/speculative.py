"""Guessing the next tokens from the text itself: n-gram drafts, free to make and exact to check.

The one idea: what followed these last few tokens before may follow them again (prompt lookup, Saxena 2023).
A draft costs a dictionary look-up; the model then reads all of it in one pass, and a drafted token is kept
exactly when it is the token that would have been chosen there. Read next: sampling_rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class NGrams:
    """Where each of the last n-grams of a row of tokens was met before; O(1) for each token."""

    def __init__(self, tokens: Iterable[int] = (), *, longest: int = 3) -> None:
        """n-grams of `longest` tokens down to one are tried, the longest first."""
        self.longest = longest
        self._tokens: list[int] = []
        # For every n-gram the place after it. The one that ends the text is added when a token follows it,
        # so what a look-up finds has always something after it.
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in range(longest)]
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """Take the next token of the row."""
        end = len(self._tokens)
        for n in range(1, min(self.longest, end) + 1):
            self._after[n - 1][tuple(self._tokens[end - n :])] = end
        self._tokens.append(token)

    def draft(self, k: int) -> list[int]:
        """At most k tokens that followed the longest known n-gram when it was last met; [] for none."""
        end = len(self._tokens)
        for n in range(min(self.longest, end), 0, -1):
            place = self._after[n - 1].get(tuple(self._tokens[end - n :]))
            if place is not None:
                return self._from(place, k)
        return []

    def _from(self, place: int, k: int) -> list[int]:
        """k tokens from a place on; past the end the draft goes on with itself, as a repeating text does."""
        period = len(self._tokens) - place
        return [self._tokens[place + i % period] for i in range(k)]


def draft(tokens: Sequence[int], k: int, longest: int = 3) -> list[int]:
    """Return the draft of a whole row at once: what `NGrams` gives after all its tokens."""
    return NGrams(tokens, longest=longest).draft(k)


def n_kept(drafted: Sequence[int], chosen: Sequence[int]) -> int:
    """Say how many drafted tokens are right, given the token chosen at each place (one more than drafted)."""
    for i, (guess, token) in enumerate(zip(drafted, chosen, strict=False)):
        if guess != token:
            return i
    return len(drafted)
