"""What training on examples reads: pairs to translate, texts to classify, texts that belong together,
conversations, preferences.

The one idea: each job is an order (which examples make step n, see bucketed) and a way to make a batch of
them; both are pure functions of (seed, step), and rank r of several takes every so-manieth row. Read next:
prepare_examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from transom.data.batches import LabelBatch, PairBatch, PreferenceBatch, Rows, TextPairBatch
from transom.data.bucketed import Bucketed
from transom.data.order import NO_LOSS, scrambled, secret_numbers
from transom.data.ragged import Ragged, padded_width
from transom.errors import Refused

if TYPE_CHECKING:
    import torch

__all__ = ["Bucketed", "Classification", "Embedding", "LabelBatch", "LabelledRows", "PairBatch", "PairRows"]
__all__ += ["PreferenceBatch", "PreferenceRows", "Preferences", "TextPairBatch", "Translation"]

MEASURED_PAIRS = 64
"""Pairs of a batch in which an embedder is measured."""
_AT_ONCE = 1 << 16
Numbers = npt.NDArray[np.int64]
Batch = TypeVar("Batch", bound=Rows)


@dataclass(frozen=True)
class PairRows:
    """Pairs as framed ids."""

    source: Ragged
    target: Ragged
    """Up to and with the end token."""
    n_bytes: Numbers
    """(n,) UTF-8 bytes of every target."""
    negative: Ragged | None = None
    """Of triples the texts that do not belong to the sources, though they may seem to."""

    @property
    def sides(self) -> list[Ragged]:
        """The texts of each pair or triple, side by side."""
        return [self.source, self.target, *([] if self.negative is None else [self.negative])]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class LabelledRows:
    """Texts as framed ids, with the number of each one's class."""

    text: Ragged
    labels: Numbers
    """(n,)"""

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class ConversationRows:
    """Conversations as ids, each up to the end of its last answer."""

    tokens: Ragged
    learned: npt.NDArray[np.bool_]
    """As long as the ids of all rows: which of them carry loss."""
    n_bytes: Numbers
    """(n,) UTF-8 bytes that the learned tokens of each write."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PreferenceRows:
    """Pairs of conversations with the same prompt."""

    chosen: ConversationRows
    rejected: ConversationRows

    def __len__(self) -> int:
        return len(self.chosen)


class Drawn(Protocol):
    """Which examples make which step: a pure function of (seed, step)."""

    n_examples: int
    n_batches: int
    lengths: Numbers
    """(n,): tokens of every example."""
    sides: Numbers
    """(n, sides): those of each side."""

    def batch(self, step: int) -> Numbers: ...


class Order(Generic[Batch]):
    """Which examples make which step, and the batches to measure with."""

    def __init__(self, order: Drawn) -> None:
        """order: which examples make which step."""
        self.order = order
        self.n_examples = self.order.n_examples
        self.steps_per_epoch = self.order.n_batches
        self.tokens_per_step = round(int(self.order.lengths.sum()) / self.steps_per_epoch)
        """Tokens of a step, padding not counted: the mean."""
        self.n_rows = max(1, round(self.n_examples / self.steps_per_epoch))
        """Rows of a step: the mean."""
        self.row_length = max(1, round(float(self.order.sides[:, -1].mean())))
        """Tokens of a row that the model predicts from: the mean."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The share of `rank` in the batch of a step, rows rank::world of it.

        Raises Refused when the batch has fewer rows than there are processes.
        """
        rows = self.order.batch(step)
        if len(rows) < world:
            raise Refused(
                f"the batch of step {step} has {len(rows)} examples, too few to be shared by {world} "
                "processes; raise the tokens per batch, or start fewer processes"
            )
        return self.take(rows[rank::world])

    def eval_batches(self, tokens: int) -> list[Batch]:
        """All examples once, see eval_rows."""
        return list(map(self.take, self.eval_rows(tokens)))

    def eval_rows(self, tokens: int) -> list[Numbers]:
        """Which examples make each batch to measure with: all once, the short ones first, at most `tokens`
        with padding in each.
        """
        order = np.lexsort(self.order.sides.T)
        batches, first, widths = [], 0, [0] * self.order.sides.shape[1]
        wide = padded_width(self.order.sides, self.order.sides.max(axis=0, initial=1))
        for at, sides in enumerate(wide[order].tolist()):
            widths = list(map(max, widths, sides))
            if at > first and sum(widths) * (at + 1 - first) > tokens:
                batches.append(order[first:at])
                first, widths = at, sides
        return [*batches, order[first:]]

    def trial(self, n_rows: int) -> Batch:
        """So many rows of about the mean length, to measure the speed with; some twice where they are few."""
        order = np.argsort(self.order.lengths, kind="stable")
        middle = int(np.searchsorted(self.order.lengths[order], self.order.lengths.mean()))
        first = max(0, min(middle - n_rows // 2, self.n_examples - n_rows))
        return self.take(order[(first + np.arange(n_rows)) % self.n_examples])

    def take(self, rows: Numbers) -> Batch:
        """A batch of these examples (B,)."""
        raise NotImplementedError


class Translation(Order[PairBatch]):
    """Batches of pairs for an encoder-decoder; `tokens_per_batch` counts both sides."""

    def __init__(
        self,
        pairs: PairRows,
        tokens_per_batch: int,
        seed: int = 0,
        *,
        start_id: int,
        pad_id: int,
        least_rows: int = 1,
    ) -> None:
        """start_id: what the decoder reads first; pad_id: what stands, unread, behind shorter rows."""
        self.pairs, self.start_id, self.pad_id = pairs, start_id, pad_id
        lengths = np.stack([pairs.source.lengths, pairs.target.lengths], axis=1)
        super().__init__(Bucketed(lengths, tokens_per_batch, seed, least_rows))

    def take(self, rows: Numbers) -> PairBatch:
        source, source_documents = self.pairs.source.padded(rows, self.pad_id)
        targets, documents = self.pairs.target.padded(rows, self.pad_id)
        tokens = np.empty_like(targets)
        tokens[:, 0], tokens[:, 1:] = self.start_id, targets[:, :-1]
        if documents is not None:
            tokens[documents < 0] = self.pad_id
            targets[documents < 0] = NO_LOSS
        lengths = self.pairs.target.lengths
        return PairBatch(
            *_tensors(source, source_documents, tokens, targets, documents),
            *_tensors(rows, lengths[rows], self.pairs.n_bytes[rows]),
        )


class Classification(Order[LabelBatch]):
    """Batches of texts with their classes."""

    def __init__(
        self, rows: LabelledRows, tokens_per_batch: int, seed: int = 0, *, pad_id: int, least_rows: int = 1
    ) -> None:
        self.rows, self.pad_id = rows, pad_id
        super().__init__(Bucketed(rows.text.lengths, tokens_per_batch, seed, least_rows))

    def take(self, rows: Numbers) -> LabelBatch:
        tokens, documents = self.rows.text.padded(rows, self.pad_id)
        return LabelBatch(*_tensors(tokens, documents, self.rows.labels[rows], rows))


class Embedding(Order[TextPairBatch]):
    """Batches of texts that belong together, or of triples; `tokens_per_batch` counts all sides."""

    def __init__(
        self, pairs: PairRows, tokens_per_batch: int, seed: int = 0, *, pad_id: int, least_rows: int = 1
    ) -> None:
        self.pairs, self.pad_id = pairs, pad_id
        self.texts = text_numbers(*pairs.sides)
        lengths = np.stack([side.lengths for side in pairs.sides], axis=1)
        super().__init__(Bucketed(lengths, tokens_per_batch, seed, least_rows))

    def take(self, rows: Numbers) -> TextPairBatch:
        one, other, *negative = (side.padded(rows, self.pad_id) for side in self.pairs.sides)
        arrays = [*one, *other, self.texts[rows], rows, *(negative[0] if negative else ())]
        return TextPairBatch(*_tensors(*arrays))

    def eval_rows(self, tokens: int) -> list[Numbers]:
        """All pairs once, as near as can be `MEASURED_PAIRS` in each batch: how hard it is to find a partner
        hangs on how many there are to choose from.
        """
        order = np.lexsort(self.order.sides.T)
        return np.array_split(order, max(1, len(order) // MEASURED_PAIRS))


class Preferences(Order[PreferenceBatch]):
    """Batches of pairs of answers; `tokens_per_batch` counts both."""

    def __init__(
        self, rows: PreferenceRows, tokens_per_batch: int, seed: int = 0, *, pad_id: int, least_rows: int = 1
    ) -> None:
        self.rows, self.pad_id = rows, pad_id
        lengths = np.stack([rows.chosen.tokens.lengths, rows.rejected.tokens.lengths], axis=1)
        super().__init__(Bucketed(lengths, tokens_per_batch, seed, least_rows))
        self.row_length = max(1, round(float(self.order.lengths.mean())))
        """Tokens of both answers of a pair with their prompts: the mean."""
        self.reference = np.zeros(lengths.shape, dtype=np.float32)
        """(n, 2): what batches have as theirs."""

    def take(self, rows: Numbers) -> PreferenceBatch:
        sides = [array for side in (self.rows.chosen, self.rows.rejected) for array in self._side(side, rows)]
        lengths = self.order.sides[rows] - 1  # of a row the last token is only predicted
        return PreferenceBatch(*_tensors(*sides, self.reference[rows], lengths, rows))

    def _side(self, side: ConversationRows, rows: Numbers) -> tuple[Numbers, Numbers]:
        """What is read of these rows (B, L), and what is predicted (B, L)."""
        ids, _ = side.tokens.padded(rows, self.pad_id)
        learned, _ = Ragged(side.learned.view(np.uint8), side.tokens.starts).padded(rows, 0)
        return ids[:, :-1], np.where(learned[:, 1:] > 0, ids[:, 1:], NO_LOSS)


def text_numbers(*sides: Ragged) -> Numbers:
    """(n, sides) a number for every text, equal where texts are: a hash of its ids and their places."""
    numbers = np.zeros((len(sides[0]), len(sides)), dtype=np.uint64)
    keys = secret_numbers("texts", 2)
    for column, side in enumerate(sides):
        for first in range(0, len(side), _AT_ONCE):
            last = min(first + _AT_ONCE, len(side))
            begin, end = side.starts[first], side.starts[last]
            bounds = side.starts[first : last + 1] - begin
            place = (np.arange(end - begin) - np.repeat(bounds[:-1], np.diff(bounds))).astype(np.uint64)
            sums = np.zeros(end - begin + 1, dtype=np.uint64)
            np.cumsum(scrambled(scrambled(place, keys[0]) ^ side.flat[begin:end], keys[1]), out=sums[1:])
            numbers[first:last, column] = sums[bounds[1:]] - sums[bounds[:-1]]
    return numbers.view(np.int64)


def _tensors(*arrays: npt.NDArray[np.generic] | None) -> list[torch.Tensor]:
    """Arrays as tensors, None as None (which the batch's fields know)."""
    import torch

    return [
        None if array is None else torch.from_numpy(np.ascontiguousarray(array))  # pyright: ignore
        for array in arrays
    ]
