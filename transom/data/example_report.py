"""What is in a set of examples and what was made of it, in plain words.

Read next: prepare_examples.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from transom.data.documents import printable
from transom.data.issues import Issues
from transom.units import counted

_SHOWN_LABELS = 12


@dataclass
class ExampleReport:
    """The examples of a run in numbers. `str(report)` says it in plain words."""

    name: str
    noun: str
    """What an example is: pair, text or conversation."""
    n_train: int = 0
    n_held_out: int = 0
    split: str = ""
    """Which examples are held out, in words."""
    lengths: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Side -> tokens on average and at most, those left out included."""
    tokenizer: str = ""
    vocab_size: int = 0
    max_len: int | None = None
    n_over_long: int = 0
    first_over_long: str = ""
    n_skipped: int = 0
    n_empty: int = 0
    n_cut: int = 0
    """Examples whose ends were cut off."""
    lost: float = 0.0
    """The share of their tokens that went; of conversations, of their answers."""
    n_tokens: int = 0
    """Tokens of all conversations, those left out aside."""
    n_learned: int = 0
    """Those of them that carry loss."""
    n_unknown: int = 0
    """Held-out characters that the vocabulary does not have."""
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Kind of fault -> how many, and where first."""
    counts: dict[str, int] = field(default_factory=dict)
    """Class -> examples to learn from (empty for pairs)."""
    notes: list[str] = field(default_factory=list)
    """Sentences about choices that were made for the reader."""

    def take(self, issues: Issues) -> None:
        """Count what reading came across."""
        self.n_skipped += issues.n_skipped_records
        self.n_empty += issues.n_empty
        for kind, fault in issues.faults.items():
            count, first = self.faults.get(kind, (0, fault.first))
            self.faults[kind] = (count + fault.count, first)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [
            ("data", self.name),
            ("examples", f"{counted(self.n_train, self.noun)} to learn from"),
            ("held out", f"{counted(self.n_held_out, self.noun)}, {self.split}"),
        ]
        lengths = [
            f"{side} {mean:.1f} on average, {most:,} at most" for side, (mean, most) in self.lengths.items()
        ]
        rows.append(("tokens", "; ".join(lengths)))
        if self.n_tokens:
            share = f"{100 * self.n_learned / self.n_tokens:.0f}% of {self.n_tokens:,} tokens"
            rows.append(("learned", f"{share} carry loss: the assistant's, and the end of each answer"))
        rows.append(("vocabulary", f"{self.vocab_size:,} ({self.tokenizer})"))
        if self.counts:
            rows += [("classes", self._classes()), ("balance", self._balance())]
        rows += [("bad text", fault) for fault in self._faults()]
        if self.n_over_long:
            says = f"{counted(self.n_over_long, self.noun)} longer than {self.max_len:,} tokens"
            rows.append(("left out", f"{says}, first at {self.first_over_long}"))
        if self.n_empty:
            rows.append(("left out", counted(self.n_empty, "blank line")))
        if self.n_unknown:
            says = f"{self.n_unknown:,} held-out characters never occur in the training text: <|unk|>"
            rows.append(("note", says))
        rows += [("note", note) for note in self.notes]
        return "\n".join(f"{name:<10} {says}" for name, says in rows)

    def _classes(self) -> str:
        total = sum(self.counts.values())
        ranked = sorted(self.counts.items(), key=lambda item: -item[1])
        shown = [f"{printable(label)} {100 * n / total:.1f}%" for label, n in ranked[:_SHOWN_LABELS]]
        rest = len(ranked) - len(shown)
        return f"{len(ranked):,}: {', '.join(shown)}" + (f" and {rest:,} more" if rest else "")

    def _balance(self) -> str:
        most = max(self.counts, key=lambda label: self.counts[label])
        least = min(self.counts, key=lambda label: self.counts[label])
        if not self.counts[least]:
            return f"'{printable(least)}' has no example left"
        ratio = self.counts[most] / self.counts[least]
        if ratio < 1.5:
            return "even: the largest class is less than 1.5 times the smallest"
        share = 100 * self.counts[most] / sum(self.counts.values())
        return (
            f"'{printable(most)}' has {ratio:.1f} times the examples of '{printable(least)}'; "
            f"who always says '{printable(most)}' is right {share:.1f}% of the time"
        )

    def _faults(self) -> list[str]:
        if not self.faults:
            return []
        faults = self.faults.items()
        kinds = [f"{kind} {counted(count, 'time')} (first at {first})" for kind, (count, first) in faults]
        return [f"{'; '.join(kinds)}: {counted(self.n_skipped, 'record')} skipped"]
