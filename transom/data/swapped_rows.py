"""Data told about everybody: every row, and the same row with its names, pronouns and terms swapped.

Who learns from both has nothing but the rest of a text to go by (counterfactual augmentation, Lu et al.
2018). What says the right answer stays as it is. Read next: swaps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.data.columns import LABEL_NAMES
from transom.data.issues import Issues
from transom.data.rows import RECORDS, RowFile, file_kind, named_rows, readable_file
from transom.data.swaps import LISTS, SwapList, both_ways
from transom.errors import Refused
from transom.output import write_whole

KEPT = (*LABEL_NAMES, "completion", "group", "id")
"""Fields that are the same of everybody."""
_BETWEEN = "\0"


@dataclass(frozen=True)
class Swapped:
    """What became of the rows of a file."""

    path: Path
    n: int
    """Rows read."""
    written: int
    touched: int
    """Rows in which there was a word to swap."""

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.written:,} rows of {self.n:,}; {self.touched:,} of these had a word of the "
            "lists, and stand there about each group"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**vars(self), "path": str(self.path)}


def swap_rows(path: Path, out: Path, swaps: Sequence[Path] = ()) -> Swapped:
    """Write the rows of a file as JSON lines, each also about every other group.

    Raises Refused where there is no row, or no word of any list in one.
    """
    name = readable_file(path, "give rows to learn from: JSON lines, CSV, TSV or a text file")
    lists = (*LISTS, *(SwapList.read(one) for one in swaps))
    rows = list(_rows(path, name))
    texts = [_BETWEEN.join(row[key] for key in _told(row)) for row in rows]
    written, touched = [], set()
    for number, text in both_ways(texts, lists):
        row = rows[number]
        touched |= {number} if text != texts[number] else set()
        written.append({**row, **dict(zip(_told(row), text.split(_BETWEEN), strict=True))})
    if not touched:
        raise Refused(
            f"{name}: none of its {len(rows):,} rows holds a word of a list; name your own by --swaps"
        )
    write_whole(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written))
    return Swapped(out, len(rows), len(written), len(touched))


def _told(row: dict[str, Any]) -> list[str]:
    return [key for key, value in row.items() if isinstance(value, str) and key not in KEPT]


def _rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    if file_kind(path) in RECORDS:
        return named_rows(path, name, Issues())
    return ({"text": text} for _, text in RowFile(path, name).lines(Issues()) if text.strip())
