"""A table or bars as data, which three surfaces draw alike: HTML and text here, the served page by itself.

The page takes no markup from a server, so that token text stays text there; it is sent these records.
Read next: figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .html import Markup, tag
from .text import bars


@dataclass(frozen=True)
class Cell:
    """One field of a table."""

    text: str
    note: str = ""
    """Small print below it."""
    share: float = 0.0
    """From 0 to 1: how brightly it is lit."""
    title: str | None = None
    """What is said where a pointer rests."""


@dataclass(frozen=True)
class Table:
    """Rows of cells, each with its name."""

    head: Sequence[str]
    """Of the names first, then of each column."""
    rows: Sequence[tuple[str, Sequence[Cell]]]

    def markup(self) -> Markup:
        """Draw it for a saved page or a notebook."""
        rows = [
            tag("tr", tag("th", name), [
                tag("td", tag("code", cell.text), tag("small", cell.note), style=f"--p:{cell.share:.3f}",
                    title=cell.title)
                for cell in cells
            ])
            for name, cells in self.rows
        ]  # fmt: skip
        head = tag("tr", [tag("th", name) for name in self.head])
        return tag("table", tag("thead", head), tag("tbody", *rows))

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain values for JSON."""
        return {"kind": "table", **asdict(self)}


@dataclass(frozen=True)
class Bar:
    """One line of bars."""

    name: str
    share: float
    """From 0 to 1: how long it is."""
    number: str
    apart: bool = False
    """In grey: it speaks against, or is not to be believed."""


@dataclass(frozen=True)
class Bars:
    """Lines, each with its bar and its number."""

    rows: Sequence[Bar]

    def markup(self) -> Markup:
        """Draw it for a saved page or a notebook."""
        rows = [
            tag("div", tag("code", bar.name), tag("i", style=f"--p:{bar.share:.4f}"),
                tag("span", bar.number), class_="row apart" if bar.apart else "row")
            for bar in self.rows
        ]  # fmt: skip
        return tag("div", *rows, class_="rows")

    def text(self) -> str:
        """Draw it for a terminal."""
        rows = self.rows
        return bars([bar.name for bar in rows], [bar.share for bar in rows], [bar.number for bar in rows])

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain values for JSON."""
        return {"kind": "bars", **asdict(self)}
