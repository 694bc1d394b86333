"""Masked language modelling: windows of text in which some tokens are hidden and have to be found again.

The one idea: which tokens are hidden is a pure function of (seed, step, row), like the windows themselves.
Of the tokens of a row 15% are chosen; of those 80% become the mask, 10% another token, 10% stay as they are
(Devlin et al. 2019, BERT). Read next: order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from transom.data.order import NO_LOSS, Batch, Windows, scrambled, secret_numbers
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused

CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1
"""Share of the tokens that are to be found, and of those the shares masked and replaced; the rest stay."""

MaskedBatch = Batch
"""A batch whose targets are the hidden tokens themselves, and -100 everywhere else."""

Numbers = npt.NDArray[np.int64]


class Masking:
    """The batches of some windows with tokens hidden; control tokens never are."""

    def __init__(self, windows: Windows, tokenizer: Tokenizer, seed: int = 0) -> None:
        """Raises Refused for a tokenizer without a mask token."""
        if tokenizer.mask_id is None:
            raise Refused(
                "the tokenizer names no mask token (mask_token in tokenizer_config.json), which masked "
                "language modelling needs; add one, or give --data.tokenizer bpe"
            )
        self.windows, self.seed, self.mask_id = windows, seed, tokenizer.mask_id
        self.file, self.length = windows.file, windows.length
        self.n_windows, self.n_rows = windows.n_windows, windows.n_rows
        self._control = np.array(sorted(tokenizer.control_ids), dtype=np.int64)
        self._words = np.setdiff1d(np.arange(tokenizer.vocab_size), self._control)

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> MaskedBatch:
        """The share of `rank` in the `size` windows of a step (see Windows.batch), with tokens hidden."""
        return self._hidden(self.windows.batch(step, size, rank, world), "step")

    def eval_batches(self, size: int) -> Iterator[MaskedBatch]:
        """All windows in order, `size` at a time, with the same tokens hidden every time."""
        return (self.eval_batch(first, size) for first in range(0, self.n_rows, size))

    def eval_batch(self, first: int, size: int) -> MaskedBatch:
        """`size` windows from number `first` on (see Windows.eval_batch), with tokens hidden."""
        return self._hidden(self.windows.eval_batch(first, size), "evaluation")

    def _hidden(self, batch: Batch, purpose: str) -> MaskedBatch:
        """Hide tokens of a batch; its ids number windows through all epochs, so no two steps hide alike."""
        import torch

        tokens = batch.tokens.numpy()
        chosen, fate, words = self._draws(batch.ids.numpy(), tokens, purpose)
        shown = np.where(chosen & (fate < MASKED), self.mask_id, tokens)
        shown = np.where(chosen & (fate >= MASKED) & (fate < MASKED + REPLACED), words, shown)
        row_targets = chosen.sum(axis=1)
        row_bytes = (self.file.bytes_per_token[tokens].astype(np.int64) * chosen).sum(axis=1)
        return replace(
            batch,
            tokens=torch.from_numpy(shown),
            targets=torch.from_numpy(np.where(chosen, tokens, NO_LOSS)),
            row_targets=torch.from_numpy(row_targets),
            row_bytes=torch.from_numpy(row_bytes),
        )

    def _draws(
        self, ids: Numbers, tokens: Numbers, purpose: str
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], Numbers]:
        """For tokens (B, L): which are chosen, a number in [0, 1) that decides what becomes of each, and
        another token for each.
        """
        keys = secret_numbers(f"masks {self.seed} {purpose}", 3)
        places = ids.astype(np.uint64)[:, None] * np.uint64(self.length) + np.arange(
            self.length, dtype=np.uint64
        )
        ranks, fate, words = (scrambled(scrambled(places, key), key) >> np.uint64(11) for key in keys)
        free = ~np.isin(tokens, self._control)
        wanted = np.maximum(np.rint(CHOSEN * free.sum(axis=1)), free.any(axis=1)).astype(np.int64)
        # The places of each row with the smallest numbers are chosen, control tokens last of all.
        order = np.argsort(np.where(free, ranks, np.uint64(1 << 63)), axis=1, kind="stable")
        chosen = np.zeros(tokens.shape, dtype=np.bool_)
        np.put_along_axis(chosen, order, np.arange(self.length) < wanted[:, None], axis=1)
        return chosen, fate / float(1 << 53), self._words[words % np.uint64(len(self._words))]
