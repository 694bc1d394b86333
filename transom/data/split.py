"""Which text is held out: whole documents by the hash of their text, or the ends of documents where there are
few.

The one idea: documents are taken in the order of their hash until the share is reached, and copies go
together, so the choice depends on the text alone and nothing held out was learned from. Read next: prepare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transom.data.check import Survey
from transom.data.documents import Document
from transom.errors import Refused

MOST = 0.5
"""Largest share that may be held out."""
FEW_DOCUMENTS = 20
TRAIN, HELD_OUT = 0, 1
_NEAR = 1000


@dataclass(frozen=True)
class Piece:
    """A part of a document on one side of the split."""

    side: int
    opens: bool
    """Whether a document begins here."""
    text: str


@dataclass(frozen=True)
class Split:
    """The side of every document, or how many characters of each are learned from before its held-out end."""

    held_out: npt.NDArray[np.bool_] | None
    tails: npt.NDArray[np.int64] | None
    says: str
    """In words, for the report."""

    @property
    def n_documents(self) -> int:
        sides = self.held_out if self.held_out is not None else self.tails
        return 0 if sides is None else len(sides)

    def pieces(self, number: int, document: Document) -> Iterator[Piece]:
        """The parts of document `number`, each with its side."""
        if self.held_out is not None:
            side, opens = int(self.held_out[number]), True
            for part in document.parts:
                yield Piece(side, opens, part)
                opens = False
            return
        assert self.tails is not None
        left, side, opens = int(self.tails[number]), TRAIN, True
        for part in document.parts:
            if side == TRAIN and len(part) > left:
                at = _line_start(part, left)
                if at:
                    yield Piece(TRAIN, opens, part[:at])
                yield Piece(HELD_OUT, True, part[at:])
                side, opens = HELD_OUT, False
            else:
                yield Piece(side, opens, part)
                left -= len(part)
                opens = False


def _line_start(text: str, limit: int) -> int:
    """The start of a line, else of a word, shortly before `limit`; else `limit` itself."""
    low = max(0, limit - _NEAR)
    return text.rfind("\n", low, limit) + 1 or text.rfind(" ", low, limit) + 1 or limit


def check_fraction(fraction: float) -> None:
    """Raise Refused for a share that cannot be held out."""
    if not 0 < fraction <= MOST:
        raise Refused(f"val_fraction is {fraction}; it must be above 0 and at most {MOST}")


def split(survey: Survey, fraction: float) -> Split:
    """Choose about `fraction` of the text to hold out. Raises Refused for a fraction outside (0, 0.5]."""
    check_fraction(fraction)
    n = len(survey.sizes)
    if n < FEW_DOCUMENTS:
        tails = np.ceil(survey.characters.astype(np.float64) * (1 - fraction)).astype(np.int64)
        tails = np.minimum(tails, np.maximum(survey.characters.astype(np.int64) - 1, 0))
        what = "the document" if n == 1 else f"each of the {n} documents"
        return Split(
            None, tails, f"the last {100 * fraction:.3g}% of {what} (fewer than {FEW_DOCUMENTS} documents)"
        )
    groups, member = np.unique(survey.groups, return_inverse=True)
    sizes = np.bincount(member, weights=survey.sizes.astype(np.float64)).astype(np.float64)
    chosen = chosen_groups(sizes, fraction * float(sizes.sum()))
    held_out = chosen[member]
    if held_out.all():
        raise Refused(f"all {n:,} documents are copies of each other; give more text")
    says = f"{int(held_out.sum()):,} of {n:,} documents, chosen by the hash of their text, copies together"
    return Split(held_out, None, says)


def chosen_groups(sizes: npt.NDArray[np.float64], target: float) -> npt.NDArray[np.bool_]:
    """Groups in the order of their hash until `target` bytes, passing over those that overshoot."""
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    left = target
    for group, size in enumerate(sizes):
        if size <= left:
            chosen[group] = True
            left -= size
        if left < 0.05 * target:
            break
    if not chosen.any():
        chosen[int(sizes.argmin())] = True
    return chosen
