"""Which examples make which step, when examples have different lengths: arithmetic, not replay.

The one idea: as with windows (order), a batch is a pure function of (seed, step). Every epoch shuffles all
examples by key, sorts them by length within pools, cuts each pool into a fixed number of batches of about
equal tokens and shuffles the batches; so little is padding, and every epoch has equally many steps. Read
next: examples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transom.data.order import shuffled
from transom.errors import Refused

Numbers = npt.NDArray[np.int64]

ROWS = 8
"""Batches have a multiple of so many rows where that is at most half of one: few shapes, see ragged."""
BATCHES_PER_POOL = 256
"""Of 4,096 tokens of Multi30k then 3% are padding; with 64 it is 8%, with 16 it is 18%."""


class Bucketed:
    """Batches of about `tokens_per_batch` tokens (padding not counted), each example once an epoch."""

    def __init__(
        self, lengths: npt.ArrayLike, tokens_per_batch: int, seed: int = 0, least_rows: int = 1
    ) -> None:
        """lengths (n,) or (n, sides): the tokens of each example, or of each side of it.

        No batch has fewer rows than `least_rows`: one for every process that shares it. Raises Refused where
        there are not so many examples.
        """
        sides = np.asarray(lengths, dtype=np.int64)
        self.sides = sides.reshape(len(sides), -1)
        self.n_examples, self.seed, self.least_rows = len(sides), seed, least_rows
        if self.n_examples < least_rows:
            has = "1 example is" if len(sides) == 1 else f"{len(sides):,} examples are"
            raise Refused(f"{has} fewer than the {least_rows} that a batch needs; give more examples")
        if tokens_per_batch < 1:
            raise Refused(f"a batch of {tokens_per_batch} tokens is too small; it needs at least 1")
        self.lengths = self.sides.sum(axis=1)
        wanted = round(int(self.lengths.sum()) / tokens_per_batch)
        self.n_batches = min(max(1, wanted), self.n_examples // least_rows)
        """Batches, that is steps, of every epoch."""
        self._known: tuple[int, Numbers, Numbers] | None = None

    def batch(self, step: int) -> Numbers:
        """The examples (rows,) of a step."""
        epoch, number = divmod(step, self.n_batches)
        order, bounds = self._epoch(epoch)
        return order[bounds[number, 0] : bounds[number, 1]]

    def _epoch(self, epoch: int) -> tuple[Numbers, Numbers]:
        """All examples in the order of an epoch (n,), and where its batches begin and end (n_batches, 2)."""
        if self._known is None or self._known[0] != epoch:
            self._known = (epoch, *self._ordered(epoch))
        return self._known[1], self._known[2]

    def _ordered(self, epoch: int) -> tuple[Numbers, Numbers]:
        order = shuffled(self.n_examples, f"examples {self.seed} {epoch}")
        n_pools = -(-self.n_batches // BATCHES_PER_POOL)
        firsts = np.arange(n_pools + 1) * self.n_batches // n_pools
        # A pool has as large a share of the examples as of the batches.
        ends = firsts * self.n_examples // self.n_batches
        bounds = [np.zeros(1, dtype=np.int64)]
        for pool in range(n_pools):
            place = slice(int(ends[pool]), int(ends[pool + 1]))
            order[place] = self._sorted(order[place])
            lengths = self.lengths[order[place]]
            bounds.append(place.start + _cut(lengths, int(firsts[pool + 1] - firsts[pool]), self.least_rows))
        edges = np.concatenate(bounds)
        batches = np.stack([edges[:-1], edges[1:]], axis=1)
        return order, batches[shuffled(self.n_batches, f"batches {self.seed} {epoch}")]

    def _sorted(self, examples: Numbers) -> Numbers:
        """By length of the last side; where that is equal by the others, up and down in turns."""
        sides = self.sides[examples]
        last = sides[:, -1]
        if sides.shape[1] == 1:
            return examples[np.argsort(last, kind="stable")]
        rest = sides[:, :-1].sum(axis=1)
        return examples[np.lexsort((np.where(last % 2, rest, -rest), last))]


def _cut(lengths: Numbers, n_batches: int, least_rows: int) -> Numbers:
    """Where `n_batches` batches of about equal sums of lengths end, each with at least `least_rows` rows."""
    total = np.cumsum(lengths)
    wanted = np.arange(1, n_batches + 1) * (int(total[-1]) / n_batches)
    ends = np.searchsorted(total, wanted - 0.5 * lengths.mean(), side="left") + 1
    if len(lengths) >= 2 * ROWS * n_batches:
        ends = np.round(ends / ROWS).astype(np.int64) * ROWS
    ends[-1] = len(lengths)
    steps = np.arange(1, n_batches + 1) * least_rows
    ends = np.maximum.accumulate(np.maximum(ends, steps) - steps) + steps
    return np.minimum(ends, len(lengths) - steps[::-1] + least_rows)
