"""An answer: its sentences, what each rests on, or that the documents do not say, and how it came about.

Read next: ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .search import Hit
from .store import place_of

Unsupported = Literal["mark", "drop", "fail"]
SILENT = "The documents do not say."
SHOWN = 3
"""Places that a person is shown of what was looked at."""


@dataclass(frozen=True)
class Citation:
    """The place in a document that a sentence rests on; `document[start:end]` is the quote."""

    document: str
    start: int
    end: int
    quote: str
    support: float
    """How much of the sentence the quote carries, from 0 to 1; 1 for a sentence that is the quote."""
    loo: float | None = None
    """What the sentence loses in log-probability (nats) when the model does not read the passage (leave one
    out): about 0 where it would have said the same without; None: no model was asked."""
    page: int | None = None

    @property
    def place(self) -> str:
        return place_of(self.document, self.start, self.end, self.page)


@dataclass(frozen=True)
class Sentence:
    """One sentence of an answer."""

    text: str
    citations: tuple[Citation, ...] = ()

    @property
    def supported(self) -> bool:
        return bool(self.citations)


@dataclass(frozen=True)
class Stage:
    """What one step of asking looked at, and what it dropped with the reason."""

    name: str
    rows: Sequence[tuple[str, str]]
    """What, and what became of it."""


@dataclass(frozen=True)
class Answer:
    """What is said to a question."""

    question: str
    sentences: tuple[Sentence, ...]
    confidence: float
    """How likely the best sentence answers the question, by the judge of this index."""
    threshold: float
    """Below it nothing is said."""
    looked_at: tuple[Hit, ...] = ()
    """The passages that were read."""
    reason: str = ""
    """Why nothing is said."""
    promise: str = ""
    """What calibration promises of answers above the threshold."""
    stages: list[Stage] = field(default_factory=list)

    @property
    def abstained(self) -> bool:
        return not self.sentences

    @property
    def text(self) -> str:
        """The answer itself."""
        return " ".join(one.text for one in self.sentences) or SILENT

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where each sentence stands in the text."""
        found, at = [], 0
        for one in self.sentences:
            found.append((at, at + len(one.text)))
            at += len(one.text) + 1
        return found

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        if self.abstained:
            places = [hit.passage.place for hit in self.looked_at[:SHOWN]]
            looked = [f"looked at: {'; '.join(places)}"] if places else []
            return [SILENT, "", self.reason, *looked]
        sources: list[Citation] = []
        parts = []
        for one in self.sentences:
            numbers = []
            for citation in one.citations:
                if citation not in sources:
                    sources.append(citation)
                numbers.append(f"[{sources.index(citation) + 1}]")
            parts.append(
                " ".join([_one_line(one.text), *numbers])
                if numbers
                else f"{_one_line(one.text)} [unsupported]"
            )
        lines = [*parts, ""]
        for number, source in enumerate(sources, 1):
            loo = "" if source.loo is None else f", loo {source.loo:+.2f} nats"
            quote = (
                ""
                if source.quote in [one.text for one in self.sentences]
                else f': "{_one_line(source.quote)}"'
            )
            lines.append(f"[{number}] {source.place}, support {source.support:.2f}{loo}{quote}")
        lines.append(
            f"confidence {self.confidence:.2f}, threshold {self.threshold:.2f}"
            + (f"; {self.promise}" if self.promise else "")
        )
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answer": self.text,
            "abstained": self.abstained,
            "reason": self.reason or None,
            "confidence": self.confidence,
            "threshold": self.threshold,
            "promise": self.promise or None,
            "sentences": [
                {
                    "text": one.text,
                    "supported": one.supported,
                    "citations": [vars(each) for each in one.citations],
                }
                for one in self.sentences
            ],
            "looked_at": [hit.to_dict() for hit in self.looked_at],
        }


@dataclass(frozen=True)
class Explained:
    """An answer with every stage's candidates."""

    answer: Answer

    def __str__(self) -> str:
        lines = [str(self.answer)]
        for stage in self.answer.stages:
            lines += [
                "",
                f"{stage.name}:",
                *(f"  {_one_line(what)}  {why}".rstrip() for what, why in stage.rows),
            ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        stages = [{"stage": one.name, "rows": [list(row) for row in one.rows]} for one in self.answer.stages]
        return {**self.answer.to_dict(), "stages": stages}


def _one_line(text: str) -> str:
    return " ".join(text.split())
