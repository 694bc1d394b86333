"""Conversations as batches: several of a step in one row, each a document of its own.

The one idea: a step has a fixed number of conversations, drawn anew in every epoch; they are laid into as few
rows as hold them, as wide as the longest of them, so that hardly anything is padding. No attention crosses
from one to another (the rule of `attend` has documents) and each begins at position 0, so packed equals
unpacked. Read next: order, answer_rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from transom.data.batches import NO_LOSS, Batch
from transom.data.examples import ConversationRows, Order
from transom.data.order import shuffled
from transom.data.ragged import padded_width
from transom.errors import Refused

Numbers = npt.NDArray[np.int64]
LOOKED_AT = 16
"""Steps from which the usual number of rows and their width are told."""


class Shuffled:
    """Examples in an order of their own for every epoch, so many for each step: by (seed, step) alone."""

    def __init__(self, lengths: Numbers, n_texts: int, seed: int, least_rows: int) -> None:
        """lengths (n,): the tokens of each example. Raises Refused for fewer of them than `least_rows`."""
        self.n_examples, self.seed, self.lengths, self.sides = len(lengths), seed, lengths, lengths[:, None]
        if self.n_examples < least_rows:
            has = "1 example is" if self.n_examples == 1 else f"{self.n_examples:,} examples are"
            raise Refused(f"{has} fewer than the {least_rows} that a batch needs; give more")
        most = self.n_examples // least_rows
        self.n_batches = min(most, max(1, round(self.n_examples / n_texts)))
        """Steps of every epoch."""

    def batch(self, step: int) -> Numbers:
        """The examples (rows,) of a step."""
        epoch, number = divmod(step, self.n_batches)
        order = shuffled(self.n_examples, f"examples {self.seed} {epoch}")
        first, last = (at * self.n_examples // self.n_batches for at in (number, number + 1))
        return order[first:last]


class Conversations(Order[Batch]):
    """Batches of conversations."""

    def __init__(
        self, rows: ConversationRows, n_texts: int, seed: int = 0, *, pad_id: int, least_rows: int = 1,
        packed: bool = True,
    ) -> None:  # fmt: skip
        """n_texts: conversations of a step. packed: several in a row, else each in one of its own."""
        self.rows, self.pad_id, self.packed = rows, pad_id, packed
        super().__init__(Shuffled(rows.tokens.lengths, n_texts, seed, least_rows))
        bins = [self._bins(self.order.batch(step)) for step in range(min(LOOKED_AT, self.steps_per_epoch))]
        self.n_rows = max(1, round(sum(map(len, bins)) / len(bins)))
        self.row_length = max(1, round(float(np.mean([self._width(one) for one in bins]))))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The share of `rank` in the batch of a step: rows rank::world of it."""
        bins = self._bins(self.order.batch(step), world)
        return self._laid(bins[rank::world], self._width(bins))

    def trial(self, n_rows: int) -> Batch:
        """So many rows of the first step, some twice where they are few."""
        bins = self._bins(self.order.batch(0))
        return self._laid([bins[at % len(bins)] for at in range(n_rows)], self._width(bins))

    def take(self, rows: Numbers) -> Batch:
        """A batch of these conversations (n,)."""
        bins = self._bins(rows)
        return self._laid(bins, self._width(bins))

    def _bins(self, rows: Numbers, least: int = 1) -> list[Numbers]:
        """Which conversations share a row: the longest first, each where it still fits (first fit
        decreasing), in `least` rows at least.
        """
        lengths = self.rows.tokens.lengths[rows]
        order = np.argsort(-lengths, kind="stable")
        if not self.packed:
            return [rows[at : at + 1] for at in order]
        width, bins, room = int(lengths.max()), list[list[int]](), list[int]()
        for at in order.tolist():
            need = int(lengths[at])
            free = [number for number, left in enumerate(room) if left >= need]
            if len(bins) < least or not free:
                bins.append([])
                room.append(width)
                free = [len(bins) - 1]
            bins[free[0]].append(at)
            room[free[0]] -= need
        return [rows[one] for one in bins]

    def _width(self, bins: list[Numbers]) -> int:
        """Tokens of a row that the model reads: the last of each conversation is only predicted."""
        widest = max(int((self.rows.tokens.lengths[one] - 1).sum()) for one in bins)
        return int(padded_width(max(1, widest), self.rows.tokens.longest))

    def _laid(self, bins: list[Numbers], width: int) -> Batch:
        """A batch of these rows."""
        shape = (len(bins), width)
        tokens = np.full(shape, self.pad_id, dtype=np.int64)
        targets = np.full(shape, NO_LOSS, dtype=np.int64)
        documents, positions = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.int64)
        held, flags = self.rows.tokens, self.rows.learned
        for row, examples in enumerate(bins):
            at = 0
            for number, example in enumerate(examples.tolist()):
                first, last = int(held.starts[example]), int(held.starts[example + 1])
                ids, here = held.flat[first:last].astype(np.int64), slice(at, at + last - first - 1)
                tokens[row, here] = ids[:-1]
                targets[row, here] = np.where(flags[first + 1 : last], ids[1:], NO_LOSS)
                documents[row, here], positions[row, here] = number, np.arange(len(ids) - 1)
                at = here.stop
        alone = all(len(one) == 1 for one in bins)  # then no padding is ever looked at: it stands behind
        n_bytes = np.array([self.rows.n_bytes[one].sum() for one in bins], dtype=np.int64)
        return Batch(
            torch.from_numpy(tokens),
            torch.from_numpy(targets),
            None if alone else torch.from_numpy(documents),
            None if alone else torch.from_numpy(positions),
            torch.from_numpy(np.array([one[0] for one in bins], dtype=np.int64)),
            torch.from_numpy((targets != NO_LOSS).sum(1)),
            torch.from_numpy(n_bytes),
        )
