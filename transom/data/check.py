"""The check before anything is spent: one pass over a source that counts what is in it and says so in plain
words.

The one idea: everything that later goes wrong because of text (bad bytes, empty files, copies, one line of
100 MB) shows in a single pass at memory speed, which also gives the data hash and what the split needs to
know. Read next: duplicates, split, prepare.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transom.data.documents import MARKER
from transom.data.duplicates import COMPARED_BYTES, Duplicates, Words
from transom.data.issues import Issues
from transom.data.sources import Source
from transom.data.textfile import controls_note, n_controls
from transom.errors import Refused
from transom.units import counted

LONG_LINE_BYTES = 1 << 20
_SHORT = 4096


@dataclass(frozen=True)
class Progress:
    """How far a stage of the preparation has come."""

    stage: str
    done: int
    """Bytes of text so far."""
    total: int | None
    """Bytes of text to expect, or None where nobody knows yet."""
    mb_per_s: float
    """Megabytes (10^6 bytes) of text per second since the stage began."""


OnProgress = Callable[[Progress], None]


class Meter:
    """Turns bytes done into Progress, at most ten times a second."""

    def __init__(self, stage: str, total: int | None, on_progress: OnProgress | None) -> None:
        self.stage, self.total, self.on_progress = stage, total, on_progress
        self.done = 0
        self.began = self.said = time.perf_counter()

    def add(self, n_bytes: int) -> None:
        self.done += n_bytes
        if self.on_progress is not None and time.perf_counter() - self.said > 0.1:
            self._say()

    def finish(self) -> None:
        """Report the end of the stage."""
        self.total = self.done
        if self.on_progress is not None:
            self._say()

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self.began, 1e-9)

    @property
    def mb_per_s(self) -> float:
        return self.done / 1e6 / self.seconds

    def _say(self) -> None:
        self.said = time.perf_counter()
        assert self.on_progress is not None
        self.on_progress(Progress(self.stage, self.done, self.total, self.mb_per_s))


@dataclass
class Report:
    """What is in a source, and what was made of it. `str(report)` says it in plain words."""

    name: str
    n_bytes: int = 0
    """Bytes of UTF-8 text that will be learned from."""
    n_documents: int = 0
    n_characters: int = 0
    n_empty: int = 0
    """Empty files and records, which are left out."""
    n_exact_duplicates: int = 0
    n_near_duplicates: int = 0
    n_compared: int = 0
    """Different documents compared for near duplicates."""
    n_bom: int = 0
    """Byte-order marks of UTF-8 that were dropped."""
    n_crlf: int = 0
    """Lines that end in CR LF, which are kept."""
    longest_line: int = 0
    """In bytes."""
    longest_line_at: str = ""
    n_skipped_bytes: int = 0
    n_skipped_records: int = 0
    n_skipped_files: int = 0
    n_replaced: int = 0
    """Bad bytes and NUL bytes written as U+FFFD."""
    n_rough_cuts: int = 0
    """Places where text without any space or line break had to be cut between two characters."""
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Kind of fault -> how many, and where first."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Files of a folder that are no text, by reason."""
    mb_per_s: float = 0.0
    """Speed of this check."""
    tokens: dict[str, Any] = field(default_factory=dict)
    """What preparing made of it: tokens, vocabulary, split, speed (empty after a check alone)."""
    notes: list[str] = field(default_factory=list)
    """Sentences about choices that were made for the reader."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        documents = counted(self.n_documents, "document")
        rows = [
            ("data", self.name),
            ("text", f"{_size(self.n_bytes)}, {self.n_characters:,} characters in {documents}"),
            ("copies", self._copies()),
            ("bad text", self._faults()),
            ("lines", self._lines()),
            ("cut", self._cuts()),
        ]
        if self.left_out or self.n_empty:
            reasons = [f"{count:,} {reason}" for reason, count in self.left_out.items()]
            reasons += [f"{self.n_empty:,} empty"] if self.n_empty else []
            rows.append(("left out", ", ".join(reasons)))
        rows += [(name, str(says)) for name, says in self._tokens()]
        rows += [("note", note) for note in self.notes]
        return "\n".join(f"{name:<10} {says}" for name, says in rows)

    def _copies(self) -> str:
        near = f"{self.n_near_duplicates:,} nearly the same"
        if self.n_compared < self.n_documents - self.n_exact_duplicates:
            near += f" (of {self.n_compared:,} documents compared)"
        return f"{self.n_exact_duplicates:,} documents occur more than once, {near}"

    def _faults(self) -> str:
        if not self.faults:
            return "none: valid UTF-8, no NUL bytes"
        done = [f"{counted(self.n_replaced, 'character')} replaced"] if self.n_replaced else []
        done += [f"{_size(self.n_skipped_bytes)} skipped"] if self.n_skipped_bytes else []
        done += [f"{counted(self.n_skipped_records, 'record')} skipped"] if self.n_skipped_records else []
        done += [f"{counted(self.n_skipped_files, 'file')} skipped"] if self.n_skipped_files else []
        kinds = [
            f"{kind} {counted(count, 'time')} (first at {first})"
            for kind, (count, first) in self.faults.items()
        ]
        return "; ".join(kinds) + ": " + ", ".join(done)

    def _lines(self) -> str:
        says = f"longest {_size(self.longest_line)} ({self.longest_line_at})"
        says += ": unusually long, is it text?" if self.longest_line > LONG_LINE_BYTES else ""
        says += f"; {self.n_crlf:,} end in CR LF, kept" if self.n_crlf else ""
        return says + (f"; {counted(self.n_bom, 'byte-order mark')} dropped" if self.n_bom else "")

    def _cuts(self) -> str:
        if not self.n_rough_cuts:
            return "nothing: long text runs on from window to window"
        return f"{counted(self.n_rough_cuts, 'place')} inside text without spaces, between two characters"

    def _tokens(self) -> list[tuple[str, str]]:
        if not self.tokens:
            return []
        made = self.tokens
        speed = f"tokenized at {made['mb_per_s']:.1f} MB/s on {counted(made['n_threads'], 'core')}"
        return [
            ("tokens", f"{made['n_tokens']:,} ({made['bytes_per_token']:.2f} bytes each), {speed}"),
            ("vocabulary", f"{made['vocab_size']:,} ({made['tokenizer']})"),
            ("held out", f"{made['n_held_out']:,} tokens, {made['split']}"),
        ]


def _size(n_bytes: int) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.1f} {unit}"
    return counted(n_bytes, "byte")


@dataclass
class Survey:
    """A report with the facts about every document that the split and the second reading need."""

    report: Report
    data_hash: str
    """SHA-256 over the SHA-256 of every document's text in order: the bytes and where documents begin."""
    sizes: Words
    """UTF-8 bytes of every document."""
    characters: Words
    groups: Words
    """Equal for documents that are exact or near duplicates of each other."""


