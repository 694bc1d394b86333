"""A sequence of the decode state: its tokens, and what of them has been read.

Read next: block_manager, runner.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from torch import Tensor

from .encoder_memory import EncodedSource


class TokenSequence:
    """What a runner reads for one prompt: its tokens, and those made after it."""

    def __init__(
        self, tokens: list[int], source: EncodedSource | None, root: Hashable, adapter: str = ""
    ) -> None:
        self.adapter = adapter
        """Which adapter reads it; "": the base alone."""
        self.tokens = tokens
        """Prompt and made; whoever makes a token appends it."""
        self.n_read = 0
        """How many of them the decode state holds."""
        self.n_reused = 0
        """How many of those came from the prefix cache."""
        self.source = source
        self.blocks: list[int] = []
        """Where what was read lies: one block for each `size` tokens, the last perhaps not full."""
        self.nodes: list[Hashable] = [root]
        """The nodes of its full blocks in the prefix tree, behind the root they are found under."""
        self.newest: tuple[int, Tensor] | None = None
        """Of a recurrence: how many tokens it has read, and its state after them (layers, parts, D)."""
        self.state_after = 0
        """The same where kernels run it: after how many tokens the state in its last block is; 0: unknown."""


class Span(NamedTuple):
    """Tokens of a sequence that one pass reads: `n` from number `start` on."""

    sequence: TokenSequence
    start: int
    n: int

    @property
    def stop(self) -> int:
        return self.start + self.n

    @property
    def blocks(self) -> list[int]:
        return self.sequence.blocks

    def tokens(self) -> list[int]:
        """Return the n tokens; those that are not known yet are 0, which nothing before them sees."""
        known = self.sequence.tokens[self.start : self.stop]
        return known + [0] * (self.n - len(known))
