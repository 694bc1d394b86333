"""A row of the decode state: the tokens of one sequence, and what of them has been read.

Read next: blocks, runner.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from torch import Tensor

from .sources import Source


class Row:
    """One sequence that a runner reads: its prompt, and what was made after it."""

    def __init__(self, tokens: list[int], source: Source | None, root: Hashable) -> None:
        self.tokens = tokens
        """Prompt and made; whoever makes a token appends it."""
        self.n_read = 0
        """How many of them the decode state holds."""
        self.n_reused = 0
        """How many of those came from the prefix cache."""
        self.source = source
        self.blocks: list[int] = []
        """Where what was read lies: one block for each `size` tokens, the last perhaps not full."""
        self.chain: list[Hashable] = [root]
        """The nodes of its full blocks in the tree of kept ones, behind the root they are found under."""
        self.newest: tuple[int, Tensor] | None = None
        """Of a recurrence: how many tokens it has read, and its state after them (layers, parts, D)."""


class Span(NamedTuple):
    """Tokens of a row that one pass reads: `n` from number `start` on."""

    row: Row
    start: int
    n: int

    @property
    def stop(self) -> int:
        return self.start + self.n

    @property
    def blocks(self) -> list[int]:
        return self.row.blocks

    def tokens(self) -> list[int]:
        """The n tokens; those that are not known yet are 0, which nothing before them sees."""
        known = self.row.tokens[self.start : self.stop]
        return known + [0] * (self.n - len(known))