def check(source: Source, *, on_progress: OnProgress | None = None) -> Report:
    """Read a source once and report what is in it. Raises Refused for faults, as the source's policy asks."""
    return survey(source, on_progress=on_progress).report


def survey(source: Source, *, on_progress: OnProgress | None = None) -> Survey:
    """Read a source once: its report, data hash, and the size and duplicates of every document."""
    report, issues = Report(source.name), Issues()
    duplicates, whole = Duplicates(), hashlib.sha256()
    sizes, characters = array("Q"), array("Q")
    inside = controls = 0
    first_control = ""
    meter = Meter("check", source.n_bytes, on_progress)
    for document in source.documents(issues):
        digest, head = hashlib.sha256(), b""
        n_bytes = n_characters = line = 0
        after_cr = False
        for part in document.parts:
            data = part.encode()
            inside += part.count(MARKER)
            if b"\xc2" in data and (found := n_controls(part)):  # the first byte of U+0080 to U+00BF
                controls, first_control = controls + found, first_control or document.place
            digest.update(data)
            head = head or data[:COMPARED_BYTES]
            n_bytes += len(data)
            n_characters += len(part)
            line, longest = _longest_line(data, line, report.longest_line)
            if longest > report.longest_line:
                report.longest_line, report.longest_line_at = longest, document.where
            report.n_crlf += data.count(b"\r\n") + (after_cr and data.startswith(b"\n"))
            after_cr = data.endswith(b"\r")
            meter.add(len(data))
        hashed = digest.digest()
        whole.update(hashed)
        duplicates.add(int.from_bytes(hashed[:8], "big"), head)
        sizes.append(n_bytes)
        characters.append(n_characters)
    issues.refuse_if_much_was_skipped()
    groups, report.n_near_duplicates = duplicates.groups()
    report.n_exact_duplicates, report.n_compared = duplicates.n_exact, duplicates.n_compared
    report.n_bytes, report.n_characters, report.n_documents = sum(sizes), sum(characters), len(sizes)
    _take_issues(report, issues, source)
    if issues.n_divided:
        lines = counted(issues.n_divided, "line")
        report.notes.append(f"{lines} {MARKER} between documents, which are no text")
    if inside:
        says = f"{MARKER} stands {inside:,} times inside of lines, where it is read as letters"
        report.notes.append(f"{says}; on a line of its own it divides documents")
    if controls:
        report.notes.append(controls_note(controls, first_control))
    meter.finish()
    report.mb_per_s = round(meter.mb_per_s, 1)
    if not report.n_documents:
        empty = f" ({report.n_empty:,} empty)" if report.n_empty else ""
        raise Refused(f"{source.name}: there is no text in it{empty}; name a file or folder that holds some")
    known = [np.array(values, dtype=np.uint64) for values in (sizes, characters)]
    return Survey(report, whole.hexdigest(), known[0], known[1], groups)


def _longest_line(data: bytes, carried: int, known: int) -> tuple[int, int]:
    """The unfinished line's length after `data`, and the longest line in it; `carried` bytes of one came
    before.
    """
    end = data.rfind(b"\n")
    if end < 0:
        return carried + len(data), carried + len(data)
    unfinished = len(data) - end - 1
    if carried + len(data) <= known:
        return unfinished, 0
    if len(data) < _SHORT:  # splitting is quicker than array calls
        first, *rest = map(len, data.split(b"\n"))
        return unfinished, max(carried + first, *rest)
    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
    inner = int(np.diff(ends).max()) - 1 if len(ends) > 1 else 0
    return unfinished, max(carried + int(ends[0]), inner, unfinished)


def _take_issues(report: Report, issues: Issues, source: Source) -> None:
    for name in ("n_empty", "n_bom", "n_rough_cuts", "n_replaced"):
        setattr(report, name, getattr(issues, name))
    for name in ("n_skipped_bytes", "n_skipped_records", "n_skipped_files"):
        setattr(report, name, getattr(issues, name))
    report.faults = {kind: (fault.count, fault.first) for kind, fault in issues.faults.items()}
    report.left_out = dict(source.left_out)
    report.notes += issues.notes
