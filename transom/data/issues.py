"""What reading a source came across, and what to do about it: stop, skip, or replace.

The one idea: whoever reads bytes reports every fault here with its file, line and byte, and the policy
decides in one place. `error` stops at the first; `skip` leaves the line or record out and counts it (more
than 1% is an error after all); `replace` writes U+FFFD for what is not text, and still stops at a record that
has no meaning. Read next: textfile, records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from transom.data.documents import printable
from transom.errors import Refused, nearest

Policy = Literal["error", "skip", "replace"]
POLICIES: tuple[Policy, ...] = ("error", "skip", "replace")

MAX_RECORD_BYTES = 8 << 20
MAX_SKIPPED = 0.01
"""Skipping more than this share of a source is an error: it is then not the text that was meant."""


def as_policy(name: str) -> Policy:
    """The policy of that name. Raises Refused for another."""
    for policy in POLICIES:
        if name == policy:
            return policy
    raise Refused(
        f"on_error is '{printable(name)}'; it is one of {', '.join(POLICIES)}{nearest(name, POLICIES)}"
    )


@dataclass
class Fault:
    """How often one kind of fault was met, and where first."""

    count: int = 0
    first: str = ""


@dataclass
class Issues:
    """Counts gathered while a source is read once."""

    policy: Policy = "error"
    faults: dict[str, Fault] = field(default_factory=dict)
    """Bad UTF-8, NUL bytes, broken records ... by name, in the order met."""
    n_files: int = 0
    n_records: int = 0
    n_skipped_records: int = 0
    n_bytes: int = 0
    """Bytes read from text files."""
    n_skipped_bytes: int = 0
    n_skipped_files: int = 0
    n_replaced: int = 0
    n_bom: int = 0
    n_empty: int = 0
    n_rough_cuts: int = 0
    n_divided: int = 0
    """Lines `<|endoftext|>` between documents of text files."""
    notes: list[str] = field(default_factory=list)
    """Sentences about choices that were made for the reader."""
    settable: bool = True
    """Whether the policy is a setting that a person can change here."""
    meant: Callable[[Any], str] | None = None
    """How a record would be written by whoever knows what these hold: a broken one, or one that is none."""

    def fault(
        self, kind: str, where: str, line: int, says: str, *, mendable: bool = False, times: int = 1
    ) -> None:
        """Note a fault at `where:line`. Raises Refused unless the policy lets reading go on.

        `mendable` faults are single bytes or characters, which `replace` can put right.
        """
        noted = self.faults.setdefault(kind, Fault())
        noted.count += times
        noted.first = noted.first or f"{where}:{line}"
        if self.policy == "error" or (self.policy == "replace" and not mendable):
            ways = "skip or replace" if mendable else "skip"
            way = f" (or --data.on-error {ways})" if self.settable else ""
            raise Refused(f"{where}:{line}: {says}{way}")

    def rough_cut(self) -> None:
        """Note that a text without any clean place was cut between two characters."""
        self.n_rough_cuts += 1

    def division(self) -> None:
        """Note a line that divides a text file into documents."""
        self.n_divided += 1

    def refuse_if_much_was_skipped(self) -> None:
        """Raise Refused when more than 1% of the bytes, records or files were skipped."""
        for what, skipped, total in (
            ("bytes", self.n_skipped_bytes, self.n_bytes),
            ("records", self.n_skipped_records, self.n_records),
            ("files", self.n_skipped_files, self.n_files),
        ):
            if skipped > MAX_SKIPPED * total:
                kinds = "; ".join(f"{kind}, first at {fault.first}" for kind, fault in self.faults.items())
                share = f"{skipped:,} of {total:,} {what} ({100 * skipped / total:.1f}%)"
                raise Refused(
                    f"{share} would be skipped, the limit is {100 * MAX_SKIPPED:.0f}% ({kinds}): "
                    "mend the text, or --data.on-error replace for bad bytes"
                )
