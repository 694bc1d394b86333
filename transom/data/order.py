"""Which windows of the corpus make which step: arithmetic, not replay.

The one idea: a batch is a pure function of (seed, step). Windows are numbered on through all epochs; within
an epoch a keyed permutation with random access (a Feistel network over a rectangle just larger than the
number of windows, with cycle walking: Black and Rogaway 2002) says where window i lies, in constant memory.
Every epoch begins at another offset, so windows are cut elsewhere. Resuming at step n is asking for step n.
Read next: training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transom.data.batches import NO_LOSS, Batch
from transom.data.documents import printable
from transom.data.tokens import TokenFile
from transom.errors import Refused

if TYPE_CHECKING:
    pass

_ROUNDS = 8
Numbers = npt.NDArray[np.uint64]


class Windows:
    """The windows of a token file: `length` inputs each, with targets one token later."""

    def __init__(self, token_file: TokenFile, length: int, seed: int = 0, name: str = "") -> None:
        """`name` is what a refusal calls the text, such as `notes/ (held out)`; else the file's own name."""
        if length < 1:
            raise Refused(f"a window of {length} tokens is too short; it needs at least 1")
        if token_file.n_tokens < length + 1:
            n_tokens, longest = token_file.n_tokens, max(1, token_file.n_tokens - 1)
            fix = f"a --model.max-len of at most {longest:,}" if name else f"a window of at most {longest:,}"
            raise Refused(
                f"{name or printable(token_file.path)}: {n_tokens:,} tokens are fewer than one window of "
                f"{length:,} and its last target; give more text, or {fix}"
            )
        self.file, self.length, self.seed = token_file, length, seed
        # One window is given up so that every epoch can begin anywhere within the first.
        self.n_windows = max(1, (token_file.n_tokens - length) // length)
        """Windows per epoch."""
        self._shifts = min(length, token_file.n_tokens - self.n_windows * length)
        self._view = np.lib.stride_tricks.sliding_window_view(token_file.tokens, length + 1)

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Batch:
        """The share of `rank` in the `size` windows of a step: a pure function of its arguments and the seed.

        The shares of all ranks, one after the other, are the batch of one rank. Raises Refused when `size`
        does not divide evenly.
        """
        if size < 1 or size % world or not 0 <= rank < world:
            raise Refused(
                f"a batch of {size} windows cannot be shared evenly by {world} processes; choose a multiple"
            )
        share = size // world
        numbers = np.arange(share, dtype=np.uint64) + np.uint64(step * size + rank * share)
        epochs, windows = np.divmod(numbers, np.uint64(self.n_windows))
        starts = np.empty(share, dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            keys = _keys(self.seed, int(epoch))
            place = permuted(windows[chosen], self.n_windows, keys)
            starts[chosen] = place.astype(np.int64) * self.length + int(keys[-1]) % self._shifts
        return self._batch(self._view[starts].astype(np.int64), starts, numbers.astype(np.int64))

    @property
    def n_rows(self) -> int:
        """Windows of all tokens in order, the last one filled up."""
        return -(-(self.file.n_tokens - 1) // self.length)

    def eval_batches(self, size: int) -> Iterator[Batch]:
        """All windows in order, `size` at a time: every token but the very first is a target exactly once."""
        return (self.eval_batch(first, size) for first in range(0, self.n_rows, size))

    def eval_batch(self, first: int, size: int) -> Batch:
        """`size` windows in order from number `first` on, fewer at the end.

        The last window of all is filled up with the opening token, without loss.
        """
        ids = np.arange(first, min(first + size, self.n_rows), dtype=np.int64)
        starts = ids * self.length
        span = np.array(self.file.tokens[starts[0] : starts[-1] + self.length + 1], dtype=np.int64)
        missing = int(starts[-1]) - int(starts[0]) + self.length + 1 - len(span)
        span = np.concatenate([span, np.full(missing, self.file.eos_id)])
        rows = np.lib.stride_tricks.sliding_window_view(span, self.length + 1)[starts - starts[0]]
        return self._batch(rows, starts, ids, missing)

    def _batch(
        self,
        rows: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        ids: npt.NDArray[np.int64],
        missing: int = 0,
    ) -> Batch:
        """Make a batch of rows (B, L+1); the last `missing` targets of the last row are filling."""
        import torch

        targets = rows[:, 1:]
        row_bytes = self.file.bytes_per_token[targets].sum(axis=1, dtype=np.int64)
        row_targets = np.full(len(rows), self.length, dtype=np.int64)
        if missing:
            row_bytes[-1] -= int(self.file.bytes_per_token[targets[-1, -missing:]].sum())
            row_targets[-1] -= missing
            targets = targets.copy()
            targets[-1, -missing:] = NO_LOSS
        documents, positions = self._boundaries(starts)
        tensor = torch.from_numpy
        return Batch(
            tensor(rows[:, :-1].copy()),
            tensor(np.ascontiguousarray(targets)),
            None if documents is None else tensor(documents),
            None if positions is None else tensor(positions),
            tensor(ids),
            tensor(row_targets),
            tensor(row_bytes),
        )

    def _boundaries(
        self, starts: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32] | None, npt.NDArray[np.int64] | None]:
        """Document numbers and positions (B, L) of the rows that begin at `starts`, or None for both.

        Documents that begin at 4 and 7 in a row of 9: documents 0 0 0 0 1 1 1 2 2, positions 0 1 2 3 0 1 2 0
        1.
        """
        low = np.searchsorted(self.file.starts, starts.astype(np.uint64), side="right")
        high = np.searchsorted(self.file.starts, (starts + self.length).astype(np.uint64), side="left")
        counts = high - low
        n_inside = int(counts.sum())
        if not n_inside:
            return None, None
        rows = np.repeat(np.arange(len(starts)), counts)
        within = np.arange(n_inside) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = self.file.starts[low[rows] + within].astype(np.int64) - starts[rows]
        opens = np.zeros((len(starts), self.length), dtype=np.int32)
        opens[rows, columns] = 1
        place = np.arange(self.length)
        return np.cumsum(opens, axis=1, dtype=np.int32), place - np.maximum.accumulate(opens * place, axis=1)


def _keys(seed: int, epoch: int) -> Numbers:
    """The secret numbers of an epoch: one for every round, and one for its offset."""
    return secret_numbers(f"windows {seed} {epoch}", _ROUNDS + 1)


def secret_numbers(name: str, n: int) -> Numbers:
    """`n` numbers of 64 bits that a name stands for, on every machine."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(8 * n), dtype="<u8")


def shuffled(n: int, name: str) -> npt.NDArray[np.int64]:
    """0..n-1 in an order that a name decides, on every machine."""
    return permuted(np.arange(n, dtype=np.uint64), n, secret_numbers(name, _ROUNDS)).astype(np.int64)


def permuted(numbers: Numbers, n: int, keys: Numbers) -> Numbers:
    """Where a keyed permutation of 0..n-1 sends each of `numbers`; any of them alone, in constant memory."""
    width = max(1, int(np.ceil(np.sqrt(n))))
    height = -(-n // width)
    result = _turned(numbers, width, height, keys)
    # The rectangle has fewer than `width` places too many; who lands there walks on until inside.
    while (outside := result >= n).any():
        result[outside] = _turned(result[outside], width, height, keys)
    return result


def _turned(numbers: Numbers, width: int, height: int, keys: Numbers) -> Numbers:
    """One pass of the network: each round shifts one coordinate by a scrambled function of the other."""
    rows, columns = np.divmod(numbers, np.uint64(width))
    for turn in range(0, _ROUNDS, 2):
        columns = (columns + scrambled(rows, keys[turn]) % np.uint64(width)) % np.uint64(width)
        rows = (rows + scrambled(columns, keys[turn + 1]) % np.uint64(height)) % np.uint64(height)
    return rows * np.uint64(width) + columns


def scrambled(numbers: Numbers, key: Any) -> Numbers:
    """Mix every bit of a number with every other (Stafford's variant of the murmur finalizer)."""
    mixed = (numbers ^ key) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
