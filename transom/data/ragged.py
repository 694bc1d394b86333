"""Rows of different lengths in one flat array, and rows of it padded to a rectangle.

The one idea: padding stands at the end of a row and is told by place, never by id: `documents` is 0 where a
row has text and -1 behind it. Read next: batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
WIDTHS = 4
"""A product of a shape that was not met before costs oneDNN 1 to 3 ms, in which it writes code for it; the
same again 0.1 to 0.5 ms (192 to 768 wide, 1,500 rows, bfloat16, one core with AMX, 2026-11-24)."""


@dataclass(frozen=True)
class Ragged:
    """Rows of ids: row i is flat[starts[i]:starts[i + 1]]."""

    flat: npt.NDArray[np.unsignedinteger[Any]]
    """All ids, of 16 or 32 bits; of a token file through the memory map."""
    starts: Numbers
    """(rows + 1,)"""

    @classmethod
    def of(cls, rows: Sequence[npt.NDArray[Any]]) -> Ragged:
        """Put rows one after the other."""
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=starts[1:])
        return cls(np.concatenate([*rows, np.empty(0, dtype=np.uint32)]).astype(np.uint32), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        return self.flat[self.starts[row] : self.starts[row + 1]]

    @cached_property
    def longest(self) -> int:
        """Ids of the longest row, and at least 1."""
        return int(self.lengths.max(initial=1))

    @property
    def lengths(self) -> Numbers:
        """Ids of every row."""
        return np.diff(self.starts)

    def take(self, rows: Numbers) -> Ragged:
        """These rows alone."""
        lengths = self.lengths[rows]
        starts = np.append(0, np.cumsum(lengths))
        offsets = np.repeat(self.starts[rows] - starts[:-1], lengths)
        return Ragged(self.flat[offsets + np.arange(starts[-1])], starts)

    def cut(self, longest: int, after: int) -> Ragged:
        """Rows of at most `longest` ids: their first ones, and the last `after`, which end a frame."""
        lengths = self.lengths
        place = np.arange(len(self.flat)) - np.repeat(self.starts[:-1], lengths)
        left = np.repeat(lengths, lengths) - place
        kept = (place < longest - after) | (left <= after) | np.repeat(lengths <= longest, lengths)
        return Ragged(self.flat[kept], np.append(0, np.cumsum(np.minimum(lengths, longest))))

    def padded(self, rows: Numbers, fill: int) -> tuple[Numbers, npt.NDArray[np.int32] | None]:
        """Rows as a rectangle (B, L) with `fill` behind the shorter ones, and their documents (B, L).

        Documents are 0 for text and -1 for padding; None where nothing is padded. L is a multiple of WIDTHS,
        or the longest of all rows: so that few shapes occur.
        """
        lengths = self.starts[rows + 1] - self.starts[rows]
        columns = np.arange(int(padded_width(lengths.max(initial=1), self.longest)))
        inside = columns < lengths[:, None]
        at = np.where(inside, self.starts[rows][:, None] + columns, 0)
        ids = np.where(inside, self.flat[at].astype(np.int64), fill)
        return ids, None if inside.all() else inside.astype(np.int32) - 1


def padded_width(lengths: npt.ArrayLike, longest: npt.ArrayLike) -> Numbers:
    """How wide a rectangle is that holds rows of these lengths, where the longest of all is known."""
    return np.minimum(-(-np.asarray(lengths, dtype=np.int64) // WIDTHS) * WIDTHS, longest)
