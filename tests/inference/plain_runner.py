"""A runner that reads every text anew from its first token: an oracle for engines, and strict with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Score = Callable[[list[int], list[int] | None], Tensor]
"""A text and its source -> logits (L, V) of what follows each of its tokens."""


@dataclass(eq=False)
class PlainRow:
    tokens: list[int]
    source: list[int] | None
    n_read: int = 0
    n_reused: int = 0
    open: bool = field(default=True)


class PlainRunner:
    """Keeps no state but how much of each row counts as read, and how many blocks that would take."""

    stale = False

    def __init__(self, score: Score, *, vocab_size: int, max_len: int, n_tokens: int, block: int = 4) -> None:
        self.score, self.vocab_size, self.max_len = score, vocab_size, max_len
        self.block, self.n_blocks = block, n_tokens // block
        self.rows: list[PlainRow] = []
        self.sizes: list[list[int]] = []
        """Of every run, the tokens that each chunk read."""

    def open(
        self, tokens: list[int], source: list[int] | None = None, *, tenant: str = "", adapter: str = ""
    ) -> PlainRow:
        assert tokens
        self.rows.append(PlainRow(tokens, source))
        return self.rows[-1]

    def free_tokens(self) -> int:
        return (self.n_blocks - sum(-(-row.n_read // self.block) for row in self.rows)) * self.block

    def needs(self, row: PlainRow, n: int) -> int:
        return (-(-(row.n_read + n) // self.block) - -(-row.n_read // self.block)) * self.block

    def run(self, chunks) -> Tensor:
        rows = [chunk.sequence for chunk in chunks]
        assert len(set(map(id, rows))) == len(rows) and all(row.open for row in rows)
        logits = [torch.empty(0, self.vocab_size)]
        for row, n, wanted in chunks:
            assert 1 <= n <= len(row.tokens) - row.n_read and 0 <= wanted <= n
            assert row.n_read + n <= self.max_len
            read = self.score(row.tokens[: row.n_read + n], row.source)
            logits.append(read[len(read) - wanted :])
        for row, n, _ in chunks:
            row.n_read += n
        assert self.free_tokens() >= 0, "the scheduler gave out more than there is"
        self.sizes.append([chunk.n for chunk in chunks])
        return torch.cat(logits)

    def fork(self, row: PlainRow) -> PlainRow:
        assert row.open
        self.rows.append(PlainRow(list(row.tokens), row.source, row.n_read))
        return self.rows[-1]

    def truncate(self, row: PlainRow, n: int) -> None:
        assert row.open and n <= len(row.tokens)
        del row.tokens[n:]
        row.n_read = min(row.n_read, n)

    def close(self, row: PlainRow) -> None:
        assert row.open
        row.open = False
        self.rows.remove(row)


def chain(vocab_size: int, seed: int = 0, sharpness: float = 2.0) -> Score:
    """Scores drawn once for each pair of a token and the sum of all before it modulo 5: quick, and whatever
    was read wrongly changes all that follows.
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(5, vocab_size, vocab_size, generator=generator) * sharpness

    def score(tokens: list[int], source: list[int] | None) -> Tensor:
        read = torch.tensor(tokens)
        before = read.cumsum(0) - read + sum(source or ())
        return table[before % 5, read]

    return score
