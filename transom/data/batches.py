"""Batches: windows of running text, pairs to translate, texts with a class, texts that belong together, pairs
of answers.

The one idea: every batch is rows of tensors, so moving it to a device and cutting it into micro-batches is
the same for all. Where rows differ in length they are padded at the end, and `documents` says so: 0 for text,
-1 for padding. Read next: order, examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from transom.data.ragged import padded_width

if TYPE_CHECKING:
    import torch

NO_LOSS = -100
"""The target that carries no loss."""


class Rows:
    """What all batches can do; their fields are tensors (B, ...) or None."""

    tokens: torch.Tensor
    ids: torch.Tensor
    _ON_HOST: ClassVar[tuple[str, ...]] = ("ids", "row_targets", "row_bytes")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def n_targets(self) -> int:
        """What the loss is a sum over, padding not counted; the rows, where each has one class or partner."""
        each = getattr(self, "row_targets", None)
        return len(self.ids) if each is None else int(each.sum())

    @cached_property
    def n_bytes(self) -> int:
        """UTF-8 bytes that the targets write; 0 where they write none."""
        each = getattr(self, "row_bytes", None)
        return 0 if each is None else int(each.sum())

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device; numbers and counts of rows stay where they are."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True), besides=self._ON_HOST)

    def split(self, n_rows: int) -> list[Self]:
        """Micro-batches of at most `n_rows` rows; their counts add up to this batch's."""
        if n_rows < 1:
            raise ValueError(f"n_rows is {n_rows}; a micro-batch has at least 1 row")
        return [
            self._each(lambda tensor, start=start: tensor[start : start + n_rows])
            for start in range(0, len(self), n_rows)
        ]

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor], besides: tuple[str, ...] = ()) -> Self:
        batch: Any = self  # every subclass is a dataclass
        values = {
            field.name: getattr(self, field.name) for field in fields(batch) if field.name not in besides
        }
        return replace(batch, **{name: change(value) for name, value in values.items() if value is not None})


@dataclass(frozen=True)
class Batch(Rows):
    """Rows of tokens with what is to be predicted at every place. Shapes: B windows, L tokens each."""

    tokens: torch.Tensor
    """(B, L) int64."""
    targets: torch.Tensor
    """(B, L) int64: the next token, or -100 for no loss."""
    documents: torch.Tensor | None
    """(B, L) int32: number of the document within its row; None when no row holds a boundary."""
    positions: torch.Tensor | None
    """(B, L) int64: place within the document, or within the row where the document began before it; None
    likewise.
    """
    ids: torch.Tensor
    """(B,) int64: which windows these are, for logs."""
    row_targets: torch.Tensor
    """(B,) int64: targets that carry loss in each row."""
    row_bytes: torch.Tensor
    """(B,) int64: UTF-8 bytes that those targets write."""


@dataclass(frozen=True)
class PairBatch(Rows):
    """Sources with their targets. Shapes: B pairs, M source tokens, L target tokens."""

    positions: ClassVar[None] = None
    """Every row begins at position 0."""
    source: torch.Tensor
    """(B, M) int64."""
    source_documents: torch.Tensor | None
    """(B, M) int32, or None when no row is padded."""
    tokens: torch.Tensor
    """(B, L) int64: what the decoder reads, the start token and the target but for its last token."""
    targets: torch.Tensor
    """(B, L) int64: the target up to its end token, -100 at padding."""
    documents: torch.Tensor | None
    """(B, L) int32, or None when no row is padded."""
    ids: torch.Tensor
    """(B,) int64: which pairs these are."""
    row_targets: torch.Tensor
    """(B,) int64: target tokens of each row."""
    row_bytes: torch.Tensor
    """(B,) int64: UTF-8 bytes of each target."""


@dataclass(frozen=True)
class LabelBatch(Rows):
    """Texts with their classes. Shapes: B texts, L tokens; n_targets is B."""

    positions: ClassVar[None] = None
    """Every row begins at position 0."""
    tokens: torch.Tensor
    """(B, L) int64."""
    documents: torch.Tensor | None
    """(B, L) int32, or None when no row is padded."""
    labels: torch.Tensor
    """(B,) int64: the number of each class."""
    ids: torch.Tensor
    """(B,) int64: which texts these are."""


@dataclass(frozen=True)
class TextPairBatch(Rows):
    """Texts, each with another that belongs to it, and of triples with one that does not. Shapes: B pairs,
    L, M and N tokens; n_targets is B.
    """

    positions: ClassVar[None] = None
    """Every row begins at position 0."""
    tokens: torch.Tensor
    """(B, L) int64."""
    documents: torch.Tensor | None
    """(B, L) int32, or None when no row is padded."""
    other_tokens: torch.Tensor
    """(B, M) int64: the text that belongs to each."""
    other_documents: torch.Tensor | None
    """(B, M) int32, or None when no row is padded."""
    texts: torch.Tensor
    """(B, 2), of triples (B, 3) int64: a number for each text, equal where texts are."""
    ids: torch.Tensor
    """(B,) int64: which pairs these are."""
    negative_tokens: torch.Tensor | None = None
    """(B, N) int64: of triples the text that does not belong to each."""
    negative_documents: torch.Tensor | None = None
    """(B, N) int32, or None when no row is padded."""


@dataclass(frozen=True)
class PreferenceBatch(Rows):
    """Prompts, each with an answer that was chosen and one that was rejected. Shapes: B pairs, L and M
    tokens; n_targets is B.

    Padding stands behind the shorter rows, where nothing that is looked at sees it.
    """

    _ON_HOST: ClassVar[tuple[str, ...]] = ("ids", "lengths")
    documents: ClassVar[None] = None
    positions: ClassVar[None] = None
    tokens: torch.Tensor
    """(B, L) int64: the prompt and the chosen answer but for its last token."""
    targets: torch.Tensor
    """(B, L) int64: the next token where that is the answer's, else -100."""
    other_tokens: torch.Tensor
    """(B, M) int64: the same of the rejected answer."""
    other_targets: torch.Tensor
    """(B, M) int64."""
    reference: torch.Tensor
    """(B, 2) float32: log-probabilities of both answers by the model as it was before the first step; 0
    where nobody asks."""
    lengths: torch.Tensor
    """(B, 2) int64: tokens of both rows."""
    ids: torch.Tensor
    """(B,) int64: which pairs these are."""

    def split(self, n_rows: int) -> list[Self]:
        """Micro-batches of at most `n_rows` pairs, each as wide as its longest rows."""
        parts = []
        for part in super().split(n_rows):
            one, other = (int(padded_width(int(most), 1 << 62)) for most in part.lengths.amax(0))
            parts.append(
                replace(
                    part, tokens=part.tokens[:, :one], targets=part.targets[:, :one],
                    other_tokens=part.other_tokens[:, :other], other_targets=part.other_targets[:, :other],
                )
            )  # fmt: skip
        return parts
