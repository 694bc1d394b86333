"""Where examples come from: a stream of pairs, labelled texts or conversations that can be read again.

The one idea: as with text (sources), a source is a name, a way to read it from the start, and a fingerprint;
what is met on the way is noted in Issues, and more than 1% left out is an error. Read next: pairs,
labelled, conversations, prepare_examples.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from transom.data.answer_rows import Talk
from transom.data.issues import Issues, Policy
from transom.data.rows import HubRows, RowFile
from transom.data.textfile import SkippedFile

Example = TypeVar("Example", bound=tuple[str, ...])
"""Pair, Triple, Labelled or Conversation: two texts or three, and last their place as file:line."""


def hashed_bytes(example: tuple[str, ...]) -> bytes:
    """Return what the hash of a set of examples takes of each: its texts, and not their place."""
    return "".join(f"{text}\0" for text in example[:-1]).encode()


@dataclass(frozen=True)
class ExampleSource(Generic[Example]):
    """Examples to learn from, in a fixed order, with the place of each."""

    name: str
    read: Callable[[Issues], Iterator[Example]]
    """Reads all of it once."""
    files: tuple[RowFile | HubRows, ...] = ()
    sides: tuple[str, ...] = ("source", "target")
    """Which texts an example has; a text alone has a class beside it."""
    settings: tuple[object, ...] = ()
    """What else decides which examples come."""
    on_error: Policy = "error"
    tokenizer: str = "bpe"
    """The kind of vocabulary that suits these texts."""
    held_out: ExampleSource[Example] | None = None
    """What is to be measured on, where the source brings it along."""
    notes: tuple[str, ...] = ()
    """Sentences about choices that were made for the reader."""
    known_by: tuple[int, ...] | None = None
    """Which of an example's texts tell it from others: equal ones are learned or held out together [its
    sides]."""
    talks: Callable[[Example], tuple[Talk, ...]] | None = None
    """Every side as a conversation, where the sides are conversations; None: they are texts as they stand."""

    @property
    def has_classes(self) -> bool:
        """Whether an example is a text with its class."""
        return self.talks is None and len(self.sides) == 1

    @property
    def noun(self) -> str:
        """What an example is called."""
        one = "conversation" if self.talks is not None else "text"
        return (one, "pair", "triple")[len(self.sides) - 1]

    def identity(self, example: Example) -> list[str]:
        """The texts that tell an example from others."""
        return [example[at] for at in self.known_by or range(len(self.sides))]

    def texts(self, example: Example) -> list[str]:
        """The texts of an example that a vocabulary is made of."""
        if self.talks is None:
            return list(example[: len(self.sides)])
        return [str(message["content"]) for talk in self.talks(example) for message in talk.messages]

    def __iter__(self) -> Iterator[Example]:
        return self.examples()

    def examples(self, issues: Issues | None = None) -> Iterator[Example]:
        """Stream the examples; raises Refused, with the place, as `on_error` asks."""
        issues = issues if issues is not None else Issues()
        issues.policy = self.on_error
        with contextlib.suppress(SkippedFile):
            yield from self.read(issues)
        issues.refuse_if_much_was_skipped()

    def fingerprint(self) -> str:
        """A hash that changes when a byte of a file does, or a setting; every file is read for it once."""
        facts = (
            self.name,
            self.on_error,
            self.settings,
            self.sides,
            [one.fingerprint() for one in self.files],
        )
        return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()
